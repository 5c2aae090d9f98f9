//! Per-policy counters: one enum names them for the kernel side, the agent and its output.

/// What happened to a socket, a call or a packet. The discriminant is the index in [`CounterRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Bound to the uplink.
    Bound = 0,
    /// Closed off: the uplink is missing.
    ClosedMissing = 1,
    /// Closed off: the policy is not (or not yet) complete.
    ClosedUnknown = 2,
    /// Refused with EPERM: the socket belongs to another network namespace, and the policy refuses those.
    RefusedNetns = 3,
    /// Left alone: the socket belongs to another network namespace.
    LeftNetns = 4,
    /// Left alone: the policy exempts.
    LeftExempt = 5,
    /// Left alone: an inner cgroup's policy has decided.
    LeftNested = 6,
    /// `connect` restored a lost binding.
    Restored = 7,
    /// `connect` was refused: the binding could not be restored.
    StoppedConnect = 8,
    /// A datagram of an unbound socket was stopped.
    StoppedSendmsg = 9,
    /// `setsockopt` was refused: it would have let traffic out by another link.
    StoppedSetsockopt = 10,
    /// A packet on its way out by another link was stopped.
    StoppedEgress = 11,
    /// A packet that came in by another link was dropped.
    StoppedIngress = 12,
    /// `bind` was refused: the binding could not be restored.
    StoppedBind = 13,
    /// `socket` was refused: no program sees what the socket would send.
    StoppedFamily = 14,
    /// A call or a packet was refused: its destination is this host, which a bound socket does not reach, or the socket has a
    /// loopback address, which no other host answers.
    StoppedLocal = 15,
    /// A packet to a name server other than the policy's resolver was stopped.
    StoppedDns = 16,
    /// A process was moved out of the policy's cgroups, to one that no policy steers. Its sockets from before stay held.
    MovedOut = 17,
    /// `bind` to a loopback address, where nothing reaches a bound socket.
    UnreachableBind = 18,
    /// `connect` or a datagram was refused: an exception refuses the destination.
    StoppedExcept = 19,
    /// `bind` to an address of this host that belongs to another link: answers to it do not come by the uplink.
    ForeignSource = 20,
    /// A call or a packet that `strict` would stop. It passed: the policy observes.
    Observed = 21,
    /// `socket` was refused: a peer may join an MPTCP connection by another link.
    StoppedMptcp = 22,
}

/// All counters, in index order.
pub const COUNTERS: [Counter; 23] = [
    Counter::Bound,
    Counter::ClosedMissing,
    Counter::ClosedUnknown,
    Counter::RefusedNetns,
    Counter::LeftNetns,
    Counter::LeftExempt,
    Counter::LeftNested,
    Counter::Restored,
    Counter::StoppedConnect,
    Counter::StoppedSendmsg,
    Counter::StoppedSetsockopt,
    Counter::StoppedEgress,
    Counter::StoppedIngress,
    Counter::StoppedBind,
    Counter::StoppedFamily,
    Counter::StoppedLocal,
    Counter::StoppedDns,
    Counter::MovedOut,
    Counter::UnreachableBind,
    Counter::StoppedExcept,
    Counter::ForeignSource,
    Counter::Observed,
    Counter::StoppedMptcp,
];

impl Counter {
    /// The counter of this index.
    pub fn of_index(index: u32) -> Option<Self> {
        COUNTERS.get(usize::try_from(index).ok()?).copied()
    }

    /// The stable name, as in `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::ClosedMissing => "closed_missing",
            Self::ClosedUnknown => "closed_unknown",
            Self::RefusedNetns => "refused_netns",
            Self::LeftNetns => "left_netns",
            Self::LeftExempt => "left_exempt",
            Self::LeftNested => "left_nested",
            Self::Restored => "restored",
            Self::StoppedConnect => "stopped_connect",
            Self::StoppedSendmsg => "stopped_sendmsg",
            Self::StoppedSetsockopt => "stopped_setsockopt",
            Self::StoppedEgress => "stopped_egress",
            Self::StoppedIngress => "stopped_ingress",
            Self::StoppedBind => "stopped_bind",
            Self::StoppedFamily => "stopped_family",
            Self::StoppedLocal => "stopped_local",
            Self::StoppedDns => "stopped_dns",
            Self::MovedOut => "moved_out",
            Self::UnreachableBind => "unreachable_bind",
            Self::StoppedExcept => "stopped_except",
            Self::ForeignSource => "foreign_source",
            Self::Observed => "observed",
            Self::StoppedMptcp => "stopped_mptcp",
        }
    }
}

/// One CPU's counts of one policy slot, indexed by [`Counter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CounterRecord {
    /// Counts, since the policy slot was filled.
    pub counts: [u64; COUNTERS.len()],
}

const _: () = assert!(size_of::<CounterRecord>() == 184);

// SAFETY: `repr(C)`, `Copy`, one array of integers, so no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for CounterRecord {}

#[cfg(test)]
mod tests {
    use super::{COUNTERS, Counter};

    #[test]
    fn indexes_are_positions() {
        for (position, counter) in COUNTERS.iter().enumerate() {
            assert_eq!(*counter as usize, position, "{}", counter.name());
            assert_eq!(Counter::of_index(*counter as u32), Some(*counter));
        }
        assert_eq!(Counter::of_index(u32::MAX), None);
    }
}
