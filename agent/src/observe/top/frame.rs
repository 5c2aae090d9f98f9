//! The difference between two samples.
//!
//! **Invariant:** pure. A counter that has decreased was reset, and counts from zero.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use steer_common::meter::TrafficRecord;

use super::Sample;
use crate::{
    model::{cgroup_path::CgroupPath, spec::Enforce},
    observe::{
        status::{CgroupStatus, PolicyStatus},
        uplinks::{MemberStatus, UplinkStatus},
    },
};

/// The loopback interface has this index in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;
/// The counter of packets that the egress guard stopped.
const STOPPED_EGRESS: &str = "stopped_egress";
/// The counter of what passed because the policy observes.
const OBSERVED: &str = "observed";
/// Prefixes of the counters of blocked attempts.
const BLOCKED: [&str; 3] = ["stopped_", "refused_", "closed_"];
/// The counters of new sockets.
const SOCKETS: [&str; 6] = ["bound", "closed_missing", "closed_unknown", "refused_netns", "left_netns", "left_exempt"];

/// Everything that `steer top` shows for one interval. The field names are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frame {
    /// The end of the interval.
    pub time: Timestamp,
    /// The length of the interval.
    pub seconds: f64,
    /// Every policy in force.
    pub policies: Vec<PolicyFrame>,
}

/// One policy. Counts are those of the interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyFrame {
    /// Its name.
    pub name: String,
    /// Name of its uplink; absent for an exemption.
    pub interface: Option<String>,
    /// Index of the uplink; absent while it is missing, and for a group.
    pub ifindex: Option<i32>,
    /// The members of its group of uplinks. Empty: it has one uplink.
    pub members: Vec<MemberFrame>,
    /// How it is enforced.
    pub enforce: Enforce,
    /// New sockets.
    pub sockets: u64,
    /// What was stopped, refused or closed, by reason. Reasons without a count are left out.
    pub blocked: BTreeMap<String, u64>,
    /// What `strict` would have stopped.
    pub observed: u64,
    /// Its cgroups.
    pub cgroups: Vec<CgroupFrame>,
}

/// A member of a group of uplinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberFrame {
    /// Its interface as configured.
    pub interface: String,
    /// Whether new sockets get it.
    pub chosen: bool,
    /// Its state; that for IPv4 and that for IPv6 if they differ, as in `IPv4 up, IPv6 down`.
    pub state: String,
}

/// One steered cgroup, including the cgroups in it that have no other policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CgroupFrame {
    /// Its path; absent once it has been removed.
    pub path: Option<CgroupPath>,
    /// Its id.
    pub id: u64,
    /// New sockets.
    pub sockets: u64,
    /// Traffic sent, by link. Links without traffic are left out.
    pub links: Vec<LinkFrame>,
}

/// Traffic sent by one link.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkFrame {
    /// Its name. Absent if it has none, or is in another network namespace.
    pub interface: Option<String>,
    /// Its index.
    pub ifindex: u32,
    /// Packets.
    pub packets: u64,
    /// Bytes of the IP layer.
    pub bytes: u64,
    /// Whether the guard stopped them, so that they did not leave.
    pub stopped: bool,
}

impl PolicyFrame {
    /// Packets and bytes that got out.
    pub fn sent(&self) -> (u64, u64) {
        let links = self.cgroups.iter().flat_map(|cgroup| &cgroup.links);
        links.filter(|link| !link.stopped).fold((0, 0), |sum, link| (sum.0 + link.packets, sum.1 + link.bytes))
    }

    /// The total of all that was blocked.
    pub fn blocked(&self) -> u64 {
        self.blocked.values().sum()
    }
}

impl Frame {
    /// The difference between a sample and a later one.
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let mut sent: BTreeMap<(u64, u32), TrafficRecord> = BTreeMap::new();
        for (key, traffic) in &after.traffic {
            let Some(steered) = after.steered.get(&key.cgroup_id) else { continue };
            let added = since(before.traffic.get(key), *traffic);
            let sum = sent.entry((*steered, key.ifindex)).or_default();
            sum.packets += added.packets;
            sum.bytes += added.bytes;
        }
        let mut sockets: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, count) in &after.sockets {
            if let Some(steered) = after.steered.get(id) {
                *sockets.entry(*steered).or_default() += increase(before.sockets.get(id), *count);
            }
        }
        let policies = after.status.policies.iter().map(|policy| {
            let earlier = before.status.policies.iter().find(|earlier| is_same(earlier, policy));
            policy_frame(policy, earlier, after, &sent, &sockets)
        });
        Self {
            time: after.time,
            seconds: after.at.duration_since(before.at).as_secs_f64(),
            policies: policies.collect(),
        }
    }
}

