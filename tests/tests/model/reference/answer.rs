//! What is right for whoever sends: by which link its packets leave, or that none do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use steer_lab::{Family, prober::Way};

use super::{
    Binding, Bindings, CLOSED, Holder, InForce, Line, Mark, REMOVED, Reference, Space,
    groups::{FAMILIES, Lines},
    outer,
    policy::{Level, Spec},
    routed::To,
};
use crate::model::known;

/// Who sends, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) place: String,
    pub(crate) space: Space,
    pub(crate) way: Way,
    pub(crate) family: Family,
}

impl Asked {
    /// Whether it is sent to an address that is reached by default routes only, from a new socket.
    pub(super) fn is_to_server(&self) -> bool {
        matches!(self.way, Way::Tcp | Way::Udp | Way::Mptcp | Way::Dns | Way::Beside)
    }
}

/// What is right.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Packets leave by one or more of these links and no others, once all has settled. Empty: none has to leave.
    pub(crate) must: BTreeSet<Line>,
    /// Packets leave by no other links than these.
    pub(crate) may: BTreeSet<Line>,
    /// For a question for a name: the resolver that is asked by a link. `None`: nobody's.
    pub(crate) resolvers: Option<BTreeMap<Line, Option<IpAddr>>>,
}

impl Answer {
    pub(super) fn by(line: Option<Line>) -> Self {
        let lines: BTreeSet<Line> = line.into_iter().collect();
        Self { must: lines.clone(), may: lines, resolvers: None }
    }

    pub(super) fn within(lines: impl IntoIterator<Item = Line>) -> Self {
        Self { must: BTreeSet::new(), may: lines.into_iter().collect(), resolvers: None }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |lines: &BTreeSet<Line>| lines.iter().map(|line| format!("{line:?}")).collect::<Vec<_>>().join(" or ");
        match (self.must.is_empty(), self.may.is_empty()) {
            (false, _) => write!(formatter, "by {}", names(&self.must)),
            (true, true) => write!(formatter, "closed"),
            (true, false) => write!(formatter, "at most by {}", names(&self.may)),
        }
    }
}

/// A holder, as far as it matters to who sends.
pub(crate) struct Held {
    /// The cgroup that it is on.
    pub(crate) place: String,
    /// The policy's name, of the configuration.
    pub(crate) name: Option<&'static str>,
    pub(crate) spec: Spec,
    pub(crate) space: Space,
    pub(crate) lines: Lines,
}

impl Reference {
    /// What steers this very cgroup.
    pub(crate) fn held_at(&self, place: &str) -> Option<Held> {
        let held = |name, spec, space, lines: &Lines| {
            let lines = lines.clone().existing(self);
            Held { place: place.to_owned(), name, spec, space, lines }
        };
        let of_policy = |name: &str| {
            let InForce { policy, lines } = self.policy(name)?;
            Some(held(Some(policy.name), policy.spec, Space::Here, lines))
        };
        match self.manual.get(place) {
            Some(Holder::Own { spec, space, lines }) => Some(held(None, *spec, *space, lines)),
            // Closed is closed, also where the policy exempted.
            Some(Holder::Named { name, last }) => Some(
                of_policy(name).unwrap_or_else(|| held(Some(*name), last.closed(), Space::Here, &Lines::default())),
            ),
            None => self.configured.get(place).and_then(|name| of_policy(name)),
        }
    }

    /// What steers a cgroup: whatever is on it, or on the nearest one around it.
    pub(crate) fn holder(&self, place: &str) -> Option<Held> {
        let mut at = place;
        while !at.is_empty() {
            if let Some(held) = self.held_at(at) {
                return Some(held);
            }
            at = self.outer(at);
        }
        None
    }

    /// The cgroup around one that exists or is gone; empty for the outermost.
    fn outer<'a>(&'a self, place: &'a str) -> &'a str {
        self.around_removed.get(place).map_or_else(|| outer(place), String::as_str)
    }

    /// Everything that can be asked, with what is right.
    pub(crate) fn answers(&self) -> BTreeMap<Asked, Answer> {
        let mut answers = BTreeMap::new();
        for (place, spaces) in &self.places {
            for &space in spaces {
                let new = |way: &Way| !matches!(way, Way::Kept | Way::Accepted);
                for (way, family) in
                    Way::ALL.into_iter().filter(new).flat_map(|way| FAMILIES.map(|family| (way, family)))
                {
                    let answer = self.answer(place, space, way, family);
                    answers.insert(Asked { place: place.clone(), space, way, family }, answer);
                }
            }
        }
        for family in FAMILIES {
            for (place, space) in self.kept.keys() {
                let asked = Asked { place: place.clone(), space: *space, way: Way::Kept, family };
                answers.insert(asked, self.answer_kept(place, *space, family));
            }
            for (place, space) in self.accepted.keys() {
                let asked = Asked { place: place.clone(), space: *space, way: Way::Accepted, family };
                answers.insert(asked, self.answer_accepted(place, *space, family));
            }
        }
        let with_lacks = |(asked, answer): (Asked, Answer)| {
            let mut answer = self.with_lacks(&asked, answer);
            if known::waives(self, &asked) {
                answer.must.clear();
            }
            (asked, answer)
        };
        answers.into_iter().map(with_lacks).collect()
    }

