//! What a call's socket should have, and what becomes of a call or a packet.
//!
//! **Invariant:** the values decide nothing by themselves. The verifier walks what follows once, and not for each of them.

use steer_common::{
    AttachmentRecord, CLOSED_IFINDEX, COUNTERS, Counter, EventRecord, Mark, event, observes,
    verifier::{forget, forget_word},
};

use crate::{events, policy};

/// Counts and reports what a program of `strict` stops, and returns whether it is stopped. Under a policy that observes, it is not.
///
/// This is the one place that decides so. The program must have changed nothing, or undo what it has changed.
#[inline(always)]
pub(crate) fn stops(
    attachment: &AttachmentRecord,
    reason: u32,
    cgroup_id: u64,
    describe: impl FnOnce(&mut EventRecord),
) -> bool {
    let observes = observes(policy::get(attachment.policy));
    let (counter, reason) =
        if observes { (Counter::Observed as u32, reason | event::OBSERVED) } else { (reason, reason) };
    // The verifier would walk the report twice.
    let (counter, reason, stops) = (forget_word(counter), forget_word(reason), forget((!observes).into()));
    policy::count_index(attachment.policy, counter);
    events::report(attachment, reason, cgroup_id, describe);
    stops != 0
}

/// The program sends again, as after a signal.
pub(crate) const EINTR: u8 = 4;
/// As without steer, where an IPv4 socket with a loopback address sends to another host.
pub(crate) const EINVAL: u8 = 22;
/// As by a route that prohibits.
pub(crate) const EACCES: u8 = 13;
/// As where the sysctl `net.mptcp.enabled` is 0.
pub(crate) const ENOPROTOOPT: u8 = 92;
/// No interface has the address.
pub(crate) const EADDRNOTAVAIL: u8 = 99;

/// A call with an address.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// The socket's own address.
    Bind,
    /// The peer's address.
    Connect,
    /// A datagram's destination.
    Send,
}

impl Call {
    pub(crate) const fn stopped(self) -> Counter {
        match self {
            Self::Bind => Counter::StoppedBind,
            Self::Connect => Counter::StoppedConnect,
            Self::Send => Counter::StoppedSendmsg,
        }
    }
}

/// What a socket should have before a call goes on. All fields always have a value: the verifier lets no program read a part of an
/// enum that is not there, which the compiler does.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Its binding, unless it is marked.
    pub(crate) ifindex: i32,
    /// Its mark. Then it has no binding but the uplink's.
    pub(crate) mark: Mark,
    pub(crate) is_marked: bool,
}

impl Wanted {
    /// The same, of which the verifier knows nothing: so it walks what follows once, not for each verdict.
    #[inline(always)]
    pub(crate) fn forget(self) -> Self {
        let Self { ifindex, mark: Mark { value, mask }, is_marked } = self;
        Self {
            ifindex: forget_word(ifindex.cast_unsigned()).cast_signed(),
            mark: Mark { value: forget_word(value), mask: forget_word(mask) },
            is_marked: forget(is_marked.into()) != 0,
        }
    }

    pub(crate) const fn bound(ifindex: i32) -> Self {
        Self { ifindex, mark: Mark { value: 0, mask: 0 }, is_marked: false }
    }

    pub(crate) const fn marked(mark: Mark) -> Self {
        Self { ifindex: CLOSED_IFINDEX, mark, is_marked: true }
    }
}

/// What becomes of a call.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) allows: bool,
    /// The index of the counter of what is counted and reported, or [`NO_EVENT`].
    pub(crate) event: u8,
    /// The error of a refused call; 0 is EPERM.
    pub(crate) errno: u8,
}

/// No counter has this index.
#[expect(clippy::cast_possible_truncation, reason = "they are few")]
pub(crate) const NO_EVENT: u8 = COUNTERS.len() as u8;

impl Outcome {
    pub(crate) const ALLOWED: Self = Self { allows: true, event: NO_EVENT, errno: 0 };

    pub(crate) const fn refused(reason: Counter) -> Self {
        Self { allows: false, event: reason as u8, errno: 0 }
    }

    pub(crate) const fn with_errno(self, errno: u8) -> Self {
        Self { errno, ..self }
    }
}
