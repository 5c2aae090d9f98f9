//! Groups of uplinks: their members, what a link lacks, and so by which links new sockets go.
//!
//! **Invariant:** only where something works does a socket have to go by it. Where nothing does, the last choice or any member may stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use steer_lab::Family;

use super::{
    Answer, Asked, Level, Line, Reference, Space,
    policy::{Dns, Spec},
};
use crate::model::operation::{AUTO, GROUPS};

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The first names of the links.
pub(crate) const LINKS: [&str; 3] = ["a0", "a1", "a2"];

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The name of its link.
    pub(crate) link: &'static str,
    pub(crate) tier: u8,
    pub(crate) weight: u8,
    pub(crate) dns: Dns,
}

/// The resolver of a member, which nobody has.
fn resolver_behind(link: &str, family: Family) -> IpAddr {
    let number = (0..).zip(LINKS).find(|(_, name)| *name == link).map_or(0, |(number, _)| number);
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 60 + number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 0x60 + u16::from(number)).into(),
    }
}

/// Whether an address is a resolver of a policy or a member.
pub(crate) fn is_resolver(address: &IpAddr) -> bool {
    let both = Dns { v4: true, v6: true };
    let of_family = |family| {
        let of_members = LINKS.map(|link| resolver_behind(link, family));
        of_members.into_iter().chain(both.resolver(family))
    };
    FAMILIES.into_iter().flat_map(of_family).any(|resolver| resolver == *address)
}

/// A group of uplinks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) members: Vec<Member>,
    /// Whether the gateways of its members are probed.
    pub(crate) probed: bool,
    /// Whether each socket has a member of its own.
    pub(crate) by_socket: bool,
}

impl Group {
    /// The group that a list of links names: a tier for each.
    fn listed(name: &'static str) -> Self {
        let members = (1..).zip(name.split('+')).map(|(tier, link)| Member { link, tier, weight: 1, dns: Dns::NONE });
        Self { name, members: members.collect(), probed: false, by_socket: false }
    }

    /// The links that have a name of a link, the one with the best default route first.
    pub(crate) fn auto(probed: bool, by_socket: bool) -> Self {
        let members = (1..).zip(LINKS).map(|(tier, link)| Member { link, tier, weight: 1, dns: Dns::NONE });
        Self { name: AUTO, members: members.collect(), probed, by_socket }
    }

    pub(crate) fn is_auto(&self) -> bool {
        self.name == AUTO
    }

    /// A member of a list that returns is not preferred for half a minute.
    fn holds(&self) -> bool {
        self.name.contains('+')
    }

    /// The table in a file.
    pub(crate) fn text(&self) -> String {
        let member = |Member { link, tier, weight, dns }: &Member| {
            let resolvers: Vec<_> =
                dns.of(FAMILIES).into_iter().map(|of| resolver_behind(link, of).to_string()).collect();
            let dns = if dns.is_none() { String::new() } else { format!(", dns = {resolvers:?}") };
            format!("{{ interface = \"{link}\", tier = {tier}, weight = {weight}{dns} }}")
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        let probe =
            "probe = { targets = [\"gateway\"], interval = \"50ms\", timeout = \"50ms\", fall = 2, rise = 1 }\n";
        let members = if self.is_auto() {
            "auto = { include = [\"a*\"] }".to_owned()
        } else {
            format!("members = [{}]", members.join(", "))
        };
        format!(
            "[[uplink]]\nname = \"{}\"\n{members}\nhold = \"0s\"\nbalance = \"{}\"\n{}",
            self.name,
            if self.by_socket { "socket" } else { "cgroup" },
            if self.probed { probe } else { "" }
        )
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let member = |Member { link, tier, weight, dns }: &Member| {
            let dns: String = dns.of([" dns4", " dns6"]).concat();
            format!("{link} {tier}/{weight}{dns}")
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        let probed = if self.probed { " probed" } else { "" };
        let by_socket = if self.by_socket { " by socket" } else { "" };
        write!(formatter, "{} ({}){probed}{by_socket}", self.name, members.join(", "))
    }
}

/// What a link lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack {
    Carrier,
    Address(Family),
    Route(Family),
}

impl Lack {
    fn is_of(self, family: Family) -> bool {
        match self {
            Self::Carrier => true,
            Self::Address(of) | Self::Route(of) => of == family,
        }
    }
}

/// What an administrator has decided about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hand {
    Auto,
    Up,
    Down,
}

