//! Tells what has changed in a group: in the log, and to those who follow the events.
//!
//! **Invariant:** nothing depends on whether it could be told.

use steer_common::UplinkRecord;

use super::{Switch, following::now_ns};
use crate::{
    apply::failover::Moved,
    kernel::{self, Pins, text},
    model::uplink::{
        Family, PerFamily,
        health::{Reason, State},
        news::{Choice, News, UplinkChange},
    },
};

impl Switch {
    /// Tells the states that have changed, and logs them and the new choice.
    pub(super) fn tell(&self, pins: &Pins) {
        for (state, family, change) in self.states() {
            let both = family.map_or_else(String::new, |family| format!(" for {family}"));
            let (group, why) = (&change.group, change.why.as_deref().unwrap_or_default());
            let member = change.member.as_deref().unwrap_or_default();
            match state {
                // That a host has no addresses of a family is no failure.
                State::Down if family.is_some_and(|family| self.is_without(family)) => {
                    log::debug!("uplink {group}: {member} is down{both}: {why}");
                }
                State::Down => log::warn!("uplink {group}: {member} is down{both}: {why}"),
                State::Up | State::Suspect | State::Held => {
                    log::info!("uplink {group}: {member} is {state}{both}: {why}");
                }
            }
            tell(pins, change);
        }
        let choices = self.choices();
        let name = text(&self.after.name);
        for family in Family::ALL {
            let Some(Choice { to, .. }) = choices.get(family) else { continue };
            let is_both = choices.v4 == choices.v6;
            if family == Family::V6 && is_both {
                continue;
            }
            let of = if is_both { String::new() } else { format!("{family} ") };
            if to.is_empty() {
                log::warn!("uplink {name}: no member works, and {of}sockets are closed until one does");
            } else {
                log::info!("uplink {name}: new {of}sockets use {}", to.join(" and "));
            }
        }
    }

    /// Tells the new choice, and what became of the sockets that left their line.
    pub(super) fn tell_choice(&self, pins: &Pins, moved: &[Moved]) {
        let PerFamily { v4: ipv4, v6: ipv6 } = self.choices();
        let sum = |count: fn(&Moved) -> usize| {
            let sum: usize = moved.iter().map(count).sum();
            (sum > 0).then(|| u64::try_from(sum).unwrap_or(u64::MAX))
        };
        let ended = sum(|moved| moved.tcp_ended + moved.mptcp_ended + moved.raw_ended);
        let rebound = sum(|moved| moved.udp_reconnected + moved.rebound);
        if ipv4.is_none() && ipv6.is_none() && ended.is_none() && rebound.is_none() {
            return;
        }
        let is_left = |slot| self.leaving.iter().any(|leaving| leaving.member == slot);
        let left = kernel::members(&self.before).filter(|(slot, _)| is_left(*slot));
        let left: Vec<_> = left.map(|(_, member)| text(&member.interface)).collect();
        let (group, mut why) = (text(&self.after.name), self.why());
        if ipv4.is_none() && ipv6.is_none() && why.is_none() {
            why = Some(format!("sockets that were still on {}", left.join(" and ")));
        }
        tell(pins, UplinkChange { group, ipv4, ipv6, why, left, ended, moved: rebound, ..UplinkChange::default() });
    }

    /// Whether no member has an address of a family, or had one.
    fn is_without(&self, family: Family) -> bool {
        [&self.before, &self.after].into_iter().all(|group| {
            let mut states = kernel::members(group).filter_map(|(slot, _)| state(group, family, slot));
            states.all(|(_, reason)| reason == Reason::NoAddress)
        })
    }

    /// The members whose state or its reason has changed, with the family unless it is both.
    fn states(&self) -> Vec<(State, Option<Family>, UplinkChange)> {
        let mut found = Vec::new();
        for (slot, member) in kernel::members(&self.after) {
            let states = PerFamily::from_fn(|family| {
                let of = |record: &UplinkRecord| state(record, family, slot);
                (of(&self.before) != of(&self.after)).then(|| of(&self.after)).flatten()
            });
            let is_both = states.v4 == states.v6;
            for family in Family::ALL {
                let Some((state, reason)) = *states.get(family) else { continue };
                if family == Family::V6 && is_both {
                    continue;
                }
                let change = UplinkChange {
                    group: text(&self.after.name),
                    member: Some(text(&member.interface)),
                    state: Some(state.to_string()),
                    family: (!is_both).then(|| family.to_string().to_lowercase()),
                    why: Some(reason.to_string()),
                    ..UplinkChange::default()
                };
                found.push((state, (!is_both).then_some(family), change));
            }
        }
        found
    }

