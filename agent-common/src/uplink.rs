//! Groups of uplinks: the record of a group, and the line that a socket gets.
//!
//! **Invariant:** a bucket without a member, and a member without a link, is closed. The agent changes single words and bytes of a
//! record that a policy names; another group gets another slot.

use crate::{
    address::AddressWords,
    record::{CLOSED_IFINDEX, INTERFACE_BYTES, NAME_BYTES, PolicyRecord},
    verifier::forget,
};

/// The most members of a group.
pub const MEMBERS: usize = 8;
/// The buckets that the members of a group share.
pub const BUCKETS: usize = 64;
/// Slots in [`map::UPLINKS`](crate::map::UPLINKS). Slot 0 is never used: a policy with one uplink names it.
pub const UPLINK_SLOTS: u32 = 256;
/// A bucket without a member.
pub const NO_MEMBER: u8 = u8::MAX;

/// Values of [`UplinkRecord::balance`]. Others mean [`CGROUP`](balance::CGROUP).
pub mod balance {
    /// All sockets of a cgroup have the same line.
    pub const CGROUP: u32 = 0;
    /// A TCP socket has the line of its destination.
    pub const DESTINATION: u32 = 1;
    /// Each socket has a line of its own.
    pub const SOCKET: u32 = 2;
}

/// Bits of [`UplinkRecord::flags`]. For the agent.
pub mod uplink_flags {
    /// Sockets of a member that failed stay on it.
    pub const KEEP_ON_FAIL: u32 = 1;
    /// When a better member returns, sockets stay.
    pub const KEEP_ON_RETURN: u32 = 1 << 1;
    /// When a better member returns, sockets on the other are ended later.
    pub const LINGER_ON_RETURN: u32 = 1 << 2;
    /// If every member is down, there is none.
    pub const CLOSE_IF_ALL_DOWN: u32 = 1 << 3;
    /// The daemon probes the members. Without its results, what they have decided stays.
    pub const PROBED: u32 = 1 << 4;
    /// The members are the lines of this host that are no tunnels. They change.
    pub const AUTO: u32 = 1 << 5;
}

/// A member of a group. For the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MemberRecord {
    /// Its interface as configured, UTF-8, padded with NUL.
    pub interface: [u8; INTERFACE_BYTES],
    /// Lower tiers are preferred.
    pub tier: u16,
    /// Its share within the tier.
    pub weight: u16,
    /// 1 if its traffic costs money.
    pub metered: u32,
}

impl MemberRecord {
    /// No member.
    pub const EMPTY: Self = Self { interface: [0; INTERFACE_BYTES], tier: 0, weight: 0, metered: 0 };
}

/// The health of a member in one family, so that the next daemon decides the same. For the agent, which gives the numbers their meaning.
/// Times are nanoseconds since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HealthRecord {
    /// Its state.
    pub state: u8,
    /// Why it is in this state.
    pub reason: u8,
    /// How often it went down lately. Each doubles the time for which it is held.
    pub flaps: u8,
    /// What an administrator has decided.
    pub hand: u8,
    /// Zero.
    pub reserved: u32,
    /// Since when it is in this state.
    pub since_ns: u64,
    /// Held: when it is up. Up or suspect: when a flap is forgotten. Down: zero.
    pub deadline_ns: u64,
}

impl HealthRecord {
    /// Of a member that nobody has looked at. The time zero says so.
    pub const NEW: Self = Self { state: 0, reason: 0, flaps: 0, hand: 0, reserved: 0, since_ns: 0, deadline_ns: 0 };
}

/// A group of uplinks in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UplinkRecord {
    /// The network namespace in which the indexes are valid (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// How many members it has; 0 is an empty slot.
    pub members: u32,
    /// [`balance`].
    pub balance: u32,
    /// The index of each member's interface, or [`CLOSED_IFINDEX`].
    pub ifindex: [i32; MEMBERS],
    /// The members that sockets get, by bit: IPv4, and IPv6.
    pub live: [u32; 2],
    /// The member of each bucket, or [`NO_MEMBER`]: for IPv4, and for IPv6.
    pub pick: [[u8; BUCKETS]; 2],
    /// The resolver of each member for IPv4, mapped; all zero is the policy's.
    pub dns4: [AddressWords; MEMBERS],
    /// The same for IPv6.
    pub dns6: [AddressWords; MEMBERS],
    /// Name of the group, UTF-8, padded with NUL.
    pub name: [u8; NAME_BYTES],
    /// [`uplink_flags`].
    pub flags: u32,
    /// For how long a member is healthy before it is preferred again, in seconds.
    pub hold: u32,
    /// The members as configured.
    pub member: [MemberRecord; MEMBERS],
    /// The members that may have sockets, by bit: IPv4, and IPv6. For the agent, as what follows.
    pub holding: [u32; 2],
    /// When the sockets of each member are ended, in nanoseconds since boot; zero: they do not linger. For IPv4, and for IPv6.
    pub linger_ns: [[u64; MEMBERS]; 2],
    /// The health of each member: for IPv4, and for IPv6.
    pub health: [[HealthRecord; MEMBERS]; 2],
}

