//! Follows the health of the members of groups, and chooses between them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use nix::time::{ClockId, clock_gettime};
use steer_common::{
    CLOSED_IFINDEX, UplinkRecord, policy_flags,
    uplink::{BUCKETS, MEMBERS, uplink_flags},
};

use super::{
    automatic::{self, Current},
    key,
    known::{Key, Known, Probed},
};
use crate::{
    apply::{
        resolve::Namespace,
        routes::{self, Written},
    },
    host::{
        probe::{Method, Outcome, Round},
        route,
    },
    kernel::{Datapath, Error, Lock, text},
    model::{
        spec::{AllDown, OnReturn},
        uplink::{
            Family, PerFamily,
            decision::{self, Choice, Decision, Rules, Why, carrying, decide},
            group::{self, Group, GroupName},
            health::{Event, Facts, Hand},
            probe::Probe,
        },
    },
};

/// The groups of the policies that are in force. Without one, what is kept with the pins is all that is known.
#[derive(Default)]
pub struct Groups {
    /// By network namespace and slot.
    known: BTreeMap<(u64, u32), Known>,
    /// Whether this process probes members.
    probes: bool,
}

/// A decision of an administrator about a member.
#[derive(Clone, Debug)]
pub struct ByHand<'a> {
    /// The name of the group.
    pub group: &'a str,
    /// The interface of the member as configured.
    pub member: &'a str,
    /// The decision.
    pub hand: Hand,
}

/// A change of a group.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The group's slot.
    pub slot: u32,
    /// The group as it was.
    pub before: Box<UplinkRecord>,
    /// As it is.
    pub after: Box<UplinkRecord>,
    /// The lines whose sockets are to be moved or ended.
    pub leaving: Vec<Leaving>,
}

/// A line that sockets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The position of the member.
    pub member: usize,
    /// The index that its sockets are bound to.
    pub ifindex: i32,
    /// The family of the sockets.
    pub family: Family,
}

impl Groups {
    /// Of a process that probes the members of groups in its own network namespace.
    pub fn probing() -> Self {
        Self { known: BTreeMap::new(), probes: true }
    }

    /// Takes the result of a round. Returns whether [`Self::follow`] has to be called.
    pub fn take_in(&mut self, key: Key, outcome: &Outcome) -> bool {
        let known = self.known.get_mut(&(key.netns_cookie, key.slot));
        known.is_some_and(|known| known.take_in(key, outcome, now_ns()))
    }

    /// Many connections by a member fail. Returns whether [`Self::follow`] has to be called.
    pub fn traffic_fails(&mut self, slot: u32, member: usize, family: Family) -> bool {
        let mut groups = self.known.iter_mut().filter(|((_, known), _)| *known == slot);
        groups.next().is_some_and(|(_, known)| known.traffic_fails(member, family, now_ns()))
    }

    /// The rounds that are due now. They count as sent.
    pub fn rounds(&mut self) -> Vec<(Key, Round)> {
        let now = now_ns();
        let due = self.known.iter_mut().map(|(&(cookie, slot), known)| known.rounds(cookie, slot, now));
        due.flatten().collect()
    }

    /// The last results of probes.
    pub fn probed(&self) -> Vec<Probed> {
        self.known.iter().flat_map(|(&(cookie, slot), known)| known.probed(cookie, slot)).collect()
    }

    /// The time until the next round or decision is due.
    pub fn wake(&self) -> Option<std::time::Duration> {
        let next = self.known.values().filter_map(Known::wake_ns).min()?;
        Some(std::time::Duration::from_nanos(next.saturating_sub(now_ns())))
    }

    /// Whether a group has to decide now, because of the time.
    pub fn is_due(&self) -> bool {
        let now = now_ns();
        self.known.values().any(|known| known.wake_ns.is_some_and(|at| at <= now))
    }

    /// Looks whether cgroups use the groups that are probed.
    pub fn look_at_use(&mut self, datapath: &Datapath) -> Result<(), Error> {
        if self.known.values().all(|known| known.probe.is_none()) {
            return Ok(());
        }
        let used = used(datapath)?;
        for ((_, slot), known) in &mut self.known {
            known.is_used = used.contains(slot);
        }
        Ok(())
    }

    /// Looks at the links of a namespace, gives members their current indexes, and chooses between them. This writes one record for each
    /// group that has changed. Returns the changes.
    pub fn follow(
        &mut self,
        datapath: &mut Datapath,
        lock: &Lock,
        namespace: Namespace<'_>,
        written: &mut Written,
    ) -> Result<Vec<Switch>, Error> {
        self.follow_by_hand(datapath, lock, namespace, written, None)
    }