    /// The choices that have changed.
    fn choices(&self) -> PerFamily<Option<Choice>> {
        PerFamily::from_fn(|family| {
            let chosen = |group: &UplinkRecord| {
                let names = kernel::members(group).filter(|(slot, _)| group.live[family as usize] >> slot & 1 != 0);
                names.map(|(_, member)| text(&member.interface)).collect::<Vec<_>>()
            };
            let (from, to) = (chosen(&self.before), chosen(&self.after));
            (from != to).then_some(Choice { from, to })
        })
    }

    /// Why the choice has changed: the member that was lost says it, or else the one that was gained.
    fn why(&self) -> Option<String> {
        let said = |from: &UplinkRecord, to: &UplinkRecord| {
            Family::ALL.into_iter().find_map(|family| {
                let at = family as usize;
                let changed = from.live[at] & !to.live[at];
                let mut members = kernel::members(&self.after).filter(|(slot, _)| changed >> slot & 1 != 0);
                members.find_map(|(slot, member)| {
                    let (state, reason) = state(&self.after, family, slot)?;
                    Some((state, format!("{} is {state}: {reason}", text(&member.interface))))
                })
            })
        };
        let lost = said(&self.before, &self.after);
        let is_cause = |(state, _): &(State, String)| matches!(state, State::Down | State::Held);
        let gained = || said(&self.after, &self.before);
        lost.clone().filter(is_cause).or_else(gained).or(lost).map(|(_, why)| why)
    }
}

/// The state of a member in a family, if somebody has looked at it.
fn state(record: &UplinkRecord, family: Family, slot: usize) -> Option<(State, Reason)> {
    let health = record.health[family as usize][slot];
    (health.since_ns != 0).then(|| Some((State::from_repr(health.state)?, Reason::from_repr(health.reason)?)))?
}

fn tell(pins: &Pins, change: UplinkChange) {
    if let Err(error) = kernel::tell(pins, &News { boottime_ns: now_ns(), change }) {
        log::debug!("tell of a change: {error}");
    }
}

#[cfg(test)]
mod tests {
    use steer_common::{
        UplinkRecord,
        uplink::{HealthRecord, MemberRecord},
    };

    use super::{Choice, PerFamily, Reason, State, Switch};
    use crate::apply::resolve::padded;

    /// Two members with these states; `live`: who carries IPv4 and IPv6.
    fn record(states: [(State, Reason); 2], live: [u32; 2]) -> Box<UplinkRecord> {
        let mut record = UplinkRecord { members: 2, live, name: padded("lines"), ..UplinkRecord::EMPTY };
        for (slot, (state, reason)) in states.into_iter().enumerate() {
            let interface = padded(&format!("a{slot}"));
            record.member[slot] = MemberRecord { interface, ..MemberRecord::EMPTY };
            for family in 0..2 {
                let (state, reason) = (state as u8, reason as u8);
                record.health[family][slot] = HealthRecord { state, reason, since_ns: 1, ..HealthRecord::NEW };
            }
        }
        Box::new(record)
    }

    #[test]
    fn a_failed_member_is_the_cause() {
        let up = (State::Up, Reason::Works);
        let before = record([up, up], [1, 1]);
        let after = record([(State::Down, Reason::NoCarrier), up], [2, 2]);
        let switch = Switch { slot: 1, before, after, leaving: Vec::new() };
        let changed = Some(Choice { from: vec!["a0".to_owned()], to: vec!["a1".to_owned()] });
        assert_eq!(switch.choices(), PerFamily { v4: changed.clone(), v6: changed });
        assert_eq!(switch.why().as_deref(), Some("a0 is down: its link is down or has no carrier"));
        let states = switch.states();
        assert_eq!(states.len(), 1, "{states:?}");
        assert_eq!((states[0].2.state.as_deref(), states[0].2.family.as_deref()), (Some("down"), None));
    }

    #[test]
    fn a_better_member_is_the_cause() {
        let up = (State::Up, Reason::Works);
        let before = record([(State::Held, Reason::Returned), up], [2, 2]);
        let switch = Switch { slot: 1, before, after: record([up, up], [1, 2]), leaving: Vec::new() };
        assert_eq!(switch.why().as_deref(), Some("a0 is up: it works"));
        assert_eq!(switch.choices().v6, None);
    }
}
