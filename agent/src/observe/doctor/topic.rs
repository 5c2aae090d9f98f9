//! The checks of doctor.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a check is about. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The capabilities of this process.
    Capabilities,
    /// The mount of the cgroup2 hierarchy.
    Cgroup2,
    /// The mount of the bpffs for the pins.
    Bpffs,
    /// Whether the pins can be read.
    Pins,
    /// Whether the configuration can be read, and has no errors.
    Configuration,
    /// The kernel's version.
    Kernel,
    /// The kernel's type information.
    Btf,
    /// The hooks on cgroups.
    KernelHooks,
    /// The types of maps.
    KernelMaps,
    /// Whether LSM programs run.
    LsmBpf,
    /// Whether the patterns of the configuration match.
    CgroupPattern,
    /// Whether an uplink exists, is up, and has a carrier.
    Uplink,
    /// Whether it has an IPv4 address.
    Ipv4Address,
    /// Whether it has an IPv4 default route.
    Ipv4Route,
    /// Whether it has an IPv6 address.
    Ipv6Address,
    /// Whether it has an IPv6 default route.
    Ipv6Route,
    /// Whether the kernel drops answers that arrive on it.
    ReversePathFilter,
    /// Whether the name server is this host.
    LocalResolver,
    /// Whether links have the resolvers that policies ask for.
    LinkResolver,
    /// Whether systemd-resolved looks names up.
    NssResolve,
    /// Whether nscd looks names up.
    Nscd,
    /// Whether a daemon runs for the configuration.
    Daemon,
    /// Whether attachments are complete.
    Attachment,
    /// Whether policies in force are still configured.
    Policy,
    /// Whether policies only observe.
    Observe,
    /// Whether policies have the current indexes of their uplinks.
    UplinkIndex,
    /// Whether another version of steer steers anything.
    OtherVersion,
    /// Whether there are pins without use.
    Leftovers,
    /// Whether an exclusive program of another owner excludes steer's.
    ForeignExclusive,
    /// Whether a program of another owner runs after steer's, and may bind the socket again.
    ForeignBinding,
    /// Whether the cgroups that the configuration names are steered.
    CgroupSteered,
    /// Whether a manual attachment goes before what the configuration names.
    ManualAttachment,
    /// Whether the daemon sees new cgroups.
    CgroupWatch,
    /// Whether steered processes hold sockets that are not bound to their uplink.
    OlderSockets,
    /// Whether processes of steered cgroups are in other network namespaces.
    OtherNetns,
    /// Whether the rules and routes of policies are as they should be.
    Routes,
    /// Whether rules of others stand in front of those for steer's marks.
    ForeignRule,
    /// Whether rules of others use bits of steer's marks.
    MarkClash,
    /// Whether the members of groups of uplinks work, and probes can tell.
    UplinkGroup,
}

/// The checks that need the pins.
pub(super) const NEED_PINS: [Topic; 17] = [
    Topic::Daemon,
    Topic::Attachment,
    Topic::Policy,
    Topic::Observe,
    Topic::UplinkIndex,
    Topic::OtherVersion,
    Topic::Leftovers,
    Topic::ForeignExclusive,
    Topic::ForeignBinding,
    Topic::CgroupSteered,
    Topic::ManualAttachment,
    Topic::OlderSockets,
    Topic::OtherNetns,
    Topic::Routes,
    Topic::ForeignRule,
    Topic::MarkClash,
    Topic::UplinkGroup,
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
            Self::LinkResolver => "link-resolver",
            Self::NssResolve => "nss-resolve",
            Self::Nscd => "nscd",
            Self::Daemon => "daemon",
            Self::Attachment => "attachment",
            Self::Policy => "policy",
            Self::Observe => "observe",
            Self::UplinkIndex => "uplink-index",
            Self::OtherVersion => "other-version",
            Self::Leftovers => "leftovers",
            Self::ForeignExclusive => "foreign-exclusive",
            Self::ForeignBinding => "foreign-binding",
            Self::CgroupSteered => "cgroup-steered",
            Self::ManualAttachment => "manual-attachment",
            Self::CgroupWatch => "cgroup-watch",
            Self::OlderSockets => "older-sockets",
            Self::OtherNetns => "other-netns",
            Self::Routes => "routes",
            Self::ForeignRule => "foreign-rule",
            Self::MarkClash => "mark-clash",
            Self::UplinkGroup => "uplink-group",
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
