//! The uplink slots: finds, fills and frees the groups of policies.
//!
//! **Invariant:** the members of a group do not change while a policy names its slot. Only the indexes of their interfaces and the choice
//! between them change. Another group gets another slot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use steer_common::{
    PolicyRecord, UPLINK_SLOTS, UplinkRecord,
    address::ip_address,
    map,
    resolver::resolver,
    uplink::{BUCKETS, Family, HealthRecord, Line, MEMBERS, MemberRecord, NO_MEMBER, bucket, uplink_flags},
};

use super::{Datapath, Error, Lock, PolicyEntry, map_error, own_resolvers, text};

/// An uplink of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkOf {
    /// The name of its interface as configured.
    pub interface: String,
    /// Its index and its mark. The index is not positive while it is missing.
    pub line: Line,
    /// Its number among the members of the group; 0 without a group.
    pub member: usize,
    /// The resolvers for queries that leave by it; at most one for each family.
    pub resolvers: Vec<IpAddr>,
}

impl PolicyEntry {
    /// Its uplinks: one, or the members of its group. None for an exemption, and for a policy that is closed permanently.
    pub fn uplinks(&self) -> Vec<UplinkOf> {
        match &self.group {
            Some(group) => members(group)
                .map(|(member, record)| UplinkOf {
                    interface: text(&record.interface),
                    line: group.line(&self.record, member),
                    member,
                    resolvers: resolvers(&self.record, group, member),
                })
                .collect(),
            None if self.exempts() || self.interface().is_empty() => Vec::new(),
            None => vec![UplinkOf {
                interface: self.interface(),
                line: Line::of(&self.record),
                member: 0,
                resolvers: own_resolvers(&self.record).collect(),
            }],
        }
    }

    /// The line of new IPv4 sockets of a cgroup that is attached to it. Of a group with another balance than by cgroup: of one of them.
    pub fn line_of(&self, cgroup_id: u64) -> Line {
        match &self.group {
            Some(group) => group.line(&self.record, group.picked(Family::V4, bucket(cgroup_id))),
            None => Line::of(&self.record),
        }
    }

    /// The name of the interface with this index among its uplinks; that of the first if there is none.
    pub fn uplink_named(&self, ifindex: i32) -> String {
        let uplinks = self.uplinks();
        let named = uplinks.iter().find(|uplink| uplink.line.ifindex == ifindex && ifindex > 0);
        named.or(uplinks.first()).map(|uplink| uplink.interface.clone()).unwrap_or_default()
    }

    /// Whether this is the mark of one of its uplinks.
    pub fn has_mark(&self, mark: u32) -> bool {
        match &self.group {
            Some(_) => self.record.member_of_mark(mark) < MEMBERS,
            None => self.record.mark != 0 && mark & self.record.mark_mask == self.record.mark,
        }
    }

    /// Whether this is the index of one of its uplinks.
    pub fn is_uplink(&self, ifindex: u32) -> bool {
        steer_common::is_uplink(&self.record, self.group.as_deref(), ifindex.cast_signed())
    }

    /// Whether it has an uplink that is there.
    pub fn is_open(&self) -> bool {
        self.uplinks().iter().any(|uplink| uplink.line.ifindex > 0)
    }
}

fn resolvers(policy: &PolicyRecord, group: &UplinkRecord, member: usize) -> Vec<IpAddr> {
    let of_family = |family| resolver(policy, Some(group), member, family).map(ip_address);
    [Family::V4, Family::V6].into_iter().filter_map(of_family).collect()
}

/// The members of a group, by number.
pub fn members(group: &UplinkRecord) -> impl Iterator<Item = (usize, &MemberRecord)> {
    let count = usize::try_from(group.members).unwrap_or(MEMBERS);
    // Those of a group that finds its members come and go.
    group.member.iter().enumerate().take(count).filter(|(_, member)| member.interface[0] != 0)
}

/// Whether two records are the same group, apart from the indexes, the choice and the health of the members.
fn is_same_group(old: &UplinkRecord, new: &UplinkRecord) -> bool {
    let plain = |record: &UplinkRecord| UplinkRecord {
        ifindex: [0; MEMBERS],
        live: [0; 2],
        pick: [[NO_MEMBER; BUCKETS]; 2],
        member: if record.flags & uplink_flags::AUTO != 0 { [MemberRecord::EMPTY; MEMBERS] } else { record.member },
        holding: [0; 2],
        linger_ns: [[0; MEMBERS]; 2],
        health: [[HealthRecord::NEW; MEMBERS]; 2],
        ..*record
    };
    plain(old) == plain(new)
}