    /// What was right for those who are asked about now: a cgroup that was not there is as the one around it.
    pub(crate) fn answers_for<'a>(&self, asked: impl Iterator<Item = &'a Asked>) -> BTreeMap<Asked, Answer> {
        let answer = |asked: &Asked| match asked.way {
            Way::Kept if self.kept.contains_key(&(asked.place.clone(), asked.space)) => {
                Some(self.answer_kept(&asked.place, asked.space, asked.family))
            }
            Way::Accepted if self.accepted.contains_key(&(asked.place.clone(), asked.space)) => {
                Some(self.answer_accepted(&asked.place, asked.space, asked.family))
            }
            Way::Kept | Way::Accepted => None,
            way => Some(self.answer(&asked.place, asked.space, way, asked.family)),
        };
        asked.filter_map(|asked| Some((asked.clone(), self.with_lacks(asked, answer(asked)?)))).collect()
    }

    pub(super) fn answer(&self, place: &str, space: Space, way: Way, family: Family) -> Answer {
        let to = To::of(way);
        let unsteered = Answer::by(self.by_main(space, to));
        let Some(held) = self.holder(place).filter(|held| !held.spec.exempts()) else { return unsteered };
        if held.space != space {
            return if held.spec.refuses { Answer::by(None) } else { unsteered };
        }
        if way == Way::Mptcp && held.spec.level == Level::Strict {
            return Answer::by(None);
        }
        if let Some(answer) = self.answer_query(&held, way, family) {
            return answer;
        }
        self.answer_held(&held, way, family)
    }

    /// What is right for a new socket of a policy, where no resolver of the policy matters.
    pub(super) fn answer_held(&self, held: &Held, way: Way, family: Family) -> Answer {
        if held.spec.marks() {
            return self.answer_marked(held, way, family);
        }
        let space = held.space;
        let is_steer = held.spec.level < Level::Strict;
        let uplink = Answer::by_uplink(&held.lines, family);
        let members = || uplink.may.iter().copied();
        let others_have_it = members().any(|line| line.number == 0).then_some(Line::loopback(space));
        match way {
            // Its binding is lost, and only strict puts it back.
            Way::Disconnected if is_steer => Answer::within(members().chain(self.default_line(space))),
            Way::Disconnected => Answer::within(members()),
            // A datagram that is not connected is looked at by strict only.
            Way::Host | Way::DnsHost if is_steer => Answer::within(members().chain([Line::loopback(space)])),
            Way::Host | Way::HostTcp | Way::DnsHost => Answer::by(None),
            // Of the addresses of this host, a bound socket reaches those of its uplink. Closed for good, it may have been marked before.
            Way::Own => match uplink.must.iter().map(|line| line.number).collect::<Vec<_>>().as_slice() {
                [0] if members().len() == 1 => Answer::by(Some(Line::loopback(space))),
                [] | [0, ..] => {
                    Answer::within(members().filter(|line| line.number != 0).chain([Line::loopback(space)]))
                }
                // Another member may be the one with the address.
                _ => Answer { may: members().chain(others_have_it).collect(), ..uplink },
            },
            _ => uplink,
        }
    }

    /// A socket from before goes by what it is bound to, unless the policy holds it back or binds it.
    fn answer_kept(&self, place: &str, space: Space, family: Family) -> Answer {
        self.answer_from_before(place, space, family, &self.kept[&(place.to_owned(), space)])
    }

    fn answer_accepted(&self, place: &str, space: Space, family: Family) -> Answer {
        let accepted = &self.accepted[&(place.to_owned(), space)];
        let answer = self.answer_from_before(place, space, family, &accepted.bindings);
        Answer { must: answer.must.into_iter().filter(|must| accepted.by == Some(*must)).collect(), ..answer }
    }

    /// Where an accepted connection leaves.
    pub(super) fn accepted_by(&self, place: &str, space: Space) -> Option<Line> {
        let by = FAMILIES.map(|family| self.answer_accepted(place, space, family).must);
        by[0].first().copied().filter(|_| by[0] == by[1])
    }

    /// A socket that is left of a removed cgroup sends as before, or not.
    ///
    /// One of a group's cgroup is moved when its member fails.
    fn answer_from_before(&self, place: &str, space: Space, family: Family, bindings: &Bindings) -> Answer {
        let Answer { mut must, mut may, resolvers } = self.answer_of_bindings(place, space, family, bindings);
        let held = self.holder(place).filter(|held| held.space == space && held.lines.group.is_some());
        if let Some(held) = &held {
            may.extend(held.lines.members.iter().copied());
        }
        if place.starts_with(REMOVED) || held.is_some() {
            must.clear();
        }
        Answer { must, may, resolvers }
    }

    fn answer_of_bindings(&self, place: &str, space: Space, family: Family, bindings: &Bindings) -> Answer {
        let by = |binding: &Binding| match binding {
            Binding::None => Some(self.default_line(space)),
            Binding::Line(line) => Some(Some(*line).filter(|line| self.exists(*line))),
            // The mark may mean nothing now, or another policy.
            Binding::Mark(_) => None,
        };
        let by: Option<BTreeSet<Option<Line>>> = bindings.iter().map(by).collect();
        let own = match &by {
            None => Answer::within(self.lines.values().map(|(line, _)| *line).filter(|line| line.space == space)),
            Some(by) if by.len() == 1 => Answer::by(by.first().copied().flatten()),
            Some(by) => Answer::within(by.iter().flatten().copied()),
        };
        // Nobody follows the links of a namespace without a process of the policy.
        let is_stale = place.starts_with(REMOVED) && space == Space::There;
        let Some(held) = self.holder(place).filter(|held| !held.spec.exempts()) else { return own };
        if held.space != space {
            return if held.spec.refuses { Answer { must: BTreeSet::new(), ..own } } else { own };
        }
        if held.spec.marks() {
            let routed = self.answer_marked(&held, Way::Kept, family);
            if *bindings == BTreeSet::from([Binding::Mark(Mark::of(&held))]) {
                return routed;
            }
            if held.spec.level < Level::Strict && !held.spec.rebinds {
                return own;
            }
            // The programs let it out where the routes lead, and by the uplink.
            let is_open = is_stale || held.spec.level < Level::Strict;
            let own = own.may.into_iter().filter(|_| is_open);
            return Answer::within(own.chain(routed.may).chain(held.lines.members));
        }
        let members = &held.lines.members;
        match (held.spec.rebinds, held.spec.level) {
            (true, _) => Answer::within(
                own.may
                    .into_iter()
                    .filter(|line| is_stale || held.spec.level < Level::Strict || members.contains(line))
                    .chain(members.iter().copied()),
            ),
            (false, Level::Steer | Level::Observe) => own,
            (false, Level::Strict) => {
                let may = own.may.into_iter().chain(members.iter().copied());
                Answer {
                    must: own.must.into_iter().filter(|must| members.contains(must)).collect(),
                    may: may.filter(|line| is_stale || members.contains(line)).collect(),
                    resolvers: None,
                }
            }
        }
    }

    /// What a new socket may be bound to; the error is that there is none.
    pub(crate) fn bindings(&self, place: &str, space: Space) -> Result<Bindings, ()> {
        match self.holder(place) {
            Some(held) if held.spec.exempts() => Ok([Binding::None].into()),
            Some(held) if held.space != space => {
                if held.spec.refuses {
                    Err(())
                } else {
                    Ok([Binding::None].into())
                }
            }
            Some(held) => Ok(held.bindings()),
            None => Ok([Binding::None].into()),
        }
    }

    /// What a policy may bind kept sockets of a cgroup to.
    pub(super) fn binds_kept(&self, place: &str, space: Space) -> Bindings {
        let held = self.holder(place).filter(|held| !held.spec.exempts() && held.space == space);
        let binds = |held: &Held| held.spec.rebinds || held.spec.level == Level::Strict || held.lines.group.is_some();
        held.filter(binds).map(|held| held.bindings()).unwrap_or_default()
    }

    /// The mark that new sockets of a cgroup get.
    pub(super) fn mark(&self, place: &str, space: Space) -> Option<Mark> {
        let held = self.holder(place).filter(|held| held.spec.marks() && held.space == space)?;
        Some(Mark::of(&held))
    }
}

impl Held {
    fn bindings(&self) -> Bindings {
        if self.spec.marks() {
            return [Binding::Mark(Mark::of(self))].into();
        }
        let is_closed = self.lines.group.is_some() || !self.lines.is_any();
        let closed = is_closed.then_some(CLOSED);
        self.lines.members.iter().copied().chain(closed).map(Binding::Line).collect()
    }
}
