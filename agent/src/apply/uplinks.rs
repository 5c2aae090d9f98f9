//! Groups of uplinks: makes their records, and chooses between their members.
//!
//! A change of the choice writes one record. All policies and cgroups that use the group have it from the next socket on. Then the
//! sockets of the members that are no longer chosen are moved or ended; see [`super::failover`].
//!
//! **Invariant:** the choice comes before the sockets. If no member is there, the group is closed, and no socket is touched.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{
    CLOSED_IFINDEX, Kind, UplinkRecord,
    address::address_words,
    policy_flags,
    record::{INTERFACE_BYTES, NAME_BYTES},
    uplink::{Family, MEMBERS, MemberRecord, balance, bucket, uplink_flags},
};

use super::{
    failover::{self, Families, Line, Move, Moved, What},
    resolve::{Namespace, index, padded},
};
use crate::{
    host::cgroup::{Found, Hierarchy},
    kernel::{self, Datapath, Error, Lock, PolicyEntry, text},
    model::{
        fingerprint::fingerprint,
        spec::{AllDown, Balance, OnFail, OnReturn},
        uplink::{
            choice::{self, Candidate},
            group::{Group, Member},
        },
    },
};

/// The record of a group in a namespace, with the choice between the members that are there.
pub(super) fn record(group: &Group, namespace: Namespace<'_>) -> UplinkRecord {
    let mut record = UplinkRecord {
        netns_cookie: namespace.cookie,
        members: u32::try_from(group.members.len()).unwrap_or_default(),
        balance: match group.balance {
            Balance::Cgroup => balance::CGROUP,
            Balance::Destination => balance::DESTINATION,
            Balance::Socket => balance::SOCKET,
        },
        name: padded::<NAME_BYTES>(group.name.as_str()),
        flags: flags(group),
        hold: u32::try_from(group.hold.as_secs()).unwrap_or(u32::MAX),
        ..UplinkRecord::EMPTY
    };
    for (slot, member) in group.members.iter().enumerate().take(MEMBERS) {
        record.member[slot] = member_record(member);
        record.dns4[slot] = member.dns.v4.map_or([0; 4], |resolver| address_words(resolver.to_ipv6_mapped()));
        record.dns6[slot] = member.dns.v6.map_or([0; 4], address_words);
    }
    look(&mut record, namespace);
    record
}

fn member_record(member: &Member) -> MemberRecord {
    MemberRecord {
        interface: padded::<INTERFACE_BYTES>(&member.interface),
        tier: member.tier.into(),
        weight: member.weight.into(),
        metered: member.metered.into(),
    }
}

fn flags(group: &Group) -> u32 {
    let on_return = match group.on_return {
        Some(OnReturn::Keep) => uplink_flags::KEEP_ON_RETURN,
        Some(OnReturn::Linger) => uplink_flags::LINGER_ON_RETURN,
        None => 0,
    };
    let on_fail = if group.on_fail == OnFail::Keep { uplink_flags::KEEP_ON_FAIL } else { 0 };
    let all_down = if group.all_down == AllDown::Close { uplink_flags::CLOSE_IF_ALL_DOWN } else { 0 };
    on_return | on_fail | all_down
}

/// Gives the members their current indexes, and chooses between those that are there.
fn look(record: &mut UplinkRecord, namespace: Namespace<'_>) {
    let members: Vec<(usize, MemberRecord)> = kernel::members(record).map(|(slot, member)| (slot, *member)).collect();
    let mut candidates = Vec::new();
    for (slot, member) in members {
        let interface = text(&member.interface);
        record.ifindex[slot] = index(&interface, namespace.links);
        candidates.push(Candidate {
            key: fingerprint(interface.as_bytes()),
            tier: u8::try_from(member.tier).unwrap_or(u8::MAX),
            weight: member.weight,
            usable: record.ifindex[slot] != CLOSED_IFINDEX,
        });
    }
    let pick = choice::pick(&candidates);
    let live = pick.iter().filter(|member| usize::from(**member) < MEMBERS).fold(0, |live, member| live | 1 << member);
    (record.pick, record.live) = ([pick; 2], [live; 2]);
}

/// A change of the choice.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The group's slot.
    pub slot: u32,
    /// The group as it was.
    pub before: UplinkRecord,
    /// As it is.
    pub after: UplinkRecord,
}

impl Switch {
    /// The members that sockets got and that are not there any more. Of one that only gives way to a better one, sockets stay.
    fn left(&self) -> impl Iterator<Item = usize> {
        let live = self.before.live[0] | self.before.live[1];
        let is_gone = |member: &usize| self.before.ifindex[*member] != self.after.ifindex[*member];
        (0..MEMBERS).filter(move |member| live >> member & 1 != 0).filter(is_gone)
    }

