//! Moves or ends the sockets of lines that a group has left.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{
    Kind, UplinkRecord, policy_flags,
    uplink::{Family, MEMBERS, bucket},
};

use super::{Switch, following::Leaving};
use crate::{
    apply::failover::{self, Families, Line, Move, Moved, What},
    host::cgroup::{Found, Hierarchy},
    kernel::{Datapath, Error, Lock, PolicyEntry},
    model::uplink,
};

/// Moves or ends the sockets that leave their line, in the network namespace of the calling thread. Then their members are noted as without
/// sockets, and the switch is told.
pub fn move_sockets(
    lock: &Lock,
    datapath: &mut Datapath,
    hierarchy: &Hierarchy,
    switches: &[Switch],
) -> Result<Vec<Moved>, Error> {
    let mut moved = Vec::new();
    let is_leaving = switches.iter().any(|switch| !switch.leaving.is_empty());
    let policies = if is_leaving { datapath.policies()? } else { Vec::new() };
    for switch in switches {
        let earlier = moved.len();
        let users: Vec<&PolicyEntry> = policies
            .iter()
            .filter(|entry| entry.record.uplink == switch.slot && entry.record.kind == Kind::Steer as u32)
            .collect();
        for entry in users {
            for (to, cgroups) in cgroups_by_members(datapath, hierarchy, entry, &switch.after)? {
                let leave: Vec<Move> =
                    switch.leaving.iter().filter_map(|leaving| move_of(entry, switch, leaving, to)).collect();
                if !leave.is_empty() {
                    let concerned = |cgroup_id: u64| cgroups.contains(&cgroup_id);
                    moved.push(failover::leave(hierarchy, &concerned, &leave));
                }
            }
        }
        note(lock, datapath, switch)?;
        switch.tell_choice(datapath.pins(), &moved[earlier..]);
    }
    Ok(moved)
}

/// Notes that the members have no sockets any more.
fn note(lock: &Lock, datapath: &mut Datapath, switch: &Switch) -> Result<(), Error> {
    let mut after = *switch.after;
    for leaving in &switch.leaving {
        let at = leaving.family as usize;
        after.holding[at] &= !(1 << leaving.member) | after.live[at];
    }
    if after == *switch.after { Ok(()) } else { datapath.set_group(lock, switch.slot, &after) }
}

/// Where the sockets of a cgroup go, by family.
type To = [usize; 2];

fn move_of(entry: &PolicyEntry, switch: &Switch, leaving: &Leaving, to: To) -> Option<Move> {
    let line = |member: usize, ifindex: i32| {
        let mark = steer_common::Mark { value: entry.record.mark_of(member), mask: entry.record.mark_mask };
        let is_marking = entry.record.flags & policy_flags::ROUTE != 0;
        Line { ifindex, mark: is_marking.then_some(mark) }
    };
    let to = to[leaving.family as usize];
    let ifindex = switch.after.ifindex.get(to).copied().filter(|ifindex| *ifindex > 0)?;
    let family = match leaving.family {
        uplink::Family::V4 => Families::V4,
        uplink::Family::V6 => Families::V6,
    };
    let from = line(leaving.member, leaving.ifindex);
    Some(Move { from, to: line(to, ifindex), family, what: What::End })
}

/// The cgroups of a policy by the members that their sockets get now. With another balance than by cgroup, that is one of several.
fn cgroups_by_members(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    entry: &PolicyEntry,
    group: &UplinkRecord,
) -> Result<BTreeMap<To, BTreeSet<u64>>, Error> {
    let mut cgroups: BTreeMap<To, BTreeSet<u64>> = BTreeMap::new();
    for id in datapath.attachments_to(&[entry.slot])? {
        let to = [Family::V4, Family::V6].map(|family| group.picked(family, bucket(id)));
        // Without a member, no socket is touched.
        if to == [MEMBERS; 2] {
            continue;
        }
        let of_members = cgroups.entry(to).or_default();
        of_members.insert(id);
        if let Some(path) = hierarchy.path_of(id) {
            of_members.extend(datapath.decided_by(hierarchy, Found { path, id })?.into_iter().map(|found| found.id));
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
                "sockets of members that are not chosen any more: {ended} {} ended, {} moved",
                if ended == 1 { "connection" } else { "connections" },
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
