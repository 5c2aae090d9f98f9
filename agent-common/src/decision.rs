//! The decision about a new socket, given the policy and the socket's network namespace.
//!
//! **Invariant:** only a complete policy of the socket's own namespace binds it to an interface. A socket is left alone
//! only if its policy requires it. All other sockets are closed off.

use crate::{
    counter::Counter,
    record::{Kind, PolicyRecord, policy_flags},
};

/// The decision about one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Bind to this interface index.
    Bind(i32),
    /// Bind to [`CLOSED_IFINDEX`](crate::CLOSED_IFINDEX), and count why.
    Close(Counter),
    /// Do not touch it, and count why.
    Leave(Counter),
    /// Fail `socket()` with EPERM, and count why.
    Refuse(Counter),
}

/// Decides about a socket that belongs to the network namespace `netns_cookie`, in a cgroup whose policy is `policy`
/// (`None`: the attachment names a slot that does not exist).
#[inline]
pub fn decide(policy: Option<&PolicyRecord>, netns_cookie: u64) -> Verdict {
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
        Ok(Kind::Steer) if policy.ifindex > 0 => Verdict::Bind(policy.ifindex),
        Ok(Kind::Steer) => Verdict::Close(Counter::ClosedMissing),
        Err(_) => Verdict::Close(Counter::ClosedUnknown),
    }
}

/// Whether the policy has one of these flags. An incomplete policy counts as having all.
#[inline]
pub fn is_asked(policy: Option<&PolicyRecord>, flags: u32) -> bool {
    policy.is_none_or(|policy| policy.flags & flags != 0 || Kind::try_from(policy.kind).is_err())
}

/// Whether `bound` is already what the policy requires, in any network namespace. A guard checks this first, because it
/// needs a helper call to find out the namespace.
#[inline]
pub fn is_settled(policy: Option<&PolicyRecord>, bound: i32) -> bool {
    policy.is_some_and(|policy| {
        matches!(Kind::try_from(policy.kind), Ok(Kind::Steer))
            && policy.flags & policy_flags::REFUSE_OTHER_NETNS == 0
            && policy.ifindex > 0
            && policy.ifindex == bound
    })
}

#[cfg(test)]
mod tests {
    use super::{Verdict, decide, is_settled};
    use crate::{
        CLOSED_IFINDEX, Counter,
        record::{Kind, PolicyRecord, policy_flags},
    };

    const HERE: u64 = 7;
    const STEER: PolicyRecord =
        PolicyRecord { kind: Kind::Steer as u32, ifindex: 3, netns_cookie: HERE, ..PolicyRecord::EMPTY };

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
            assert_eq!(decide(case.policy.as_ref(), case.netns_cookie), case.want, "{}", case.name);
        }
        for bound in [CLOSED_IFINDEX, 0, 3] {
            for Case { name, policy, netns_cookie, .. } in &cases {
                let verdict = decide(policy.as_ref(), *netns_cookie);
                let left = matches!(verdict, Verdict::Leave(_)) || verdict == Verdict::Bind(bound);
                assert!(left || !is_settled(policy.as_ref(), bound), "{name}, bound to {bound}");
            }
        }
        assert!(is_settled(Some(&STEER), 3));
        const { assert!(CLOSED_IFINDEX < 0, "no interface may have the closed index") };
    }
}
