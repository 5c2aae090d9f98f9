//! The groups of uplinks in force: the health of their members, and which of them sockets get.
//!
//! **Invariant:** all but the results of probes is read from the pins and the kernel, and is the same without a daemon.

mod held;

use std::{collections::BTreeMap, time::Duration};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use steer_common::{
    CLOSED_IFINDEX, UplinkRecord,
    uplink::{BUCKETS, MemberRecord, balance},
};
use utoipa::ToSchema;

use crate::{
    apply::uplinks::{Asked, Probed},
    host::link::Traffic,
    kernel::{self, Datapath, Error, Pins, PolicyEntry, text},
    model::uplink::{
        Family,
        health::{Hand, Reason, State},
    },
};

/// A group of uplinks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UplinkStatus {
    /// Its name.
    pub name: String,
    /// Its slot in the map `UPLINKS`.
    pub slot: u32,
    /// What decides about the member of a socket.
    pub balance: String,
    /// Cookie of the network namespace of its members.
    pub netns_cookie: u64,
    /// The policies that use it.
    pub policies: Vec<String>,
    /// Its members, in the order of the configuration.
    pub members: Vec<MemberStatus>,
}

/// A member.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = UplinkMember)]
pub struct MemberStatus {
    /// Its interface as configured.
    pub interface: String,
    /// The index of the interface; absent while it is missing.
    pub ifindex: Option<i32>,
    /// Lower tiers are preferred.
    pub tier: u16,
    /// Its share of its tier, relative to the other weights.
    pub weight: u16,
    /// Whether its traffic costs money.
    pub metered: bool,
    /// What an administrator has decided: `auto`, `up` or `down`.
    pub hand: String,
    /// Its health for IPv4.
    pub ipv4: HealthStatus,
    /// Its health for IPv6.
    pub ipv6: HealthStatus,
    /// How many TCP and UDP sockets of the group's cgroups are on it now, listeners included. Absent for a member in another network namespace.
    pub sockets: Option<usize>,
    /// What its link has sent and received. Absent while it is missing, and in another network namespace.
    pub link: Option<LinkTraffic>,
}

/// What a link has sent and received since it exists, for all programs of this host: nobody counts by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkTraffic {
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// Packets that were received.
    pub received_packets: u64,
}

/// The health of a member in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthStatus {
    /// `up`, `suspect`, `down` or `held`; `unknown` if nobody has looked at it yet.
    pub state: String,
    /// Why it is in this state.
    pub reason: String,
    /// For how long it is in this state, in seconds.
    pub since_s: u64,
    /// Held: in how many seconds it is up, if it works until then.
    pub held_for_s: Option<u64>,
    /// The percentage of new sockets that get it.
    pub share: f64,
    /// Whether sockets on it are ended later, because a better member has returned: in how many seconds.
    pub lingers_for_s: Option<u64>,
    /// The results of its probes. Absent without a daemon, and without probes.
    pub probes: Option<ProbeStatus>,
}

/// The results of probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeStatus {
    /// The time of the last answer, in milliseconds.
    pub latency_ms: Option<f64>,
    /// How many of the last rounds, at most 32, failed.
    pub lost: u32,
    /// How many rounds that is.
    pub rounds: u8,
    /// Why the last round failed, if it did.
    pub failure: Option<String>,
    /// What each target has answered since the daemon probes the member. Without those that are not for this family.
    pub targets: Vec<TargetStatus>,
}

/// How often a target was asked, and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TargetStatus {
    /// The target as configured.
    pub target: String,
    /// In how many rounds it was asked.
    pub rounds: u32,
    /// How often it answered in time.
    pub answered: u32,
}

/// Reads the groups. `probed`: the results of the daemon's probes.
pub fn read(pins: &Pins, probed: &[Probed]) -> Result<Vec<UplinkStatus>, Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(Vec::new()) };
    Ok(statuses(&datapath.groups()?, &datapath.policies()?, probed))
}

/// As [`read`], with what the members of this network namespace hold. This lists the sockets of their lines.
pub fn read_with_use(pins: &Pins, probed: &[Probed]) -> Result<Vec<UplinkStatus>, Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(Vec::new()) };
    let (groups, policies) = (datapath.groups()?, datapath.policies()?);
    let mut statuses = statuses(&groups, &policies, probed);
    held::add(&datapath, &groups, &policies, &mut statuses)?;
    Ok(statuses)
}