    /// Logs what has changed.
    fn log(&self) {
        let name = text(&self.after.name);
        for (slot, member) in kernel::members(&self.after) {
            let interface = text(&member.interface);
            match (self.before.ifindex[slot], self.after.ifindex[slot]) {
                (before, after) if before == after => {}
                (_, CLOSED_IFINDEX) => log::warn!("uplink {name}: {interface} is missing"),
                (_, after) => log::info!("uplink {name}: {interface} has index {after}"),
            }
        }
        let chosen = |group: &UplinkRecord| {
            let live = group.live[0] | group.live[1];
            let names = kernel::members(group).filter(|(slot, _)| live >> slot & 1 != 0);
            names.map(|(_, member)| text(&member.interface)).collect::<Vec<_>>()
        };
        let (before, after) = (chosen(&self.before), chosen(&self.after));
        if after.is_empty() {
            log::warn!("uplink {name}: no member is there; the sockets of its policies are closed until one is");
        } else if before != after {
            log::info!("uplink {name}: sockets get {} now", after.join(" and "));
        }
    }
}

/// Gives the groups of a namespace the current indexes of their members, and chooses again. This writes one record for each group that
/// has changed.
pub fn follow(datapath: &mut Datapath, lock: &Lock, namespace: Namespace<'_>) -> Result<Vec<Switch>, Error> {
    let mut switches = Vec::new();
    for (slot, before) in datapath.groups()? {
        if before.netns_cookie != namespace.cookie {
            continue;
        }
        let mut after = before;
        look(&mut after, namespace);
        if after != before {
            datapath.set_group(lock, slot, &after)?;
            let switch = Switch { slot, before, after };
            switch.log();
            switches.push(switch);
        }
    }
    Ok(switches)
}

/// Moves or ends the sockets of members that are no longer chosen, in the network namespace of the calling thread.
pub fn move_sockets(
    _lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    switches: &[Switch],
) -> Result<Vec<Moved>, Error> {
    let mut moved = Vec::new();
    let policies = datapath.policies()?;
    for switch in switches.iter().filter(|switch| switch.after.flags & uplink_flags::KEEP_ON_FAIL == 0) {
        let users: Vec<&PolicyEntry> = policies
            .iter()
            .filter(|entry| entry.record.uplink == switch.slot && entry.record.kind == Kind::Steer as u32)
            .collect();
        for entry in users {
            for (to, cgroups) in cgroups_by_member(datapath, hierarchy, entry, &switch.after)? {
                let leaving: Vec<Move> = switch.left().map(|from| leaving(entry, switch, from, to)).collect();
                if !leaving.is_empty() {
                    let concerned = |cgroup_id: u64| cgroups.contains(&cgroup_id);
                    moved.push(failover::leave(hierarchy, &concerned, &leaving));
                }
            }
        }
    }
    Ok(moved)
}

fn leaving(entry: &PolicyEntry, switch: &Switch, from: usize, to: usize) -> Move {
    let line = |group: &UplinkRecord, member: usize| {
        let mark = steer_common::Mark { value: entry.record.mark_of(member), mask: entry.record.mark_mask };
        let is_marking = entry.record.flags & policy_flags::ROUTE != 0;
        Line { ifindex: group.ifindex[member], mark: is_marking.then_some(mark) }
    };
    Move { from: line(&switch.before, from), to: line(&switch.after, to), family: Families::Both, what: What::End }
}

/// The cgroups of a policy by the member that their sockets get now.
fn cgroups_by_member(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    entry: &PolicyEntry,
    group: &UplinkRecord,
) -> Result<BTreeMap<usize, BTreeSet<u64>>, Error> {
    let mut cgroups: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for id in datapath.attachments_to(&[entry.slot])? {
        let member = group.picked(Family::V4, bucket(id));
        // Without a member, no socket is touched.
        if member >= MEMBERS {
            continue;
        }
        let of_member = cgroups.entry(member).or_default();
        of_member.insert(id);
        if let Some(path) = hierarchy.path_of(id) {
            of_member.extend(datapath.decided_by(hierarchy, Found { path, id })?.into_iter().map(|found| found.id));
        }
    }
    Ok(cgroups)
}

/// Logs what was moved.
pub fn report(moved: &[Moved]) {
    for done in moved {
        let Moved { tcp_ended, mptcp_ended, udp_reconnected, rebound, raw_ended, .. } = done;
        let ended = tcp_ended + mptcp_ended + raw_ended;
        if ended + udp_reconnected + rebound > 0 {
            log::info!(
                "sockets of members that are not chosen any more: {ended} connections ended, {} moved",
                udp_reconnected + rebound
            );
        }
        for remaining in &done.remaining {
            log::warn!("{remaining}");
        }
        for error in &done.errors {
            log::warn!("{error}");
        }
    }
}
