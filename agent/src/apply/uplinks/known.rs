//! What is known of one group: the health of its members. All but the last results of probes is kept with the pins.
//!
//! **Invariant:** a member is probed only if a cgroup uses the group, or if the configuration says so.

use std::time::Duration;

use steer_common::{
    CLOSED_IFINDEX, UplinkRecord,
    record::NAME_BYTES,
    uplink::{MEMBERS, MemberRecord, uplink_flags},
};

use crate::{
    host::probe::{Failure, Method, Outcome, Round, Verdict, Via},
    model::uplink::{
        Family, PerFamily,
        decision::Members,
        health::{Event, Facts, Health, Rounds, Settings},
        probe::{DNS_PORT, Probe},
    },
};

/// A member of a group in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub(super) netns_cookie: u64,
    pub(super) slot: u32,
    pub(super) member: usize,
    pub(super) family: Family,
    /// The interface that was asked. An answer of an earlier one says nothing about this one.
    pub(super) ifindex: i32,
}

/// The last results of probes of a member in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The network namespace of the group.
    pub netns_cookie: u64,
    /// Its slot.
    pub slot: u32,
    /// The position of the member.
    pub member: usize,
    /// The family.
    pub family: Family,
    /// The time of the last answer.
    pub latency: Option<Duration>,
    /// How many of the last rounds failed.
    pub lost: u32,
    /// How many rounds that is, at most 32.
    pub rounds: u8,
    /// Why the last round failed, if it did.
    pub failure: Option<String>,
    /// What each target has answered since this process probes the member. Without those that are not for this family.
    pub targets: Vec<Asked>,
}

/// How often a target was asked by a member, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The target as configured.
    pub target: String,
    /// In how many rounds it was asked.
    pub rounds: u32,
    /// How often it answered in time.
    pub answered: u32,
}

/// What a group is, apart from indexes, choice and health: its name, its settings, and its members unless it finds them itself.
type Identity = ([u8; NAME_BYTES], [u32; 3], [MemberRecord; MEMBERS]);

fn identity(record: &UplinkRecord) -> Identity {
    let is_auto = record.flags & uplink_flags::AUTO != 0;
    let members = if is_auto { [MemberRecord::EMPTY; MEMBERS] } else { record.member };
    (record.name, [record.flags, record.hold, record.members], members)
}

/// A group.
pub(super) struct Known {
    group: Identity,
    pub(super) members: Vec<Member>,
    /// Who sends probes. Absent: nobody here does.
    pub(super) probe: Option<Probe>,
    /// Whether nobody sends probes.
    is_unprobed: bool,
    /// Whether a cgroup uses it.
    pub(super) is_used: bool,
    pub(super) watched: PerFamily<Members>,
    /// When to decide again if nothing happens, in nanoseconds since boot.
    pub(super) wake_ns: Option<u64>,
}

/// A member.
pub(super) struct Member {
    pub(super) ifindex: i32,
    /// By what probes are sent.
    pub(super) method: Method,
    pub(super) resolvers: PerFamily<Option<std::net::SocketAddr>>,
    pub(super) health: PerFamily<Health>,
    /// What the last failed round said.
    pub(super) failures: PerFamily<Option<String>>,
    /// In how many rounds each target was asked, and how often it answered.
    pub(super) asked: PerFamily<Vec<(u32, u32)>>,
    /// An index of an interface that is gone, and that sockets may be bound to.
    pub(super) lost: Option<i32>,
}

/// What decides about the health of the members of a group. Only a process that probes has the settings of probes. `is_unprobed`:
/// nobody sends probes, so the links decide alone.
fn settings(record: &UplinkRecord, probe: Option<&Probe>, is_unprobed: bool) -> Settings {
    let is_probed = record.flags & uplink_flags::PROBED != 0 && !is_unprobed;
    // Without results of probes, what probes have decided stays.
    let rounds = is_probed.then(|| probe.map_or_else(|| Rounds::from(&Probe::default()), Rounds::from));
    Settings { rounds, hold: Duration::from_secs(record.hold.into()) }
}

impl Known {
    /// As the pins have it.
    pub(super) fn restore(
        record: &UplinkRecord,
        probe: Option<Probe>,
        is_unprobed: bool,
        facts: &[PerFamily<Facts>],
        now: u64,
    ) -> Self {
        let settings = settings(record, probe.as_ref(), is_unprobed);
        let count = usize::try_from(record.members).unwrap_or(MEMBERS);
        let members = facts.iter().enumerate().take(count).map(|(slot, facts)| Member {
            ifindex: record.ifindex[slot],
            method: Method::Bind,
            resolvers: PerFamily::default(),
            health: PerFamily::from_fn(|family| {
                let (kept, facts) = (&record.health[family as usize][slot], *facts.get(family));
                if kept.since_ns == 0 {
                    Health::new(settings, facts, now)
                } else {
                    Health::restore(kept, settings, facts, now)
                }
            }),
            failures: PerFamily::default(),
            asked: PerFamily::default(),
            lost: None,
        });
        let members = members.collect();
        let (group, watched) = (identity(record), PerFamily::default());
        Self { group, members, probe, is_unprobed, is_used: false, watched, wake_ns: None }
    }

    /// Whether this is the same group with the same probes. Its slot may have been freed and taken again.
    pub(super) fn is_of(&self, record: &UplinkRecord, probe: Option<&Probe>) -> bool {
        self.group == identity(record) && self.probe.as_ref() == probe
    }