/// A new group, with what is known of the members of an earlier one that had its name.
fn inherit<'g>(group: &UplinkRecord, mut known: impl Iterator<Item = &'g UplinkRecord>) -> UplinkRecord {
    let mut heir = *group;
    let is_earlier = |earlier: &&UplinkRecord| (earlier.netns_cookie, earlier.name) == (group.netns_cookie, group.name);
    let Some(earlier) = known.find(is_earlier) else { return heir };
    for (to, member) in members(group) {
        let Some((from, _)) = members(earlier).find(|(_, known)| known.interface == member.interface) else { continue };
        for family in 0..heir.health.len() {
            heir.health[family][to] = earlier.health[family][from];
        }
    }
    heir
}

/// The slot of a group, and its record there: the slot that has the same group, or else a free one. `taken`: the groups that are in use,
/// by slot.
pub(super) fn place(group: &UplinkRecord, taken: &BTreeMap<u32, UplinkRecord>) -> Result<(u32, UplinkRecord), Error> {
    let same = taken.iter().find(|(_, known)| is_same_group(known, group));
    let is_auto = group.flags & uplink_flags::AUTO != 0;
    let ifindex = |known: &UplinkRecord| if is_auto { known.ifindex } else { group.ifindex };
    // A group that is there keeps its choice.
    let kept = same.map(|(&slot, known)| (slot, UplinkRecord { ifindex: ifindex(known), ..*known }));
    let free = || (1..UPLINK_SLOTS).find(|slot| !taken.contains_key(slot));
    kept.or_else(|| Some((free()?, inherit(group, taken.values()))))
        .ok_or_else(|| Error::FullUplinks { name: text(&group.name), slots: UPLINK_SLOTS - 1 })
}

impl Datapath {
    /// The groups that these policies name, by slot.
    pub(super) fn groups_of<'r>(
        &self,
        policies: impl Iterator<Item = &'r PolicyRecord>,
    ) -> Result<BTreeMap<u32, UplinkRecord>, Error> {
        let slots: BTreeSet<u32> =
            policies.map(|record| record.uplink).filter(|slot| (1..UPLINK_SLOTS).contains(slot)).collect();
        slots.into_iter().map(|slot| Ok((slot, self.group(slot)?))).collect()
    }

    /// The groups that policies name, by slot.
    pub fn groups(&self) -> Result<BTreeMap<u32, UplinkRecord>, Error> {
        let policies: Vec<_> = self.policies()?.into_iter().map(|entry| entry.record).collect();
        self.groups_of(policies.iter())
    }

    /// The line of new IPv4 sockets of a cgroup that is attached to a policy, and the lines of the other members of its group.
    pub fn lines_of(&self, policy: &PolicyRecord, cgroup_id: u64) -> Result<(Line, Vec<Line>), Error> {
        let Some(group) = self.groups_of([policy].into_iter())?.remove(&policy.uplink) else {
            return Ok((Line::of(policy), Vec::new()));
        };
        let picked = group.picked(Family::V4, bucket(cgroup_id));
        let others = members(&group).filter(|(member, _)| *member != picked);
        Ok((group.line(policy, picked), others.map(|(member, _)| group.line(policy, member)).collect()))
    }

    fn group(&self, slot: u32) -> Result<UplinkRecord, Error> {
        self.uplinks.get(&slot, 0).map_err(|error| map_error("read an uplink group", map::UPLINKS, error))
    }

    /// Changes the indexes of a group, or the choice between its members. Policies that name it are in force with it at once.
    pub fn set_group(&mut self, _lock: &Lock, slot: u32, group: &UplinkRecord) -> Result<(), Error> {
        self.write_group(slot, group)
    }

    fn write_group(&mut self, slot: u32, group: &UplinkRecord) -> Result<(), Error> {
        self.uplinks.set(slot, group, 0).map_err(|error| map_error("write an uplink group", map::UPLINKS, error))
    }

    /// Empties a slot that no policy names any more.
    pub(super) fn free_group(&mut self, slot: u32) -> Result<(), Error> {
        if slot == 0 || self.policies()?.iter().any(|entry| entry.record.uplink == slot) {
            return Ok(());
        }
        self.write_group(slot, &UplinkRecord::EMPTY)?;
        self.forget_traffic(slot)
    }
}
