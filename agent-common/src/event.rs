//! Events: the records that report what the programs stop, and the rate limits, so that many events of one kind do not hide
//! events of another kind.
//!
//! **Invariant:** any bytes decode, and no decision depends on them.

use crate::{address::AddressWords, record::NAME_BYTES};

/// Bytes of [`map::EVENTS`](crate::map::EVENTS): space for more than a thousand unread events.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Entries of [`map::EVENT_LIMITS`](crate::map::EVENT_LIMITS). When the map is full, the least recently used entry is reused.
pub const EVENT_LIMITS: u32 = 4096;
/// How many events of one kind each CPU reports in a [`LIMIT_PERIOD_NS`].
pub const EVENTS_PER_PERIOD: u64 = 10;
/// Nanoseconds.
pub const LIMIT_PERIOD_NS: u64 = 1_000_000_000;
/// Entries of [`map::STOPPED`](crate::map::STOPPED). When the map is full, the least recently used entry is reused.
pub const STOPPED_ENTRIES: u32 = 4096;
/// Bytes of a process name or an interface name in the kernel, with the NUL at the end.
pub const KERNEL_NAME_BYTES: usize = 16;

/// Set in a reason beside the index of its counter: the policy observes, and the attempt passed. So it is a kind of its own.
pub const OBSERVED: u32 = 1 << 31;

/// One attempt that was stopped, or that a policy observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EventRecord {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub boottime_ns: u64,
    /// How many events of the same kind this CPU has not reported before this one, because they were too many.
    pub unreported: u64,
    /// Id of the cgroup of the calling process, or of a packet's socket. If the socket's cgroup is not known, the id of the
    /// attachment's cgroup, which is the same or above it.
    pub cgroup_id: u64,
    /// The network namespace in which `ifindex` is valid (`SO_NETNS_COOKIE`); 0 is not known.
    pub netns_cookie: u64,
    /// Slot of the policy.
    pub policy: u32,
    /// Index of the [`Counter`](crate::Counter) that says why, and [`OBSERVED`].
    pub reason: u32,
    /// Id of the process, in the first pid namespace; 0 is not known.
    pub pid: u32,
    /// Index of the interface: the one that a packet would have left or come by, that an option would have bound to, or that
    /// the socket is bound to; 0 is none.
    pub ifindex: i32,
    /// The option that was refused, and its level; 0 for both is none.
    pub option_level: i32,
    /// The option; see [`Self::option_level`].
    pub option: i32,
    /// The destination or the source.
    pub peer: Peer,
    /// Name of the process, padded with NUL; all NUL is not known.
    pub comm: [u8; KERNEL_NAME_BYTES],
    /// Name of the interface that an option named, padded with NUL.
    pub interface: [u8; KERNEL_NAME_BYTES],
    /// Name of the policy, as in its record. The slot may have another policy when this is read.
    pub policy_name: [u8; NAME_BYTES],
}

/// The other end of a connection or a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Its address, four words in network byte order; IPv4 is mapped (`::ffff:a.b.c.d`). All zero is none.
    pub address: AddressWords,
    /// Its port, in host byte order; 0 is none.
    pub port: u32,
    /// The transport protocol (`IPPROTO_*`); 0 is not known.
    pub protocol: u32,
}

const _: () = assert!(size_of::<Peer>() == 24);
const _: () = assert!(size_of::<EventRecord>() == 80 + 2 * KERNEL_NAME_BYTES + NAME_BYTES);

impl EventRecord {
    /// An empty record.
    pub const EMPTY: Self = Self {
        boottime_ns: 0,
        unreported: 0,
        cgroup_id: 0,
        netns_cookie: 0,
        policy: 0,
        reason: 0,
        pid: 0,
        ifindex: 0,
        option_level: 0,
        option: 0,
        peer: Peer { address: [0; 4], port: 0, protocol: 0 },
        comm: [0; KERNEL_NAME_BYTES],
        interface: [0; KERNEL_NAME_BYTES],
        policy_name: [0; NAME_BYTES],
    };
}

/// Something that the agent has done, as JSON, padded with NUL. The agent has no other way into the ring.
pub type NewsRecord = [u8; NEWS_BYTES];

/// Bytes of a [`NewsRecord`].
pub const NEWS_BYTES: usize = 1024;

const _: () = assert!(NEWS_BYTES != size_of::<EventRecord>());

/// Events of one kind: of one cgroup, stopped by one policy for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LimitKey {
    /// As in [`EventRecord`].
    pub cgroup_id: u64,
    /// As in [`EventRecord`].
    pub policy: u32,
    /// As in [`EventRecord`].
    pub reason: u32,
}

impl LimitKey {
    /// Index of the [`Counter`](crate::Counter) that says why.
    pub const fn counter(&self) -> u32 {
        self.reason & !OBSERVED
    }

    /// Whether it passed.
    pub const fn is_observed(&self) -> bool {
        self.reason & OBSERVED != 0
    }

    /// The kind of an event.
    pub const fn of(record: &EventRecord) -> Self {
        Self { cgroup_id: record.cgroup_id, policy: record.policy, reason: record.reason }
    }
}

/// How many events of one kind one CPU has reported. Each CPU has its own, so none waits for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LimitRecord {
    /// When the period began, in nanoseconds of `CLOCK_BOOTTIME`.
    pub since_ns: u64,
    /// How many events were reported in the period.
    pub told: u64,
    /// How many events have not been reported since the last report.
    pub unreported: u64,
}

const _: () = assert!(size_of::<LimitKey>() == 16);
const _: () = assert!(size_of::<LimitRecord>() == 24);

impl LimitRecord {
    /// Whether one more event may be reported now. If so, counts it as reported.
    #[inline]
    pub fn admits(&mut self, now_ns: u64) -> bool {
        if self.is_over(now_ns) {
            self.since_ns = now_ns;
            self.told = 0;
        }
        let admits = self.told < EVENTS_PER_PERIOD;
        self.told += u64::from(admits);
        admits
    }

    /// Whether its period has ended.
    #[inline]
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns.wrapping_sub(self.since_ns) >= LIMIT_PERIOD_NS
    }
}

// SAFETY: `repr(C)`, `Copy`, only integers, and the size assertions above rule padding out.
#[cfg(feature = "user")]
unsafe impl aya::Pod for EventRecord {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for LimitKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for LimitRecord {}

#[cfg(test)]
mod tests {
    use super::{EVENTS_PER_PERIOD, LIMIT_PERIOD_NS, LimitRecord};

    #[test]
    fn every_period_admits_the_same_number() {
        let mut limit = LimitRecord::default();
        for start in [5 * LIMIT_PERIOD_NS, 6 * LIMIT_PERIOD_NS, 100 * LIMIT_PERIOD_NS] {
            let admitted = (0..1000).filter(|moment| limit.admits(start + moment)).count();
            assert_eq!(admitted as u64, EVENTS_PER_PERIOD);
            assert!(!limit.is_over(start + LIMIT_PERIOD_NS - 1) && limit.is_over(start + LIMIT_PERIOD_NS));
        }
    }
}
