//! The ways to make a program's traffic leave by a selected uplink.
//!
//! **Invariant:** each way has its own cgroup, and differs from the others only in what selects its uplink.

use serde::Serialize;

/// The way in which traffic gets to its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// The routing table.
    Unsteered,
    /// The same, to show how far the ratio of equal ways is from 1.
    Control,
    /// The same, with programs that do nothing.
    Empty,
    /// `steer attach --enforce steer`.
    Steer,
    /// `steer attach --enforce strict`.
    Strict,
    /// `steer attach --account true`.
    Account,
    /// `steer attach --local host`.
    Route,
    /// Nothing, beside a policy without `local`.
    BesideBind,
    /// Nothing, beside a policy with `local`.
    BesideRoute,
    /// Nothing, beside many of them.
    BesideRoutes,
    /// A mark. The packets keep the source address of the link that they would have left by.
    Mark,
    /// A mark, with a rule that corrects the source address.
    MarkMasquerade,
    /// A network namespace.
    Namespace,
}

impl Way {
    /// What steers the program itself.
    pub(super) const OWN: [Self; 10] = [
        Self::Unsteered,
        Self::Control,
        Self::Empty,
        Self::Steer,
        Self::Strict,
        Self::Account,
        Self::Route,
        Self::Mark,
        Self::MarkMasquerade,
        Self::Namespace,
    ];
    /// What steers other programs of the same network namespace.
    pub(super) const BESIDE: [Self; 5] =
        [Self::Unsteered, Self::Control, Self::BesideBind, Self::BesideRoute, Self::BesideRoutes];
    /// The number of policies in [`Self::BesideRoutes`].
    pub(super) const MANY: u8 = 60;

    /// Each once.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::OWN.into_iter().chain(Self::BESIDE.into_iter().skip(2))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unsteered => "no policy",
            Self::Control => "again",
            Self::Empty => "empty",
            Self::Steer => "steer",
            Self::Strict => "strict",
            Self::Account => "account",
            Self::Route => "local",
            Self::BesideBind => "beside strict",
            Self::BesideRoute => "beside local",
            Self::BesideRoutes => "beside 60",
            Self::Mark => "mark",
            Self::MarkMasquerade => "mark, NAT",
            Self::Namespace => "namespace",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Unsteered => "the routing table decides",
            Self::Control => "the same once more: how far from 1 the ratio of equal things is",
            Self::Empty => "BPF programs that do nothing, on the hooks of strict: what the kernel takes to call them",
            Self::Steer => "a policy with enforce = \"steer\"",
            Self::Strict => "a policy with enforce = \"strict\"",
            Self::Account => "the same with `account = true`",
            Self::Route => "strict with `local = [\"host\"]`",
            Self::BesideBind => "no policy; another program has one without `local`",
            Self::BesideRoute => "no policy; another program has one with `local`",
            Self::BesideRoutes => "no policy; 60 other programs have different ones with `local`",
            Self::Mark => {
                "nftables: `socket cgroupv2` sets a mark, a rule sends it by another table; wrong source address"
            }
            Self::MarkMasquerade => "the same, and `masquerade` corrects the address",
            Self::Namespace => "a network namespace of its own behind a veth, forwarded and masqueraded by the host",
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
            Self::Account => "account",
            Self::Route => "local",
            Self::BesideBind => "beside-strict",
            Self::BesideRoute => "beside-local",
            Self::BesideRoutes => "beside-60-local",
            Self::Mark => "mark",
            Self::MarkMasquerade => "mark-nat",
            Self::Namespace => "namespace",
        }
    }

    /// The number of the uplink by which the traffic leaves; 0 is the choice of the routing table.
    pub(super) fn uplink(self) -> usize {
        match self {
            Self::Unsteered
            | Self::Control
            | Self::Empty
            | Self::BesideBind
            | Self::BesideRoute
            | Self::BesideRoutes => 0,
            Self::Steer
            | Self::Strict
            | Self::Account
            | Self::Route
            | Self::Mark
            | Self::MarkMasquerade
            | Self::Namespace => 1,
        }
    }

    /// Whether it has more requirements than steer.
    pub(super) fn is_foreign(self) -> bool {
        matches!(self, Self::Mark | Self::MarkMasquerade | Self::Namespace)
    }
}