const _: () = assert!(size_of::<MemberRecord>() == INTERFACE_BYTES + 8);
const _: () = assert!(size_of::<HealthRecord>() == 24);
const _: () = assert!(
    size_of::<UplinkRecord>()
        == 56 + 2 * BUCKETS + 32 * MEMBERS + NAME_BYTES + 8 + 136 * MEMBERS + 8 + 2 * MEMBERS * (8 + 24)
);

/// The family of an address, as an index of what a group has for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// What makes a socket use an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The index to bind to; not positive: the uplink is missing.
    pub ifindex: i32,
    /// The mark to set.
    pub mark: u32,
}

impl Line {
    /// No uplink.
    pub const CLOSED: Self = Self { ifindex: CLOSED_IFINDEX, mark: 0 };

    /// That of a policy with one uplink. Of a policy with a group, or with a slot that no group has: none.
    #[inline]
    pub const fn of(policy: &PolicyRecord) -> Self {
        let ifindex = if policy.uplink == 0 { policy.ifindex } else { CLOSED_IFINDEX };
        Self { ifindex, mark: policy.mark }
    }
}

impl UplinkRecord {
    /// An empty slot.
    pub const EMPTY: Self = Self {
        netns_cookie: 0,
        members: 0,
        balance: 0,
        ifindex: [CLOSED_IFINDEX; MEMBERS],
        live: [0; 2],
        pick: [[NO_MEMBER; BUCKETS]; 2],
        dns4: [[0; 4]; MEMBERS],
        dns6: [[0; 4]; MEMBERS],
        name: [0; NAME_BYTES],
        flags: 0,
        hold: 0,
        member: [MemberRecord::EMPTY; MEMBERS],
        holding: [0; 2],
        linger_ns: [[0; MEMBERS]; 2],
        health: [[HealthRecord::NEW; MEMBERS]; 2],
    };

    /// The member with this index; [`MEMBERS`] if there is none.
    #[inline]
    pub fn member_of(&self, ifindex: i32) -> usize {
        let mut found = MEMBERS;
        for (member, known) in self.ifindex.iter().enumerate() {
            if *known == ifindex {
                found = member;
            }
        }
        forget_member(if ifindex > 0 { found } else { MEMBERS })
    }

    /// Whether new sockets of a family get this member.
    #[inline]
    pub const fn is_live(&self, family: Family, member: usize) -> bool {
        let live = match family {
            Family::V4 => self.live[0],
            Family::V6 => self.live[1],
        };
        member < MEMBERS && live >> member & 1 != 0
    }

    /// The member in a bucket; [`MEMBERS`] if there is none.
    #[inline]
    pub fn picked(&self, family: Family, bucket: usize) -> usize {
        let picks = match family {
            Family::V4 => &self.pick[0],
            Family::V6 => &self.pick[1],
        };
        let member = usize::from(picks[bucket & (BUCKETS - 1)]);
        if member < MEMBERS { member } else { MEMBERS }
    }

    /// The line that a bucket has for a family; none if it has no member.
    ///
    /// The verifier knows nothing of the member here, so this needs no [`position`], which takes time.
    #[inline]
    pub fn line_of_bucket(&self, policy: &PolicyRecord, family: Family, bucket: usize) -> Line {
        let picks = match family {
            Family::V4 => &self.pick[0],
            Family::V6 => &self.pick[1],
        };
        let member = usize::from(picks[bucket & (BUCKETS - 1)]);
        let ifindex = self.ifindex[member & (MEMBERS - 1)];
        if member < MEMBERS {
            Line { ifindex, mark: policy.mark_of(member) }
        } else {
            Line { ifindex: CLOSED_IFINDEX, mark: policy.mark_of(0) }
        }
    }