fn statuses(groups: &BTreeMap<u32, UplinkRecord>, policies: &[PolicyEntry], probed: &[Probed]) -> Vec<UplinkStatus> {
    let statuses = groups.iter().map(|(&slot, group)| UplinkStatus {
        name: text(&group.name),
        slot,
        balance: match group.balance {
            balance::DESTINATION => "destination",
            balance::SOCKET => "socket",
            _ => "cgroup",
        }
        .to_owned(),
        netns_cookie: group.netns_cookie,
        policies: policies.iter().filter(|entry| entry.record.uplink == slot).map(PolicyEntry::name).collect(),
        members: kernel::members(group)
            .map(|(position, member)| {
                member_status(group, position, member, |family| {
                    let is_it = |it: &&Probed| {
                        (it.netns_cookie, it.slot, it.member, it.family) == (group.netns_cookie, slot, position, family)
                    };
                    probed.iter().find(is_it).map(ProbeStatus::from)
                })
            })
            .collect(),
    });
    statuses.collect()
}

fn member_status(
    group: &UplinkRecord,
    position: usize,
    member: &MemberRecord,
    probes: impl Fn(Family) -> Option<ProbeStatus>,
) -> MemberStatus {
    let ifindex = group.ifindex[position];
    let hand = Hand::from_repr(group.health[0][position].hand).unwrap_or_default();
    let health = |family| HealthStatus { probes: probes(family), ..health_status(group, position, family) };
    MemberStatus {
        interface: text(&member.interface),
        ifindex: (ifindex != CLOSED_IFINDEX).then_some(ifindex),
        tier: member.tier,
        weight: member.weight,
        metered: member.metered != 0,
        hand: hand.to_string(),
        ipv4: health(Family::V4),
        ipv6: health(Family::V6),
        sockets: None,
        link: None,
    }
}

pub(super) fn health_status(group: &UplinkRecord, position: usize, family: Family) -> HealthStatus {
    let at = family as usize;
    let record = group.health[at][position];
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let since = |ns: u64| now.saturating_sub(Duration::from_nanos(ns)).as_secs();
    let until = |ns: u64| Duration::from_nanos(ns).saturating_sub(now).as_secs();
    let known =
        (record.since_ns != 0).then(|| Some((State::from_repr(record.state)?, Reason::from_repr(record.reason)?)));
    let (state, reason) = known.flatten().map_or_else(
        || ("unknown".to_owned(), "nobody has looked at it yet".to_owned()),
        |(state, reason)| (state.to_string(), reason.to_string()),
    );
    let buckets = group.pick[at].iter().filter(|picked| usize::from(**picked) == position).count();
    let lingers = group.linger_ns[at][position];
    HealthStatus {
        held_for_s: (state == State::Held.to_string()).then(|| until(record.deadline_ns)),
        state,
        reason,
        since_s: if record.since_ns == 0 { 0 } else { since(record.since_ns) },
        share: share(buckets),
        lingers_for_s: (lingers != 0).then(|| until(lingers)),
        probes: None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most 64")]
fn share(buckets: usize) -> f64 {
    buckets as f64 * 100.0 / BUCKETS as f64
}

impl From<&Probed> for ProbeStatus {
    fn from(probed: &Probed) -> Self {
        Self {
            latency_ms: probed.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            lost: probed.lost,
            rounds: probed.rounds,
            failure: probed.failure.clone(),
            targets: probed.targets.iter().map(TargetStatus::from).collect(),
        }
    }
}

impl From<&Asked> for TargetStatus {
    fn from(Asked { target, rounds, answered }: &Asked) -> Self {
        Self { target: target.clone(), rounds: *rounds, answered: *answered }
    }
}

impl From<Traffic> for LinkTraffic {
    fn from(Traffic { sent_bytes, sent_packets, received_bytes, received_packets }: Traffic) -> Self {
        Self { sent_bytes, sent_packets, received_bytes, received_packets }
    }
}

impl HealthStatus {
    /// Whether it tells that the member has an address of this family.
    pub fn has_family(&self) -> bool {
        let others = [Reason::NoInterface, Reason::NoCarrier, Reason::NoAddress, Reason::ByHand];
        others.iter().all(|reason| self.reason != reason.to_string())
    }
}

impl UplinkStatus {
    /// The address families of this group; both if its members do not tell.
    pub fn families(&self) -> Vec<Family> {
        let is_there = |family: &Family| self.members.iter().any(|member| member.health(*family).has_family());
        let families: Vec<_> = Family::ALL.into_iter().filter(is_there).collect();
        if families.is_empty() { Family::ALL.to_vec() } else { families }
    }
}

impl MemberStatus {
    /// Its health in a family.
    pub const fn health(&self, family: Family) -> &HealthStatus {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }
}