    /// As [`Self::follow`], with a decision of an administrator.
    pub fn follow_by_hand(
        &mut self,
        datapath: &mut Datapath,
        lock: &Lock,
        namespace: Namespace<'_>,
        written: &mut Written,
        by_hand: Option<&ByHand<'_>>,
    ) -> Result<Vec<Switch>, Error> {
        let groups = datapath.groups()?;
        let cookie = namespace.cookie;
        self.known.retain(|(known, slot), _| *known != cookie || groups.contains_key(slot));
        let mut switches = Vec::new();
        let groups: Vec<_> = groups.into_iter().filter(|(_, group)| group.netns_cookie == cookie).collect();
        if groups.is_empty() {
            return Ok(switches);
        }
        let policies = datapath.policies()?;
        for (slot, before) in groups {
            let group = configured(&before, namespace);
            let probe = group.as_ref().and_then(|group| self.probe_of(group, namespace));
            let members = automatic::members(&before, group.as_deref(), namespace)?;
            let before = Box::new(before);
            let facts = read_facts(&members.record, namespace)?;
            let now = now_ns();
            // In another namespace; or the configuration has another group of this name now, and this one stays with what was attached to it.
            let is_unprobed = namespace.inside.is_some() || self.probes && probe.is_none();
            let restore = |probe| Known::restore(&members.record, probe, is_unprobed, &facts, now);
            let known = self.known.entry((cookie, slot)).or_insert_with(|| restore(probe.clone()));
            if !known.is_of(&before, probe.as_ref()) {
                *known = restore(probe);
            }
            known.replace(&members.record, &members.replaced, &facts, now);
            let marked = policies.iter().find(|entry| {
                entry.record.uplink == slot && entry.record.flags & policy_flags::ROUTE != 0 && entry.record.mark != 0
            });
            let method = |member| marked.map_or(Method::Bind, |entry| Method::Mark(entry.record.mark_of(member)));
            let by_hand = by_hand.filter(|hand| hand.group == text(&before.name));
            let switch = step(known, slot, &before, &members, &facts, by_hand, now);
            known.set_lines(&switch.after, method);
            if switch.after != switch.before {
                // Without the routes of its mark, packets of a new member would be stopped.
                if marked.is_some() && switch.after.ifindex != before.ifindex {
                    let found = UplinkRecord { ifindex: switch.after.ifindex, member: switch.after.member, ..*before };
                    datapath.set_group(lock, slot, &found)?;
                    routes::follow(datapath, lock, namespace, written)?;
                }
                datapath.set_group(lock, slot, &switch.after)?;
                switch.tell(datapath.pins());
            }
            if switch.after != switch.before || !switch.leaving.is_empty() {
                switches.push(switch);
            }
        }
        self.look_at_use(datapath)?;
        Ok(switches)
    }

    /// The probes of a group, if this process sends them. It sends them in its own network namespace only.
    fn probe_of(&self, group: &Group, namespace: Namespace<'_>) -> Option<Probe> {
        group.probe.clone().filter(|_| self.probes && namespace.inside.is_none())
    }
}

/// The group as configured, if the configuration is known here.
fn configured<'g>(record: &UplinkRecord, namespace: Namespace<'g>) -> Option<Cow<'g, Group>> {
    group::named(namespace.groups, &GroupName::parse(&text(&record.name)).ok()?)
}

/// The groups that attached cgroups use.
fn used(datapath: &Datapath) -> Result<BTreeSet<u32>, Error> {
    let mut by_policy: BTreeMap<u32, u32> = BTreeMap::new();
    for entry in datapath.policies()? {
        if entry.record.uplink != 0 {
            by_policy.insert(entry.slot, entry.record.uplink);
        }
    }
    datapath.used_among(&by_policy)
}

/// What an interface offers that does not exist.
const MISSING: PerFamily<Facts> = {
    let missing = Facts { interface: false, ..Facts::ALL };
    PerFamily { v4: missing, v6: missing }
};

pub(super) fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(std::time::Duration::from(time).as_nanos()).ok())
        .unwrap_or_default()
}

/// What the links of the members offer.
fn read_facts(group: &UplinkRecord, namespace: Namespace<'_>) -> Result<Vec<PerFamily<Facts>>, Error> {
    let indexes = group.ifindex;
    let read = move || {
        let facts = indexes.iter().map(|&ifindex| u32::try_from(ifindex).map_or(Ok(MISSING), route::facts));
        facts.collect::<Result<Vec<_>, _>>()
    };
    let read = namespace.run(read).flatten();
    read.map_err(|source| Error::Route { action: "read the links, addresses and routes of uplinks", source })
}

