//! What the members of groups hold now: the sockets of their lines, and the traffic of their links.
//!
//! **Invariant:** nothing is counted that the kernel does not keep in any case, so nobody pays for it but who asks.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{Kind, Mark, UplinkRecord, policy_flags};

use super::UplinkStatus;
use crate::{
    host::{
        cgroup::Hierarchy,
        link,
        sockets::{
            Line,
            diag::{Diag, KINDS_AND_UDP_LITE, Socket},
        },
    },
    kernel::{self, Datapath, Error, PolicyEntry},
    model::cgroup_path::CgroupPath,
};

/// How many lines a list of sockets is asked for at once.
const LINES: usize = 64;

/// A line of a member, for the sockets of a policy.
struct Of {
    policy: u32,
    group: u32,
    position: usize,
    line: Line,
}

/// Adds what is held, to the groups in the calling thread's network namespace.
pub(super) fn add(
    datapath: &Datapath,
    groups: &BTreeMap<u32, UplinkRecord>,
    policies: &[PolicyEntry],
    statuses: &mut [UplinkStatus],
) -> Result<(), Error> {
    let cookie = kernel::netns_cookie()?;
    let here: BTreeMap<u32, &UplinkRecord> =
        groups.iter().filter(|(_, group)| group.netns_cookie == cookie).map(|(slot, group)| (*slot, group)).collect();
    if here.is_empty() {
        return Ok(());
    }
    let counts = sockets(datapath, &lines(&here, policies))?;
    let traffic = link::traffic().map_err(|source| Error::Route { action: "read the traffic of links", source })?;
    for status in statuses.iter_mut().filter(|status| here.contains_key(&status.slot)) {
        for (member, (position, _)) in status.members.iter_mut().zip(kernel::members(here[&status.slot])) {
            member.sockets = Some(counts.get(&(status.slot, position)).copied().unwrap_or_default());
            let name = member.ifindex.and_then(link::name_of);
            member.link = name.and_then(|name| traffic.get(&name)).copied().map(Into::into);
        }
    }
    Ok(())
}

fn lines(groups: &BTreeMap<u32, &UplinkRecord>, policies: &[PolicyEntry]) -> Vec<Of> {
    let mut lines = Vec::new();
    for entry in policies.iter().filter(|entry| entry.record.kind == Kind::Steer as u32) {
        let Some(group) = groups.get(&entry.record.uplink) else { continue };
        for (position, _) in kernel::members(group) {
            let is_marking = entry.record.flags & policy_flags::ROUTE != 0;
            let mark = is_marking.then(|| Mark { value: entry.record.mark_of(position), mask: entry.record.mark_mask });
            let line = Line { ifindex: group.ifindex[position], mark };
            if line.mark.is_some() || line.ifindex > 0 {
                lines.push(Of { policy: entry.slot, group: entry.record.uplink, position, line });
            }
        }
    }
    lines
}

/// The number of sockets by group and position. A subflow of MPTCP counts as its connection does.
fn sockets(datapath: &Datapath, of: &[Of]) -> Result<BTreeMap<(u32, usize), usize>, Error> {
    let mut lines: Vec<Line> = Vec::new();
    for line in of.iter().map(|of| of.line) {
        // Those of a mark have it whatever the index is.
        if !lines.iter().any(|known| *known == line || line.mark.is_some() && known.mark == line.mark) {
            lines.push(line);
        }
    }
    let mut owners = Owners { datapath, hierarchy: Hierarchy::find()?, known: BTreeMap::new() };
    let mut counts: BTreeMap<(u32, usize), usize> = BTreeMap::new();
    let mut counted = BTreeSet::new();
    for socket in list(&lines).map_err(|source| Error::Route { action: "list the sockets of uplinks", source })? {
        // The kernel keeps no cgroup for a connection in TIME_WAIT, which no program holds.
        if socket.cgroup_id == 0 || socket.inode() != 0 && !counted.insert(socket.inode()) {
            continue;
        }
        let Some(policy) = owners.policy_of(socket.cgroup_id)? else { continue };
        let on = of.iter().find(|of| of.policy == policy && of.line.has(&socket));
        if let Some(on) = on {
            *counts.entry((on.group, on.position)).or_default() += 1;
        }
    }
    Ok(counts)
}

fn list(lines: &[Line]) -> std::io::Result<Vec<Socket>> {
    let diag = Diag::open()?;
    let mut sockets = Vec::new();
    for lines in lines.chunks(LINES) {
        for kind in KINDS_AND_UDP_LITE {
            match diag.list_on(kind, lines) {
                Ok(found) => sockets.extend(found),
                // A kernel without UDP-Lite.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(sockets)
}

/// The policies of cgroups.
struct Owners<'a> {
    datapath: &'a Datapath,
    hierarchy: Hierarchy,
    known: BTreeMap<u64, Option<u32>>,
}

impl Owners<'_> {
    /// The slot of the policy of the nearest attachment. A removed cgroup has its own only.
    fn policy_of(&mut self, cgroup_id: u64) -> Result<Option<u32>, Error> {
        if let Some(known) = self.known.get(&cgroup_id) {
            return Ok(*known);
        }
        let mut found = self.datapath.slot_of(cgroup_id)?;
        let path = self.hierarchy.path_of(cgroup_id).filter(|_| found.is_none());
        for path in path.iter().flat_map(CgroupPath::self_and_ancestors) {
            // It may be removed meanwhile.
            let Ok(id) = self.hierarchy.id(&path) else { continue };
            found = self.datapath.slot_of(id)?;
            if found.is_some() {
                break;
            }
        }
        self.known.insert(cgroup_id, found);
        Ok(found)
    }
}
