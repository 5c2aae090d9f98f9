//! The ways by which a program's traffic can be had to leave by the uplink of one's choice.
//!
//! **Invariant:** each way is a cgroup of its own and differs from the others in nothing but what chooses its uplink.

use serde::Serialize;

/// How traffic gets to its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// By the routing table: nobody chooses.
    Unsteered,
    /// The same, in another cgroup: how far from 1 the ratio of equal things is.
    Control,
    /// A BPF program that lets every packet pass: what the hook takes without ours.
    Empty,
    /// `steer attach --enforce steer`.
    Steer,
    /// `steer attach --enforce strict`.
    Strict,
    /// nftables' `socket cgroupv2` sets a mark, by which a rule chooses the routing table. The packets keep the source
    /// address of the link they would have left by, and a rule that mends this would cost more.
    Mark,
    /// The same, with the rule that mends it: `masquerade`.
    MarkMasquerade,
    /// In a network namespace of its own, behind a veth, whose other side forwards and masquerades.
    Namespace,
}

impl Way {
    pub(super) const ALL: [Self; 8] = [
        Self::Unsteered,
        Self::Control,
        Self::Empty,
        Self::Steer,
        Self::Strict,
        Self::Mark,
        Self::MarkMasquerade,
        Self::Namespace,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unsteered => "no policy",
            Self::Control => "no policy again",
            Self::Empty => "empty program",
            Self::Steer => "steer",
            Self::Strict => "strict",
            Self::Mark => "nft mark",
            Self::MarkMasquerade => "nft mark, masquerade",
            Self::Namespace => "namespace, NAT",
        }
    }

    /// The cgroup, below that of the benchmark.
    pub(super) fn cgroup(self) -> &'static str {
        match self {
            Self::Unsteered => "unsteered",
            Self::Control => "control",
            Self::Empty => "empty",
            Self::Steer => "steer",
            Self::Strict => "strict",
            Self::Mark => "mark",
            Self::MarkMasquerade => "mark-masquerade",
            Self::Namespace => "namespace",
        }
    }

    /// The number of the uplink by which the traffic leaves; 0 is what the routing table says.
    pub(super) fn uplink(self) -> usize {
        match self {
            Self::Unsteered | Self::Control | Self::Empty => 0,
            Self::Steer | Self::Strict | Self::Mark | Self::MarkMasquerade | Self::Namespace => 1,
        }
    }

    /// Whether it is not steer's.
    pub(super) fn is_foreign(self) -> bool {
        matches!(self, Self::Mark | Self::MarkMasquerade | Self::Namespace)
    }
}
