//! Counts what the events tell of groups of uplinks, for the metrics. The counts begin with the daemon.

use std::collections::BTreeMap;

use super::Event;

/// The counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often new sockets got another member, by group and family.
    pub switches: BTreeMap<(String, &'static str), u64>,
    /// How many connections were ended because their member was left, by group and member.
    pub ended: BTreeMap<(String, String), u64>,
}

impl Tally {
    /// Takes an event in. The first choice of a group is no switch.
    pub fn add(&mut self, event: &Event) {
        let Some(change) = &event.uplink else { return };
        for (family, choice) in [("ipv4", &change.ipv4), ("ipv6", &change.ipv6)] {
            if choice.as_ref().is_some_and(|choice| !choice.from.is_empty()) {
                *self.switches.entry((change.group.clone(), family)).or_default() += 1;
            }
        }
        if let Some(ended) = change.ended {
            *self.ended.entry((change.group.clone(), change.left.join("+"))).or_default() += ended;
        }
    }
}
