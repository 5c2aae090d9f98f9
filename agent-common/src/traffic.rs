//! What the connections of a group's policies show about its members, without probes.
//!
//! A connection that is answered is a success. An attempt without an answer, and a retransmission time-out that follows another one, is
//! a failure. Many failures in a row, to several destinations and without a success meanwhile, raise an alarm.
//!
//! **Invariant:** an alarm decides nothing: the agent probes the member. One destination alone never raises one.

use crate::{
    address::AddressWords,
    uplink::{Family, MEMBERS},
};

/// Entries of [`map::TRAFFIC`](crate::map::TRAFFIC) and [`map::FAILURES`](crate::map::FAILURES): each member of each group, in each family.
#[expect(clippy::cast_possible_truncation, reason = "eight")]
pub const TRAFFIC_ENTRIES: u32 = crate::uplink::UPLINK_SLOTS * MEMBERS as u32 * 2;
/// Bytes of [`map::ALARMS`](crate::map::ALARMS): a page, which has 64 KiB on some machines.
pub const ALARMS_BYTES: u32 = 64 * 1024;
/// Ports are told apart by class, so that a line that stops one port is found while others work.
pub const PORT_CLASSES: usize = 4;
/// How many failures raise an alarm.
pub const MANY: u32 = 5;
/// A failure this long after the one before begins a new row, and so long after a success, a row may raise an alarm.
pub const ROW_NS: u64 = 3_000_000_000;
/// The same failures raise the next alarm after this time.
pub const ALARM_PERIOD_NS: u64 = 10_000_000_000;

/// The key of a member and family in [`map::TRAFFIC`](crate::map::TRAFFIC) and [`map::FAILURES`](crate::map::FAILURES).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "members are few")]
pub const fn key(slot: u32, member: usize, family: Family) -> u32 {
    slot.wrapping_mul(MEMBERS as u32).wrapping_add(member as u32).wrapping_mul(2).wrapping_add(family as u32)
}

/// The class of a port: 443 and 80, for example, are in different ones.
#[inline]
pub const fn port_class(port: u32) -> usize {
    port as usize % PORT_CLASSES
}

/// One CPU's counts of the connections by a member in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrafficRecord {
    /// Connections that were answered, of either side.
    pub established: u64,
    /// Connections whose first segment was not answered in time, or that ended before. One that is answered later counts as both.
    pub unanswered: u64,
    /// Retransmission time-outs, those of first segments included.
    pub timeouts: u64,
}

/// The last failures by a member in one family and class of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FailuresRecord {
    /// The last success, in nanoseconds of `CLOCK_BOOTTIME`, as the other times.
    pub success_ns: u64,
    /// The last failure.
    pub failure_ns: u64,
    /// The last alarm.
    pub alarm_ns: u64,
    /// The destinations of the failures in the row, each as one bit.
    pub destinations: u64,
    /// How many failures are in the row.
    pub failures: u32,
    /// Zero.
    pub reserved: u32,
}

/// Those of all ports, by [`port_class`].
pub type FailuresByPort = [FailuresRecord; PORT_CLASSES];

/// Many failures by a member, as the kernel reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AlarmRecord {
    /// When, in nanoseconds of `CLOCK_BOOTTIME`.
    pub boottime_ns: u64,
    /// [`key`] of the member and family.
    pub key: u32,
    /// How many failures are in the row.
    pub failures: u32,
}

const _: () = assert!(size_of::<TrafficRecord>() == 24);
const _: () = assert!(size_of::<FailuresRecord>() == 40);
const _: () = assert!(size_of::<AlarmRecord>() == 16);

/// Whether so many failures, to these destinations, raise an alarm.
#[inline]
pub const fn are_many(failures: u32, destinations: u64) -> bool {
    failures >= MANY && destinations & destinations.wrapping_sub(1) != 0
}

/// The bit of a destination.
#[inline]
const fn bit([a, b, c, d]: &AddressWords) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    1 << ((((*a ^ *c) as u64) << 32 | (*b ^ *d) as u64).wrapping_mul(GOLDEN) >> 58)
}

