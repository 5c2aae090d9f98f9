//! The decision about a new socket, given the policy and the socket's network namespace.
//!
//! **Invariant:** only a complete policy of the socket's own namespace binds it to an interface. A socket is left alone
//! only if its policy requires it. All other sockets are closed off.

use crate::{
    counter::Counter,
    record::{Kind, PolicyRecord, policy_flags},
    uplink::{Line, MEMBERS, UplinkRecord},
};

/// The decision about one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Bind to this interface index.
    Bind(i32),
    /// Do not bind it, and set this mark.
    Mark(Mark),
    /// Bind to [`CLOSED_IFINDEX`](crate::CLOSED_IFINDEX), and count why.
    Close(Counter),
    /// Do not touch it, and count why.
    Leave(Counter),
    /// Fail `socket()` with EPERM, and count why.
    Refuse(Counter),
}

impl Verdict {
    /// Whether the policy decides where the socket sends.
    #[inline]
    pub const fn steers(self) -> bool {
        matches!(self, Self::Bind(_) | Self::Mark(_) | Self::Close(_))
    }
}

/// The mark of a policy's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits that are set, all of them in `mask`.
    pub value: u32,
    /// The bits that steer sets. The others are the program's own.
    pub mask: u32,
}

impl Mark {
    /// Whether a socket with mark `of_socket` has it.
    #[inline]
    pub const fn is_in(self, of_socket: u32) -> bool {
        of_socket & self.mask == self.value
    }

    /// The mark that a socket with mark `of_socket` should have.
    #[inline]
    pub const fn set_in(self, of_socket: u32) -> u32 {
        of_socket & !self.mask | self.value
    }
}

/// Decides about a socket that belongs to the network namespace `netns_cookie`, in a cgroup whose policy is `policy`
/// (`None`: the attachment names a slot that does not exist). `line`: the uplink that it gets.
#[inline]
pub fn decide(policy: Option<&PolicyRecord>, line: Line, netns_cookie: u64) -> Verdict {
    let Some(policy) = policy else {
        return Verdict::Close(Counter::ClosedUnknown);
    };
    match Kind::try_from(policy.kind) {
        Ok(Kind::Exempt) => Verdict::Leave(Counter::LeftExempt),
        Ok(Kind::Steer) if policy.netns_cookie != netns_cookie => {
            if policy.flags & policy_flags::REFUSE_OTHER_NETNS == 0 {
                Verdict::Leave(Counter::LeftNetns)
            } else {
                Verdict::Refuse(Counter::RefusedNetns)
            }
        }
        Ok(Kind::Steer) if policy.flags & policy_flags::ROUTE != 0 => {
            let mark = Mark { value: line.mark, mask: policy.mark_mask };
            if mark.value != 0 && mark.value & !mark.mask == 0 {
                Verdict::Mark(mark)
            } else {
                Verdict::Close(Counter::ClosedUnknown)
            }
        }
        Ok(Kind::Steer) if line.ifindex > 0 => Verdict::Bind(line.ifindex),
        Ok(Kind::Steer) => Verdict::Close(Counter::ClosedMissing),
        Err(_) => Verdict::Close(Counter::ClosedUnknown),
    }
}

/// Whether the policy has one of these flags. An incomplete policy counts as having all.
#[inline]
pub fn is_asked(policy: Option<&PolicyRecord>, flags: u32) -> bool {
    policy.is_none_or(|policy| policy.flags & flags != 0 || Kind::try_from(policy.kind).is_err())
}

/// Whether what `strict` would stop passes, and is reported only. An incomplete policy stops it, and so does one that is both.
#[inline]
pub fn observes(policy: Option<&PolicyRecord>) -> bool {
    policy.is_some_and(|policy| {
        policy.flags & policy_flags::SEES == policy_flags::OBSERVE && policy.kind == Kind::Steer as u32
    })
}

/// Whether a socket with this binding and this mark is already as the policy requires, in any network namespace. A guard
/// checks this first, because it needs a helper call to find out the namespace. `group`: the uplinks of the policy, if it has several.
#[inline]
pub fn is_settled(policy: Option<&PolicyRecord>, group: Option<&UplinkRecord>, bound: i32, mark: u32) -> bool {
    policy.is_some_and(|policy| {
        matches!(Kind::try_from(policy.kind), Ok(Kind::Steer))
            && policy.flags & policy_flags::REFUSE_OTHER_NETNS == 0
            && if policy.flags & policy_flags::ROUTE == 0 {
                is_uplink(policy, group, bound) && mark & policy.mark_mask == 0
            } else {
                let is_own = mark & policy.mark_mask == policy.mark || policy.member_of_mark(mark) < MEMBERS;
                bound == 0 && policy.mark != 0 && is_own
            }
    })
}

/// Whether this is the index of the policy's uplink, or of one of them.
#[inline]
pub fn is_uplink(policy: &PolicyRecord, group: Option<&UplinkRecord>, ifindex: i32) -> bool {
    if policy.uplink == 0 {
        return ifindex > 0 && policy.ifindex == ifindex;
    }
    group.is_some_and(|group| group.member_of(ifindex) < MEMBERS)
}

#[cfg(test)]
mod tests {
    use super::{Mark, Verdict, decide, is_settled, observes};
    use crate::{
        CLOSED_IFINDEX, Counter, Line,
        record::{Kind, PolicyRecord, policy_flags},
    };

