//! What is right for a policy with `local` or `except`: its sockets stay unbound, and routes lead them.
//!
//! **Invariant:** the routes are those of the last time that somebody followed them. Until then, what has changed since may at most
//! be closed.

use std::collections::{BTreeMap, BTreeSet};

use steer_lab::{Family, prober::Way};

use super::{
    Answer, Asked, Held, Line, Reference, Space,
    groups::FAMILIES,
    policy::{Level, Spec},
    reach::By,
};

/// Where something is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Server,
    /// Beside the server's address.
    Beside,
    /// The loopback address.
    Host,
    /// This host's address on the first link.
    Own,
    /// Into the network of a link.
    Near(u8),
    /// Into the network that a link can get besides.
    Further,
}

impl To {
    pub(crate) fn of(way: Way) -> Self {
        match way {
            Way::Beside => Self::Beside,
            Way::Host | Way::HostTcp | Way::DnsHost => Self::Host,
            Way::Own => Self::Own,
            Way::NearFirst | Way::DnsNear => Self::Near(0),
            Way::NearSecond => Self::Near(1),
            Way::Further => Self::Further,
            _ => Self::Server,
        }
    }
}

/// The links and networks of a namespace when they were followed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    names: BTreeMap<String, Line>,
    lines: BTreeSet<Line>,
    /// Those that lacked something. What they got back since has not been seen.
    lacking: BTreeSet<Line>,
    further: Option<Line>,
}

/// What marks a socket: a policy, at a cgroup. Nothing once that policy has not held it for a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(pub(super) Option<String>);

impl Mark {
    pub(super) fn of(held: &Held) -> Self {
        let group = &held.lines.group;
        Self(Some(format!("{} {:?} {:?} {:?} {group:?}", held.place, held.name, held.space, held.spec)))
    }

    pub(super) const STALE: Self = Self(None);
}

impl Spec {
    /// Whether its sockets are marked, not bound.
    pub(crate) fn marks(&self) -> bool {
        !self.reach.is_none()
    }
}

impl Reference {
    /// The links and networks of a namespace now.
    pub(super) fn links_now(&self, space: Space) -> Followed {
        let of = || self.lines.iter().filter(move |((of, _), _)| *of == space).map(|(_, known)| known);
        Followed {
            names: of().map(|(line, name)| (name.clone(), *line)).collect(),
            lines: of().map(|(line, _)| *line).collect(),
            lacking: of().map(|(line, _)| *line).filter(|line| self.lacks_anything(*line)).collect(),
            further: self.further_line(space),
        }
    }

    /// The link that has the further network.
    pub(crate) fn further_line(&self, space: Space) -> Option<Line> {
        self.further.get(&space).copied().filter(|line| self.exists(*line))
    }

    /// Where a new connection to the server of a process leaves.
    pub(crate) fn line_to_server(&self, place: &str, space: Space) -> Option<Line> {
        let by = FAMILIES.map(|family| self.answer(place, space, Way::Tcp, family).must);
        by[0].first().copied().filter(|_| by[0].len() == 1 && by[0] == by[1])
    }

    /// The link that this number has now.
    fn line(&self, space: Space, number: u8) -> Option<Line> {
        self.lines.get(&(space, number)).map(|(line, _)| *line)
    }

    /// Where whatever nobody steers leaves.
    pub(super) fn by_main(&self, space: Space, to: To) -> Option<Line> {
        let direct = match to {
            To::Server | To::Beside => None,
            To::Host => Some(Line::loopback(space)),
            To::Own => self.line(space, 0).map(|_| Line::loopback(space)),
            To::Near(number) => self.line(space, number),
            To::Further => self.further_line(space),
        };
        direct.or(self.default_line(space))
    }

