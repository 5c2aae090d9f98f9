//! Which member new sockets of a cgroup get, and would get if members had other states.
//!
//! **Invariant:** changes nothing.

use steer_common::{
    CLOSED_IFINDEX, UplinkRecord,
    uplink::{Family as At, MEMBERS, bucket},
};

use super::{
    following::{choice, rules},
    key,
};
use crate::{
    kernel::{members, text},
    model::uplink::{
        Family, PerFamily,
        decision::{self, decide},
        health::State,
    },
};

/// The member that new sockets of a cgroup get now, by family.
pub fn chosen(group: &UplinkRecord, cgroup_id: u64) -> PerFamily<Option<String>> {
    PerFamily::from_fn(|family| {
        let at = if family == Family::V4 { At::V4 } else { At::V6 };
        named(group, group.picked(at, bucket(cgroup_id)))
    })
}

/// The same if members had these states in both families.
pub fn predict(group: &UplinkRecord, cgroup_id: u64, assumed: &[(String, State)]) -> PerFamily<Option<String>> {
    let mut all = Vec::new();
    for position in 0..usize::try_from(group.members).unwrap_or(MEMBERS).min(MEMBERS) {
        let record = &group.member[position];
        let interface = text(&record.interface);
        let assumed = assumed.iter().rev().find(|(name, _)| *name == interface).map(|(_, state)| *state);
        let is_there = group.ifindex[position] != CLOSED_IFINDEX;
        let known = |family: Family| {
            let health = group.health[family as usize][position];
            let state = State::from_repr(health.state).filter(|_| health.since_ns != 0);
            if is_there { state.unwrap_or(State::Suspect) } else { State::Down }
        };
        let tier = u8::try_from(record.tier).unwrap_or(u8::MAX);
        all.push(decision::Member {
            key: key(&interface),
            tier: PerFamily { v4: tier, v6: tier },
            weight: record.weight,
            metered: record.metered != 0,
            present: is_there,
            states: PerFamily::from_fn(|family| assumed.unwrap_or_else(|| known(family))),
        });
    }
    let previous = PerFamily::from_fn(|family| choice(group, family));
    let decided = decide(&all, &previous, rules(group), 1);
    PerFamily::from_fn(|family| named(group, usize::from(decided.choice.get(family).pick[bucket(cgroup_id)])))
}

fn named(group: &UplinkRecord, position: usize) -> Option<String> {
    members(group).find(|(at, _)| *at == position).map(|(_, member)| text(&member.interface))
}