    /// Begins anew with members that were replaced by other interfaces.
    pub(super) fn replace(&mut self, record: &UplinkRecord, replaced: &[usize], facts: &[PerFamily<Facts>], now: u64) {
        let settings = settings(record, self.probe.as_ref(), self.is_unprobed);
        for &position in replaced {
            let Some(member) = self.members.get_mut(position) else { continue };
            member.health = PerFamily::from_fn(|family| Health::new(settings, *facts[position].get(family), now));
            member.failures = PerFamily::default();
            member.asked = PerFamily::default();
        }
    }

    /// Takes the result of a round. Returns whether the group has to decide again.
    pub(super) fn take_in(&mut self, key: Key, outcome: &Outcome, now: u64) -> bool {
        let Some(member) = self.members.get_mut(key.member).filter(|member| member.ifindex == key.ifindex) else {
            return false;
        };
        let asked = member.asked.get_mut(key.family);
        asked.resize(outcome.results.len(), (0, 0));
        for ((rounds, answered), result) in asked.iter_mut().zip(&outcome.results) {
            *rounds = rounds.saturating_add(result.as_ref().err().is_none_or(Failure::is_applicable).into());
            *answered = answered.saturating_add(result.is_ok().into());
        }
        let event = match (outcome.verdict, outcome.latency) {
            (Verdict::Passed, latency) => Event::Answered(latency.unwrap_or_default()),
            (Verdict::Failed, _) => Event::Unanswered,
            (Verdict::Nothing, _) => {
                member.health.get_mut(key.family).learned_nothing();
                return false;
            }
        };
        let failed = outcome.results.iter().filter_map(|result| result.as_ref().err()).find(|it| it.is_applicable());
        *member.failures.get_mut(key.family) = failed.filter(|_| event == Event::Unanswered).map(Failure::to_string);
        member.health.get_mut(key.family).apply(event, now)
    }

    /// Many connections by a member fail. Returns whether the group has to decide again.
    pub(super) fn traffic_fails(&mut self, member: usize, family: Family, now: u64) -> bool {
        let member = self.members.get_mut(member);
        member.is_some_and(|member| member.health.get_mut(family).apply(Event::TrafficFails, now))
    }

    /// The rounds that are due.
    pub(super) fn rounds(&mut self, netns_cookie: u64, slot: u32, now: u64) -> Vec<(Key, Round)> {
        let mut due = Vec::new();
        for (position, family, round) in self.next_rounds().collect::<Vec<_>>() {
            let Some(probe) = self.probe.as_ref().filter(|_| round.at_ns <= now) else { continue };
            let member = &mut self.members[position];
            member.health.get_mut(family).sent(now);
            let key = Key { netns_cookie, slot, member: position, family, ifindex: member.ifindex };
            let resolver = *member.resolvers.get(family);
            let via = Via { family, ifindex: member.ifindex.cast_unsigned(), method: member.method, resolver };
            let timeout = Duration::from_nanos(round.timeout_ns);
            due.push((key, Round { targets: probe.targets.clone(), via, timeout, need: probe.need }));
        }
        due
    }

    /// The next round of each member and family.
    fn next_rounds(&self) -> impl Iterator<Item = (usize, Family, crate::model::uplink::health::Round)> {
        let is_probed = |probe: &Probe| probe.idle || self.is_used;
        let members = if self.probe.as_ref().is_some_and(is_probed) { self.members.as_slice() } else { &[] };
        let present = members.iter().enumerate().filter(|(_, member)| member.ifindex != CLOSED_IFINDEX);
        present.flat_map(move |(position, member)| {
            Family::ALL.into_iter().filter_map(move |family| {
                let is_watched = self.watched.get(family) >> position & 1 != 0;
                Some((position, family, member.health.get(family).probe(is_watched)?))
            })
        })
    }

    /// The last results of probes.
    pub(super) fn probed(&self, netns_cookie: u64, slot: u32) -> impl Iterator<Item = Probed> {
        let targets = self.probe.as_ref().map_or(&[][..], |probe| &probe.targets);
        let members = self.members.iter().enumerate().filter(|_| self.probe.is_some());
        members.flat_map(move |(position, member)| {
            Family::ALL.map(|family| {
                let asked = member.asked.get(family).iter().zip(targets).filter(|((rounds, _), _)| *rounds > 0);
                let targets =
                    asked.map(|(&(rounds, answered), target)| Asked { target: target.to_string(), rounds, answered });
                let health = member.health.get(family);
                let (lost, rounds) = health.loss();
                let failure = member.failures.get(family).clone();
                Probed {
                    netns_cookie,
                    slot,
                    member: position,
                    family,
                    latency: health.latency(),
                    lost,
                    rounds,
                    failure,
                    targets: targets.collect(),
                }
            })
        })
    }

    /// When the next thing is due, in nanoseconds since boot.
    pub(super) fn wake_ns(&self) -> Option<u64> {
        self.wake_ns.into_iter().chain(self.next_rounds().map(|(_, _, round)| round.at_ns)).min()
    }

    /// The name servers of its members.
    pub(super) fn set_lines(&mut self, record: &UplinkRecord, method: impl Fn(usize) -> Method) {
        let address = |words| steer_common::address::ip_address(words).to_canonical();
        for (slot, member) in self.members.iter_mut().enumerate() {
            member.ifindex = record.ifindex[slot];
            member.method = method(slot);
            let known = PerFamily { v4: record.dns4[slot], v6: record.dns6[slot] };
            member.resolvers = PerFamily::from_fn(|family| {
                let words = *known.get(family);
                (words != [0; 4]).then(|| std::net::SocketAddr::new(address(words), DNS_PORT))
            });
        }
    }
}