/// The uplink of a policy, as somebody found it last: one link, or the members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    /// The group, as it was when it was put in force.
    pub(crate) group: Option<Group>,
    /// New sockets of a family get one of these.
    chosen: BTreeMap<Family, BTreeSet<Line>>,
    /// Packets may leave by these.
    pub(crate) members: BTreeSet<Line>,
    /// The resolvers of members.
    pub(super) resolvers: BTreeMap<(Line, Family), IpAddr>,
}

impl Lines {
    fn one(line: Option<Line>) -> Self {
        let members: BTreeSet<Line> = line.into_iter().collect();
        let chosen = FAMILIES.into_iter().map(|family| (family, members.clone())).collect();
        Self { group: None, chosen, members, resolvers: BTreeMap::new() }
    }

    pub(crate) fn chosen(&self, family: Family) -> BTreeSet<Line> {
        self.chosen.get(&family).cloned().unwrap_or_default()
    }

    /// Whether there is a link.
    pub(crate) fn is_any(&self) -> bool {
        !self.members.is_empty()
    }

    /// Without links that are gone. A socket may still get one of them, and be closed, until somebody follows.
    pub(crate) fn existing(mut self, now: &Reference) -> Self {
        let exists = |line: &Line| now.exists(*line);
        self.members.retain(exists);
        self.chosen.retain(|_, chosen| chosen.iter().all(exists));
        self
    }
}

impl Answer {
    /// By the uplink of a policy.
    pub(super) fn by_uplink(lines: &Lines, family: Family) -> Self {
        Self { must: lines.chosen(family), may: lines.members.clone(), resolvers: None }
    }
}

impl Reference {
    /// The group of a policy with this uplink, as these files define it.
    pub(crate) fn group_of(spec: &Spec, groups: &[Group]) -> Option<Group> {
        let configured = groups.iter().find(|group| group.name == spec.uplink).cloned();
        configured.or_else(|| spec.uplink.contains('+').then(|| Group::listed(spec.uplink)))
    }

    /// The uplink of a policy in a namespace now. `group`: what was put in force.
    pub(crate) fn lines_of(&self, space: Space, spec: &Spec, group: Option<Group>) -> Lines {
        let Some(group) = group else { return Lines::one(self.line_called(space, spec.uplink)) };
        let line = |member: &Member| self.line_called(space, member.link);
        let members = group.members.iter().filter_map(line).collect();
        let resolvers = group.members.iter().flat_map(|member| {
            let of = member.dns.of(FAMILIES).into_iter();
            of.filter_map(|family| Some(((line(member)?, family), resolver_behind(member.link, family))))
        });
        let resolvers = resolvers.collect();
        let chosen = FAMILIES.map(|family| (family, self.choose(space, &group, family)));
        Lines { chosen: chosen.into(), members, resolvers, group: Some(group) }
    }

    /// The lines that new sockets get. Empty: that depends on what was before, or no member works.
    fn choose(&self, space: Space, group: &Group, family: Family) -> BTreeSet<Line> {
        let none = BTreeSet::new();
        // What probes found last is not known once nobody sends them, and only the daemon looks for members.
        if group.is_auto() && !self.daemon_runs {
            return none;
        }
        let is_unknown = |member: &Member| self.hand(space, group, member).is_none();
        if group.probed && space == Space::Here && !self.daemon_runs || group.members.iter().any(is_unknown) {
            return none;
        }
        let working = |family: Family| -> Vec<(u8, Line)> {
            let works = |member: &&Member| self.works(space, group, member, family);
            let line = |member: &Member| {
                let line = self.line_called(space, member.link)?;
                Some((if group.is_auto() { line.number } else { member.tier }, line))
            };
            group.members.iter().filter(works).filter_map(line).collect()
        };
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        let works = Some(working(family)).filter(|works| !works.is_empty()).unwrap_or_else(|| working(other));
        let best = works.iter().map(|(tier, _)| *tier).min();
        works.into_iter().filter(|(tier, _)| group.holds() || Some(*tier) == best).map(|(_, line)| line).collect()
    }

    fn works(&self, space: Space, group: &Group, member: &Member, family: Family) -> bool {
        let Some(line) = self.line_called(space, member.link) else { return false };
        let is_dead = group.probed && space == Space::Here && self.holes.contains(&(line.space, line.number, family));
        match self.hand(space, group, member) {
            Some(Hand::Auto) => !self.lacks(line, family) && !is_dead,
            Some(Hand::Up) => !self.lacks(line, family),
            Some(Hand::Down) | None => false,
        }
    }

    /// Only members of configured groups are taken out of use here, and in the daemon's namespace. None: it is not known.
    fn hand(&self, space: Space, group: &Group, member: &Member) -> Option<Hand> {
        if space == Space::There {
            return Some(Hand::Auto);
        }
        self.hands.get(&(group.name, member.link)).copied().unwrap_or(Some(Hand::Auto))
    }

