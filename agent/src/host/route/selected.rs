//! Finds the rule that led a packet to a table, or refused it, which the kernel does not tell.
//!
//! **Invariant:** this describes an answer of the kernel, and never predicts one.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    entry::{BLACKHOLE, IPV4, IPV6, PROHIBIT, UNREACHABLE},
    rule::{LOOKUP, Rule},
    state::State,
};
use crate::model::prefix::Prefix;

/// A packet of a new socket.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// The destination.
    pub to: IpAddr,
    /// The mark of the socket.
    pub mark: u32,
    /// The index of the link that the socket is bound to.
    pub bound_to: Option<u32>,
}

/// A rule that selects a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Its preference.
    pub preference: u32,
    /// All of it, as `ip rule` would describe it.
    pub text: String,
}

/// What refuses a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that refuses, or that leads to the table.
    pub rule: Option<Selected>,
    /// The table and the prefix of a route that refuses.
    pub route: Option<(u32, Prefix)>,
}

impl State {
    /// The rule that leads a packet to a table.
    pub fn rule_to(&self, packet: Sent, table: u32) -> Option<Selected> {
        let leads = |rule: &&Rule| rule.action == LOOKUP && rule.table == table;
        let mut certain = self.selecting(packet).filter(|rule| !rule.has_more);
        // One with selectors that steer does not know may have selected it.
        let found = certain.find(leads).or_else(|| self.selecting(packet).find(leads));
        found.map(Selected::of)
    }

    /// What refuses a packet, by the kernel's answer.
    pub fn refusal(&self, packet: Sent, error: Errno) -> Refusal {
        let (of_route, of_rule) = match error {
            Errno::EHOSTUNREACH => (Some(UNREACHABLE), None),
            Errno::EACCES => (Some(PROHIBIT), Some(PROHIBIT)),
            Errno::EINVAL => (Some(BLACKHOLE), Some(BLACKHOLE)),
            _ => (None, Some(UNREACHABLE)),
        };
        for rule in self.selecting(packet).filter(|rule| rule.action == LOOKUP) {
            let mut routes: Vec<Prefix> = self
                .routes
                .iter()
                .filter(|route| route.table == rule.table && Some(route.kind) == of_route)
                .map(|route| route.prefix)
                .filter(|prefix| prefix.contains(packet.to))
                .collect();
            routes.sort_by_key(Prefix::len);
            if let Some(prefix) = routes.pop() {
                return Refusal { rule: Some(Selected::of(rule)), route: Some((rule.table, prefix)) };
            }
        }
        // Their actions have the numbers of the types of routes.
        let rule = self.selecting(packet).find(|rule| Some(rule.action) == of_rule);
        Refusal { rule: rule.map(Selected::of), route: None }
    }

    /// The rules whose known selectors match, in their order.
    fn selecting(&self, packet: Sent) -> impl Iterator<Item = &Rule> {
        let family = if packet.to.is_ipv4() { IPV4 } else { IPV6 };
        let bound_to = packet.bound_to.and_then(|link| self.links.get(&link)).map(|link| link.name.as_slice());
        self.rules.iter().filter(move |rule| {
            rule.family == family
                && packet.mark & rule.mask == rule.mark
                && rule.bound_to.as_deref().is_none_or(|name| Some(name) == bound_to)
        })
    }
}

impl Selected {
    fn of(rule: &Rule) -> Self {
        Self { preference: rule.preference, text: rule.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nix::errno::Errno;

    use super::{
        super::{Instance, entry::Route},
        BLACKHOLE, IPV4, Prefix, Rule, Sent, State, UNREACHABLE,
    };
    use crate::model::mark::MarkMask;

    #[test]
    fn the_rule_and_the_route_that_refuse() {
        let (mask, table) = (MarkMask::new(0xff00_0000), Instance::new(5).marked(7));
        let prefix = |text: &str| text.parse::<Prefix>().expect("a prefix");
        let refuse = |kind, to: &str| Route { table, ..Route::without_link(kind, prefix(to)) };
        let state = State {
            rules: vec![
                Rule::goto(IPV4, mask.flag()),
                Rule::lookup(IPV4, mask, 7, table),
                Rule::end(IPV4, mask.flag()),
            ],
            routes: vec![
                refuse(UNREACHABLE, "10.0.0.0/8"),
                refuse(UNREACHABLE, "10.1.0.0/16"),
                refuse(BLACKHOLE, "10.1.1.0/24"),
            ],
            ..State::default()
        };
        let to = IpAddr::from([10, 1, 2, 3]);
        let sent = Sent { to, mark: mask.mark(7).expect("a mark") | 1, bound_to: None };
        let found = state.refusal(sent, Errno::EHOSTUNREACH);
        assert_eq!(
            (found.rule.map(|rule| rule.preference), found.route),
            (Some(40_007), Some((table, prefix("10.1.0.0/16"))))
        );
        let found = state.refusal(sent, Errno::ENETUNREACH);
        assert_eq!((found.rule.map(|rule| rule.preference), found.route), (Some(40_999), None));
        assert_eq!(state.rule_to(sent, table).map(|rule| rule.preference), Some(40_007));
        let unmarked = Sent { mark: 1, ..sent };
        assert_eq!((state.rule_to(unmarked, table), state.refusal(unmarked, Errno::ENETUNREACH).rule), (None, None));
    }
}
