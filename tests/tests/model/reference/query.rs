//! What is right for a question for a name, where a policy or a member of its group has a resolver.
//!
//! **Invariant:** by a link with a resolver, only that is asked. Under a strict policy, no server is asked beside the uplink.

use std::collections::BTreeSet;

use steer_lab::{Family, prober::Way};

use super::{Answer, Held, Reference, policy::Level};

impl Reference {
    /// `None`: there is no resolver, or it is no question.
    pub(super) fn answer_query(&self, held: &Held, way: Way, family: Family) -> Option<Answer> {
        let lines = &held.lines;
        let is_query = matches!(way, Way::Dns | Way::DnsNear | Way::DnsHost);
        // Also that of a member whose link is missing.
        let of_members = lines.group.iter().flat_map(|group| &group.members).map(|member| member.dns);
        let has_any = of_members.chain([held.spec.dns]).any(|dns| !dns.is_none());
        if !is_query || !has_any {
            return None;
        }
        let resolver = |line| lines.resolvers.get(&(line, family)).copied().or(held.spec.dns.resolver(family));
        let resolvers = Some(lines.members.iter().map(|line| (*line, resolver(*line))).collect());
        let chosen = lines.chosen(family);
        let uplink = Answer::by_uplink(lines, family);
        if !chosen.is_empty() && chosen.iter().all(|line| resolver(*line).is_some()) {
            let answer = if held.spec.marks() { self.while_broken(held, Way::Dns, uplink) } else { uplink };
            return Some(Answer { resolvers, ..answer });
        }
        let plain = self.answer_held(held, way, family);
        let is_strict = held.spec.level == Level::Strict;
        let mut may = plain.may;
        may.retain(|line| !is_strict || lines.members.contains(line));
        may.extend(uplink.may);
        let is_asked = |line| may.contains(line) && resolver(*line).is_none();
        let is_sure = !chosen.is_empty() && chosen.iter().chain(&plain.must).all(is_asked);
        let must = if is_sure { plain.must } else { BTreeSet::new() };
        Some(Answer { must, may, resolvers })
    }
}