impl FailuresRecord {
    /// Takes a failure in. `success_ns`: the last success that ends a row. Returns whether to raise an alarm.
    #[inline]
    pub const fn add(&mut self, now_ns: u64, success_ns: u64, destination: &AddressWords) -> bool {
        if success_ns >= self.failure_ns || now_ns.wrapping_sub(self.failure_ns) >= ROW_NS {
            (self.failures, self.destinations) = (0, 0);
        }
        self.failure_ns = now_ns;
        self.failures = self.failures.saturating_add(1);
        self.destinations |= bit(destination);
        // A line that still answers others is not lost.
        let is_silent = success_ns == 0 || now_ns.wrapping_sub(success_ns) >= ROW_NS;
        let is_new = self.alarm_ns == 0 || now_ns.wrapping_sub(self.alarm_ns) >= ALARM_PERIOD_NS;
        let raises = is_new && is_silent && are_many(self.failures, self.destinations);
        if raises {
            self.alarm_ns = now_ns;
        }
        raises
    }
}

impl AlarmRecord {
    /// The slot of the group, the member and the family.
    #[expect(clippy::cast_possible_truncation, reason = "eight")]
    pub const fn line(&self) -> (u32, usize, Family) {
        let family = if self.key.is_multiple_of(2) { Family::V4 } else { Family::V6 };
        (self.key / (2 * MEMBERS as u32), (self.key / 2) as usize % MEMBERS, family)
    }
}

// SAFETY: `repr(C)`, `Copy`, only integers, and the size assertions above rule padding out.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TrafficRecord {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FailuresRecord {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AlarmRecord {}

#[cfg(test)]
mod tests {
    use super::{ALARM_PERIOD_NS, AlarmRecord, FailuresRecord, MANY, ROW_NS, TRAFFIC_ENTRIES, are_many, key};
    use crate::{
        AddressWords, mapped,
        uplink::{Family, MEMBERS, UPLINK_SLOTS},
    };

    const SECOND: u64 = 1_000_000_000;

    /// Adds failures, one each `gap_ns`, to so many destinations in turn. Returns how many alarms they raise.
    fn fail(record: &mut FailuresRecord, from_ns: u64, gap_ns: u64, count: u64, destinations: u64) -> usize {
        let destination = |failure: u64| -> AddressWords { mapped(u32::try_from(failure % destinations).unwrap_or(0)) };
        (0..count)
            .filter(|failure| {
                let success_ns = record.success_ns;
                record.add(from_ns + failure * gap_ns, success_ns, &destination(*failure))
            })
            .count()
    }

    #[test]
    fn many_failures_to_several_destinations() {
        let new = FailuresRecord::default;
        assert_eq!(fail(&mut new(), SECOND, 1, u64::from(MANY), 2), 1);
        assert_eq!(fail(&mut new(), SECOND, 1, u64::from(MANY) - 1, 2), 0);
        assert_eq!(fail(&mut new(), SECOND, 1, 1000, 1), 0, "one server that is dead");
        assert_eq!(fail(&mut new(), SECOND, ROW_NS, 1000, 9), 0, "rare ones");
        assert_eq!(fail(&mut new(), SECOND, ROW_NS - 1, u64::from(MANY), 9), 1);
        assert!(!are_many(MANY, 0) && !are_many(MANY - 1, 3));
    }

    #[test]
    fn a_success_ends_the_row() {
        let mut record = FailuresRecord::default();
        for round in 1..100 {
            assert_eq!(fail(&mut record, round * SECOND, 1, u64::from(MANY) - 1, 2), 0);
            record.success_ns = round * SECOND + u64::from(MANY);
        }
        // Also one at the same moment as the last failure.
        record.success_ns = record.failure_ns;
        assert_eq!(fail(&mut record, 100 * SECOND, 1, u64::from(MANY) - 1, 2), 0);
    }

    #[test]
    fn a_line_that_answers_others_raises_none() {
        let mut record = FailuresRecord { success_ns: 10 * SECOND, ..FailuresRecord::default() };
        assert_eq!(fail(&mut record, 10 * SECOND + 1, 1, 1000, 9), 0);
        assert_eq!(fail(&mut record, 10 * SECOND + ROW_NS, 1, 1, 9), 1);
    }

    #[test]
    fn alarms_are_rare() {
        let mut record = FailuresRecord::default();
        let count = 100 * ALARM_PERIOD_NS / SECOND;
        assert!((90..=100).contains(&fail(&mut record, SECOND, SECOND, count, 3)));
    }

    #[test]
    fn keys_name_lines() {
        for (slot, member, family) in [(1, 0, Family::V4), (255, MEMBERS - 1, Family::V6), (7, 3, Family::V6)] {
            let record = AlarmRecord { key: key(slot, member, family), ..AlarmRecord::default() };
            assert_eq!(record.line(), (slot, member, family));
            assert!(record.key < TRAFFIC_ENTRIES && slot < UPLINK_SLOTS);
        }
    }
}
