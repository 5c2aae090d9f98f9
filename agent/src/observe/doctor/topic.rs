//! What is looked at.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a check looks at. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// What this process may do.
    Capabilities,
    /// Where the cgroup2 hierarchy is.
    Cgroup2,
    /// Where the bpffs for the pins is.
    Bpffs,
    /// Whether the pins can be read.
    Pins,
    /// Whether the configuration can be read, and has no mistakes.
    Configuration,
    /// The kernel's version.
    Kernel,
    /// The kernel's description of its own types.
    Btf,
    /// The hooks on cgroups.
    KernelHooks,
    /// The types of maps.
    KernelMaps,
    /// Whether programs on security hooks run.
    LsmBpf,
    /// Whether the patterns of the configuration match.
    CgroupPattern,
    /// Whether an uplink is there, up and connected.
    Uplink,
    /// Whether it has an IPv4 address.
    Ipv4Address,
    /// Whether an IPv4 default route leads by it.
    Ipv4Route,
    /// Whether it has an IPv6 address.
    Ipv6Address,
    /// Whether an IPv6 default route leads by it.
    Ipv6Route,
    /// Whether answers that come in by it are dropped.
    ReversePathFilter,
    /// Whether names are asked of this host.
    LocalResolver,
    /// Whether they are asked of systemd-resolved.
    NssResolve,
    /// Whether they are asked of nscd.
    Nscd,
    /// Whether a daemon looks after what a configuration steers.
    Daemon,
    /// Whether attachments are whole.
    Attachment,
    /// Whether a policy in force is still somebody's.
    Policy,
    /// Whether policies have the indexes of their uplinks.
    UplinkIndex,
    /// Whether another version of steer steers anything.
    OtherVersion,
    /// Whether there are pins of no use.
    Leftovers,
    /// Whether a program of somebody else's keeps steer's out.
    ForeignExclusive,
    /// Whether one runs after steer's, and may have the last word.
    ForeignBinding,
    /// Whether what the configuration names is steered.
    CgroupSteered,
    /// Whether steered processes hold sockets that are not bound to their uplink.
    OlderSockets,
}

/// What can be looked at only by who has read the pins.
pub(super) const OF_WHAT_IS_STEERED: [Topic; 10] = [
    Topic::Daemon,
    Topic::Attachment,
    Topic::Policy,
    Topic::UplinkIndex,
    Topic::OtherVersion,
    Topic::Leftovers,
    Topic::ForeignExclusive,
    Topic::ForeignBinding,
    Topic::CgroupSteered,
    Topic::OlderSockets,
];

impl Topic {
    /// The name, as in `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "capabilities",
            Self::Cgroup2 => "cgroup2",
            Self::Bpffs => "bpffs",
            Self::Pins => "pins",
            Self::Configuration => "configuration",
            Self::Kernel => "kernel",
            Self::Btf => "btf",
            Self::KernelHooks => "kernel-hooks",
            Self::KernelMaps => "kernel-maps",
            Self::LsmBpf => "lsm-bpf",
            Self::CgroupPattern => "cgroup-pattern",
            Self::Uplink => "uplink",
            Self::Ipv4Address => "ipv4-address",
            Self::Ipv4Route => "ipv4-route",
            Self::Ipv6Address => "ipv6-address",
            Self::Ipv6Route => "ipv6-route",
            Self::ReversePathFilter => "reverse-path-filter",
            Self::LocalResolver => "local-resolver",
            Self::NssResolve => "nss-resolve",
            Self::Nscd => "nscd",
            Self::Daemon => "daemon",
            Self::Attachment => "attachment",
            Self::Policy => "policy",
            Self::UplinkIndex => "uplink-index",
            Self::OtherVersion => "other-version",
            Self::Leftovers => "leftovers",
            Self::ForeignExclusive => "foreign-exclusive",
            Self::ForeignBinding => "foreign-binding",
            Self::CgroupSteered => "cgroup-steered",
            Self::OlderSockets => "older-sockets",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