    pub(super) fn answer_marked(&self, held: &Held, way: Way, family: Family) -> Answer {
        let (space, reach) = (held.space, held.spec.reach);
        let followed = &self.followed[&space];
        let exists = |line: &Line| self.exists(*line);
        let uplink = || Answer::by_uplink(&held.lines, family);
        let or_uplink = |line: Option<Line>| line.map_or_else(uplink, |line| Answer::by(Some(line)));
        let excepted = |by: Option<By>| match by {
            None => uplink(),
            Some(By::Refuse) => Answer::by(None),
            Some(By::Link(name)) => Answer::by(followed.names.get(name).copied().filter(exists)),
            Some(By::Main) => Answer::by(followed.lines.iter().copied().find(exists)),
        };
        let answer = match To::of(way) {
            To::Server => excepted(reach.of_server(family)),
            To::Beside => excepted(reach.of_around(family)),
            To::Host if reach.host => Answer::by(Some(Line::loopback(space))),
            // A datagram that is not connected is looked at by strict only. The table of own addresses comes before all rules.
            To::Host if matches!(way, Way::Host | Way::DnsHost) && held.spec.level < Level::Strict => {
                Answer::within([Line::loopback(space)])
            }
            To::Host => Answer::by(None),
            To::Own if self.line(space, 0).is_some() => Answer::by(Some(Line::loopback(space))),
            To::Own => uplink(),
            To::Near(number) => {
                let direct = self.line(space, number).filter(|line| reach.lan && followed.lines.contains(line));
                or_uplink(direct)
            }
            To::Further if !reach.lan => uplink(),
            To::Further if followed.further == self.further_line(space) => or_uplink(followed.further.filter(exists)),
            // Nobody has seen yet that it came or went.
            To::Further => Answer::within(followed.further.into_iter().filter(exists).chain(uplink().may)),
        };
        // Which of both has the longer prefix is not modelled.
        let is_covered = reach.six.is_some() && family == Family::V6 && !matches!(To::of(way), To::Server | To::Beside);
        let answer = if is_covered {
            let may = answer.may.into_iter().chain(excepted(reach.six).may).chain(uplink().may).collect();
            Answer { must: BTreeSet::new(), may, ..Answer::by(None) }
        } else {
            answer
        };
        let answer = if answer.must.is_disjoint(&followed.lacking) {
            answer
        } else {
            let may = answer.may.into_iter().chain(uplink().may).collect();
            Answer { must: BTreeSet::new(), may, ..answer }
        };
        self.while_broken(held, way, answer)
    }

    /// The same, with steer's rules and routes removed, as long as nobody has put them back: it may be closed.
    pub(super) fn while_broken(&self, held: &Held, way: Way, answer: Answer) -> Answer {
        if !self.broken.contains(&held.space) || self.is_of_this_host(held.space, way) {
            return answer;
        }
        let may = answer.may.iter().copied().chain(self.without_rules(held)).collect();
        Answer { must: BTreeSet::new(), may, ..answer }
    }

    fn is_of_this_host(&self, space: Space, way: Way) -> bool {
        match To::of(way) {
            To::Host => true,
            To::Own => self.line(space, 0).is_some(),
            _ => false,
        }
    }

    /// Where packets with a mark may leave besides while rules or routes are missing: by the uplink, which the programs always let
    /// pass; by any link if there are no such programs, or what goes as the main table says.
    fn without_rules(&self, held: &Held) -> BTreeSet<Line> {
        let all = || self.lines.values().map(|(line, _)| *line).filter(|line| line.space == held.space);
        let by_main = held.spec.reach.is_by_main();
        let is_open = held.spec.level < Level::Strict || by_main;
        all().filter(|_| is_open).chain(held.lines.members.iter().copied()).collect()
    }

    /// What may leave for a moment when somebody removes rules or routes.
    pub(crate) fn may_while_removed(&self, asked: &Asked) -> BTreeSet<Line> {
        let held = self.holder(&asked.place).filter(|held| held.spec.marks() && held.space == asked.space);
        let held = held.filter(|_| !self.is_of_this_host(asked.space, asked.way));
        held.map(|held| self.without_rules(&held)).unwrap_or_default()
    }
}