fn is_same(a: &PolicyStatus, b: &PolicyStatus) -> bool {
    (a.slot, &a.name) == (b.slot, &b.name)
}

fn policy_frame(
    policy: &PolicyStatus,
    earlier: Option<&PolicyStatus>,
    after: &Sample,
    sent: &BTreeMap<(u64, u32), TrafficRecord>,
    sockets: &BTreeMap<u64, u64>,
) -> PolicyFrame {
    let counted = |name: &str| {
        let now = policy.counters.get(name).copied().unwrap_or_default();
        increase(earlier.and_then(|earlier| earlier.counters.get(name)), now)
    };
    let blocked = policy.counters.keys().filter(|name| BLOCKED.iter().any(|prefix| name.starts_with(prefix)));
    let blocked = blocked.map(|name| (name.clone(), counted(name))).filter(|(_, count)| *count > 0).collect();
    let guarded = policy.enforce == Enforce::Strict && policy.interface.is_some() && counted(STOPPED_EGRESS) > 0;
    let link = |(&(_, ifindex), traffic): (&(u64, u32), &TrafficRecord)| LinkFrame {
        interface: link_name(policy, ifindex, after),
        ifindex,
        packets: traffic.packets,
        bytes: traffic.bytes,
        stopped: guarded && ifindex != LOOPBACK_IFINDEX && !policy.is_uplink(ifindex),
    };
    let cgroup = |cgroup: &CgroupStatus| CgroupFrame {
        path: cgroup.path.clone(),
        id: cgroup.id,
        sockets: sockets.get(&cgroup.id).copied().unwrap_or_default(),
        links: sent
            .range((cgroup.id, 0)..=(cgroup.id, u32::MAX))
            .filter(|(_, sent)| sent.packets > 0)
            .map(link)
            .collect(),
    };
    PolicyFrame {
        name: policy.name.clone(),
        interface: policy.interface.clone(),
        ifindex: policy.ifindex,
        members: members(policy, after),
        enforce: policy.enforce,
        sockets: SOCKETS.iter().map(|name| counted(name)).sum(),
        blocked,
        observed: counted(OBSERVED),
        cgroups: policy.cgroups.iter().map(cgroup).collect(),
    }
}

/// The members of the policy's group, if it has one.
fn members(policy: &PolicyStatus, after: &Sample) -> Vec<MemberFrame> {
    let is_its = |group: &&UplinkStatus| {
        policy.interface.as_ref() == Some(&group.name)
            && policy.netns_cookie == Some(group.netns_cookie)
            && group.policies.contains(&policy.name)
    };
    let Some(group) = after.uplinks.iter().find(is_its) else { return Vec::new() };
    let families = group.families();
    let frame = |member: &MemberStatus| {
        let (v4, v6) = (&member.ipv4, &member.ipv6);
        let state = match families[..] {
            [family] => member.health(family).state.clone(),
            _ if v4.state == v6.state => v4.state.clone(),
            _ => format!("IPv4 {}, IPv6 {}", v4.state, v6.state),
        };
        MemberFrame { interface: member.interface.clone(), chosen: v4.share > 0.0 || v6.share > 0.0, state }
    };
    group.members.iter().map(frame).collect()
}

/// The name of a link. In another network namespace, only the policy's uplink has a known name.
fn link_name(policy: &PolicyStatus, ifindex: u32, after: &Sample) -> Option<String> {
    if policy.netns_cookie.is_none_or(|cookie| cookie == after.netns_cookie) {
        return after.links.get(&ifindex).cloned();
    }
    let uplinks = policy.uplinks().into_iter();
    let named = uplinks.filter(|(_, known)| known.map(i32::cast_unsigned) == Some(ifindex));
    named.map(|(name, _)| name.to_owned()).next()
}

/// The increase of a counter whose value is `now`.
fn increase(before: Option<&u64>, now: u64) -> u64 {
    now.checked_sub(before.copied().unwrap_or_default()).unwrap_or(now)
}

fn since(before: Option<&TrafficRecord>, now: TrafficRecord) -> TrafficRecord {
    TrafficRecord {
        packets: increase(before.map(|before| &before.packets), now.packets),
        bytes: increase(before.map(|before| &before.bytes), now.bytes),
    }
}

#[cfg(test)]
mod tests;