    /// The line of a member; none if there is no such member.
    #[inline]
    pub fn line(&self, policy: &PolicyRecord, member: usize) -> Line {
        let ifindex = self.ifindex[position(member)];
        if member < MEMBERS {
            Line { ifindex, mark: policy.mark_of(member) }
        } else {
            Line { ifindex: CLOSED_IFINDEX, mark: policy.mark_of(0) }
        }
    }
}

impl PolicyRecord {
    /// The lowest of the bits for marks.
    #[inline]
    const fn mark_unit(&self) -> u32 {
        self.mark_mask & self.mark_mask.wrapping_neg()
    }

    /// The mark of sockets on a member of its group. The marks of the members follow each other.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "members are few")]
    pub const fn mark_of(&self, member: usize) -> u32 {
        self.mark.wrapping_add(self.mark_unit().wrapping_mul(member as u32))
    }

    /// The member that a mark is of; [`MEMBERS`] if it is of none.
    #[inline]
    pub const fn member_of_mark(&self, mark: u32) -> usize {
        let beyond = (mark & self.mark_mask).wrapping_sub(self.mark);
        match beyond.checked_div(self.mark_unit()) {
            Some(member) if self.mark != 0 && member < self.members => member as usize,
            _ => MEMBERS,
        }
    }
}

/// Where a member is in an array of the members; any position if it is none. The verifier accepts it for every number. (Linux 5.10 also
/// walks ways that compare a number twice with contradictory results, and accepts no other position there. And the compiler computes
/// addresses before it compares.)
#[inline]
pub fn position(member: usize) -> usize {
    forget_member(member) & (MEMBERS - 1)
}

/// The same member, for the verifier any: else it would walk the rest of a program for each.
#[expect(clippy::cast_possible_truncation, reason = "members are few")]
#[inline]
fn forget_member(member: usize) -> usize {
    usize::from(forget(member as u8))
}

/// The bucket of a number, such as the id of a cgroup. Numbers that follow each other spread evenly.
#[inline]
pub const fn bucket(number: u64) -> usize {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    (number.wrapping_mul(GOLDEN) >> 58) as usize
}

// SAFETY: `repr(C)`, `Copy`, only integers, and the size assertions above rule padding out.
#[cfg(feature = "user")]
unsafe impl aya::Pod for UplinkRecord {}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Family, Line, MEMBERS, UplinkRecord, bucket};
    use crate::record::{CLOSED_IFINDEX, PolicyRecord};

    #[test]
    fn lines_of_members() {
        let mut group = UplinkRecord { members: 2, live: [0b10, 0b01], ..UplinkRecord::EMPTY };
        (group.ifindex[0], group.ifindex[1]) = (3, 7);
        group.pick[0] = [1; BUCKETS];
        let policy =
            PolicyRecord { mark: 0x8500_0000, mark_mask: 0xff00_0000, uplink: 1, members: 2, ..PolicyRecord::EMPTY };
        assert_eq!(group.line(&policy, group.picked(Family::V4, 70)), Line { ifindex: 7, mark: 0x8600_0000 });
        let closed = group.line(&policy, group.picked(Family::V6, 0));
        assert_eq!(closed.ifindex, CLOSED_IFINDEX);
        assert_eq!([3, 7, 5, 0, -1].map(|ifindex| group.member_of(ifindex)), [0, 1, MEMBERS, MEMBERS, MEMBERS]);
        let members = [0x8500_0007, 0x8600_0000, 0x8700_0000, 0x8400_0000, 0].map(|mark| policy.member_of_mark(mark));
        assert_eq!(members, [0, 1, MEMBERS, MEMBERS, MEMBERS]);
        assert!(group.is_live(Family::V4, 1) && !group.is_live(Family::V4, 0) && !group.is_live(Family::V6, MEMBERS));
        assert_eq!(PolicyRecord::EMPTY.member_of_mark(0), MEMBERS);
    }

    #[test]
    fn buckets_are_even() {
        let mut used = [0_u32; BUCKETS];
        (1000..1000 + 640).for_each(|id| used[bucket(id)] += 1);
        assert!(used.iter().all(|count| (9..=11).contains(count)), "{used:?}");
    }
}