    /// Whether a link lacks something that packets of a family need.
    pub(crate) fn lacks(&self, line: Line, family: Family) -> bool {
        self.lacking.get(&line).is_some_and(|lacks| lacks.iter().any(|lack| lack.is_of(family)))
    }

    pub(super) fn lacks_anything(&self, line: Line) -> bool {
        self.lacking.get(&line).is_some_and(|lacks| !lacks.is_empty())
    }

    pub(crate) fn lacks_carrier(&self, line: Line) -> bool {
        self.lacking.get(&line).is_some_and(|lacks| lacks.contains(&Lack::Carrier))
    }

    /// Whether all links of a namespace have what they need, and reach the server.
    pub(crate) fn is_whole(&self, space: Space) -> bool {
        let is_here = |line: &Line| line.space == space && self.exists(*line);
        !self.lacking.iter().any(|(line, lacks)| is_here(line) && !lacks.is_empty())
            && !self.holes.iter().any(|(of, ..)| *of == space)
    }

    /// What is right where links lack something: no packet has to leave by them, and what is not steered leaves by any link.
    pub(super) fn with_lacks(&self, asked: &Asked, answer: Answer) -> Answer {
        let lacks = |line: Line| self.lacks(line, asked.family);
        let all = || self.lines.values().map(|(line, _)| *line).filter(|line| line.space == asked.space);
        if !all().any(lacks) {
            return answer;
        }
        let held = self.holder(&asked.place).filter(|held| !held.spec.exempts() && held.space == asked.space);
        let is_unsteered = |held: &super::Held| held.spec.level < Level::Strict || held.spec.reach.is_by_main();
        let Answer { must, mut may, resolvers } = answer;
        match &held {
            Some(held) if !is_unsteered(held) => may.extend(held.lines.members.iter().copied()),
            // Another namespace than the policy's: left alone, or refused.
            None if may.is_empty() => {}
            _ => may.extend(all().chain([Line::loopback(asked.space)])),
        }
        let is_sure = held.is_some_and(|held| !held.spec.marks()) && !must.iter().any(|line| lacks(*line));
        Answer { must: if is_sure && asked.is_to_server() { must } else { BTreeSet::new() }, may, resolvers }
    }

    /// The groups that cgroups use for certain, and their lines, with the namespaces that they are in.
    pub(crate) fn groups_in_use(&self) -> Vec<(Space, Lines)> {
        let mut used = Vec::new();
        for place in self.places.keys() {
            let Some(held) = self.held_at(place).filter(|held| held.lines.group.is_some()) else { continue };
            if !used.contains(&(held.space, held.lines.clone())) {
                used.push((held.space, held.lines));
            }
        }
        used
    }

    /// The links whose gateways may be probed.
    pub(crate) fn probed_lines(&self) -> BTreeSet<Line> {
        let configured = self.in_force.iter().map(|in_force| &in_force.lines);
        let all = configured.chain(self.manual.values().filter_map(|holder| match holder {
            super::Holder::Own { lines, space: Space::Here, .. } => Some(lines),
            _ => None,
        }));
        let probed = all.filter(|lines| lines.group.as_ref().is_some_and(|group| group.probed));
        probed.flat_map(|lines| lines.members.iter().copied()).collect()
    }

    /// Whether a policy of the configuration that is in force has a group.
    pub(crate) fn has_in_force(&self, group: &str) -> bool {
        self.in_force.iter().any(|in_force| in_force.policy.spec.uplink == group)
    }

    /// What an administrator has decided goes with a link that is no member any more, and with one that has another name.
    pub(crate) fn forget_hands_of_auto(&mut self, space: Space) {
        let of_auto = self.hands.iter_mut().filter(|((group, _), _)| *group == AUTO && space == Space::Here);
        of_auto.filter(|(_, hand)| **hand != Some(Hand::Auto)).for_each(|(_, hand)| *hand = None);
    }

    /// Decisions of an administrator are kept with the group, as long as a policy has it.
    pub(super) fn keep_hands(&mut self, before: &[&str]) {
        let kept: Vec<_> = GROUPS.into_iter().filter(|name| before.contains(name) && self.has_in_force(name)).collect();
        let groups = &self.files.groups;
        for ((name, link), hand) in &mut self.hands {
            let is_member = |group: &Group| group.name == *name && group.members.iter().any(|it| it.link == *link);
            if !kept.contains(name) || !groups.iter().any(is_member) {
                *hand = None;
            }
        }
    }
}