/// Takes in what the links offer, and decides.
fn step(
    known: &mut Known,
    slot: u32,
    before: &UplinkRecord,
    current: &Current,
    facts: &[PerFamily<Facts>],
    by_hand: Option<&ByHand<'_>>,
    now: u64,
) -> Switch {
    let mut after = current.record;
    let mut members = Vec::new();
    for (position, member) in known.members.iter_mut().enumerate() {
        let record = &after.member[position];
        let interface = text(&record.interface);
        let (was, is) = (before.ifindex[position], after.ifindex[position]);
        if was != is && was != CLOSED_IFINDEX {
            member.lost = Some(was);
        }
        let hand = by_hand.filter(|hand| hand.member == interface).map(|hand| hand.hand);
        for family in Family::ALL {
            let kept = current.record.health[family as usize][position];
            let health = member.health.get_mut(family);
            health.apply(Event::Facts(*facts[position].get(family)), now);
            let kept = (kept.since_ns != 0).then(|| Hand::from_repr(kept.hand)).flatten();
            if let Some(hand) = hand.or(kept).filter(|hand| *hand != health.hand()) {
                health.apply(Event::Hand(hand), now);
            }
            health.apply(Event::Time, now);
            after.health[family as usize][position] = health.record();
        }
        let record = &after.member[position];
        members.push(decision::Member {
            key: key(&interface),
            tier: current.tiers[position],
            weight: record.weight,
            metered: record.metered != 0,
            present: is != CLOSED_IFINDEX,
            states: PerFamily::from_fn(|family| member.health.get(family).state()),
        });
    }
    let previous = PerFamily::from_fn(|family| choice(before, family));
    let decision = decide(&members, &previous, rules(before), now);
    put(&mut after, &decision);
    let wakes = known.members.iter().flat_map(|member| Family::ALL.map(|family| member.health.get(family).wake()));
    known.wake_ns = wakes.flatten().chain(decision.wake_ns).min();
    known.watched = decision.watched;
    let leaving = leaving(known, before, &after, &decision);
    Switch { slot, before: Box::new(*before), after: Box::new(after), leaving }
}

pub(super) fn rules(record: &UplinkRecord) -> Rules {
    let has = |flag| record.flags & flag != 0;
    let on_return = match (has(uplink_flags::KEEP_ON_RETURN), has(uplink_flags::LINGER_ON_RETURN)) {
        (true, _) => Some(OnReturn::Keep),
        (false, true) => Some(OnReturn::Linger),
        (false, false) => None,
    };
    let all_down = if has(uplink_flags::CLOSE_IF_ALL_DOWN) { AllDown::Close } else { AllDown::Keep };
    Rules { on_return, all_down }
}

/// What is in force.
pub(super) fn choice(record: &UplinkRecord, family: Family) -> Choice {
    let at = family as usize;
    let known = u8::try_from(record.holding[at] & u32::from(u8::MAX)).unwrap_or_default();
    Choice { pick: record.pick[at], holding: known | carrying(&record.pick[at]), linger_ns: record.linger_ns[at] }
}

/// Notes a decision in a record. A member whose sockets are to be ended has sockets until that was done.
fn put(record: &mut UplinkRecord, decision: &Decision) {
    for family in Family::ALL {
        let (at, choice) = (family as usize, decision.choice.get(family));
        record.pick[at] = choice.pick;
        record.live[at] = carrying(&choice.pick).into();
        record.linger_ns[at] = choice.linger_ns;
        let ending = decision.endings.iter().filter(|ending| ending.family == family);
        record.holding[at] = ending.fold(choice.holding.into(), |holding, ending| holding | 1 << ending.member);
    }
}

/// The lines that sockets leave now.
fn leaving(known: &mut Known, before: &UplinkRecord, after: &UplinkRecord, decision: &Decision) -> Vec<Leaving> {
    let keeps = after.flags & uplink_flags::KEEP_ON_FAIL != 0;
    let ended = decision.endings.iter().filter(|ending| !(keeps && ending.why == Why::Failed));
    let mut leaving: Vec<Leaving> = ended
        .map(|ending| Leaving { member: ending.member, ifindex: before.ifindex[ending.member], family: ending.family })
        .filter(|leaving| leaving.ifindex > 0)
        .collect();
    for (position, member) in known.members.iter_mut().enumerate() {
        for family in Family::ALL {
            let Some(ifindex) = member.lost else { continue };
            let has_line = after.pick[family as usize]
                .iter()
                .any(|&picked| after.ifindex.get(usize::from(picked)).is_some_and(|&ifindex| ifindex > 0));
            let gone = Leaving { member: position, ifindex, family };
            if has_line && !keeps && !leaving.contains(&gone) {
                leaving.push(gone);
            }
        }
        if leaving.iter().any(|leaving| Some(leaving.ifindex) == member.lost) || keeps {
            member.lost = None;
        }
    }
    leaving
}

const _: () =
    assert!(BUCKETS == crate::model::uplink::choice::BUCKETS && MEMBERS == crate::model::uplink::choice::MOST_MEMBERS);