    fn decide_one(policy: Option<&PolicyRecord>, netns_cookie: u64) -> Verdict {
        decide(policy, policy.map_or(Line::CLOSED, Line::of), netns_cookie)
    }

    const HERE: u64 = 7;
    const STEER: PolicyRecord =
        PolicyRecord { kind: Kind::Steer as u32, ifindex: 3, netns_cookie: HERE, ..PolicyRecord::EMPTY };

    const MASK: u32 = 0xff00_0000;
    const MARK: u32 = 0x8100_0000;
    const ROUTE: PolicyRecord = PolicyRecord { flags: policy_flags::ROUTE, mark: MARK, mark_mask: MASK, ..STEER };

    struct Case {
        name: &'static str,
        policy: Option<PolicyRecord>,
        netns_cookie: u64,
        want: Verdict,
    }

    #[test]
    fn decisions() {
        let refusing = PolicyRecord { flags: policy_flags::REFUSE_OTHER_NETNS, ..STEER };
        let exempt = PolicyRecord { kind: Kind::Exempt as u32, ..PolicyRecord::EMPTY };
        let cases = [
            Case { name: "steer", policy: Some(STEER), netns_cookie: HERE, want: Verdict::Bind(3) },
            Case {
                name: "missing slot",
                policy: None,
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedUnknown),
            },
            Case {
                name: "empty slot",
                policy: Some(PolicyRecord::EMPTY),
                netns_cookie: 0,
                want: Verdict::Close(Counter::ClosedUnknown),
            },
            Case {
                name: "unknown kind",
                policy: Some(PolicyRecord { kind: 3, ..STEER }),
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedUnknown),
            },
            Case {
                name: "uplink missing",
                policy: Some(STEER.closed()),
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedMissing),
            },
            Case {
                name: "index 0 is not an uplink",
                policy: Some(PolicyRecord { ifindex: 0, ..STEER }),
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedMissing),
            },
            Case {
                name: "other netns",
                policy: Some(STEER),
                netns_cookie: 8,
                want: Verdict::Leave(Counter::LeftNetns),
            },
            Case {
                name: "other netns, refusing",
                policy: Some(refusing),
                netns_cookie: 8,
                want: Verdict::Refuse(Counter::RefusedNetns),
            },
            Case { name: "own netns, refusing", policy: Some(refusing), netns_cookie: HERE, want: Verdict::Bind(3) },
            Case {
                name: "marked, also while the uplink is missing",
                policy: Some(ROUTE.closed()),
                netns_cookie: HERE,
                want: Verdict::Mark(Mark { value: MARK, mask: MASK }),
            },
            Case {
                name: "no mark yet",
                policy: Some(PolicyRecord { mark: 0, ..ROUTE }),
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedUnknown),
            },
            Case {
                name: "a mark outside of the mask",
                policy: Some(PolicyRecord { mark: MARK | 1, ..ROUTE }),
                netns_cookie: HERE,
                want: Verdict::Close(Counter::ClosedUnknown),
            },
            Case {
                name: "exempt",
                policy: Some(exempt),
                netns_cookie: HERE,
                want: Verdict::Leave(Counter::LeftExempt),
            },
            Case {
                name: "exempt in any netns",
                policy: Some(exempt),
                netns_cookie: 8,
                want: Verdict::Leave(Counter::LeftExempt),
            },
        ];
        for case in &cases {
            assert_eq!(decide_one(case.policy.as_ref(), case.netns_cookie), case.want, "{}", case.name);
        }
        for (bound, mark) in
            [CLOSED_IFINDEX, 0, 3].into_iter().flat_map(|bound| [0, MARK | 5].map(|mark| (bound, mark)))
        {
            for Case { name, policy, netns_cookie, .. } in &cases {
                let settled = match decide_one(policy.as_ref(), *netns_cookie) {
                    Verdict::Leave(_) => true,
                    Verdict::Bind(ifindex) => bound == ifindex,
                    Verdict::Mark(wanted) => bound == 0 && wanted.is_in(mark),
                    Verdict::Close(_) | Verdict::Refuse(_) => false,
                };
                assert!(settled || !is_settled(policy.as_ref(), None, bound, mark), "{name}, {bound}, {mark:x}");
            }
        }
    }

    #[test]
    fn only_a_complete_policy_observes() {
        let flagged = |flags| PolicyRecord { flags, ..STEER };
        assert!(observes(Some(&flagged(policy_flags::OBSERVE | policy_flags::RESTORE))));
        assert!(!observes(Some(&flagged(policy_flags::SEES))), "strict decides");
        assert!(!observes(Some(&PolicyRecord { kind: 0, ..flagged(policy_flags::OBSERVE) })), "an empty slot");
        assert!(!observes(Some(&STEER)) && !observes(None));
    }

    #[test]
    fn marks_and_bindings_that_are_right() {
        assert!(is_settled(Some(&STEER), None, 3, 0) && is_settled(Some(&ROUTE), None, 0, MARK | 5));
        let masked = PolicyRecord { mark_mask: MASK, ..STEER };
        assert!(
            is_settled(Some(&masked), None, 3, 5) && !is_settled(Some(&masked), None, 3, MARK),
            "of an earlier policy"
        );
        assert_eq!(Mark { value: MARK, mask: MASK }.set_in(0x0200_0007), MARK | 7);
        const { assert!(CLOSED_IFINDEX < 0, "no interface may have the closed index") };
    }
}
