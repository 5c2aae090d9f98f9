//! What is right for whoever sends: by which link its packets leave, or that none do.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use steer_lab::prober::Way;

use super::{
    Binding, Bindings, CLOSED, Holder, InForce, Line, Mark, REMOVED, Reference, Space, outer, policy::Level,
    policy::Spec, routed::To,
};
use crate::model::known;

/// Who sends, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) place: String,
    pub(crate) space: Space,
    pub(crate) way: Way,
}

/// What is right.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Packets leave by this link.
    pub(crate) must: Option<Line>,
    /// Packets leave by no other links than these.
    pub(crate) may: BTreeSet<Line>,
    /// A question for a name goes to the policy's resolver.
    pub(crate) resolver: bool,
}

impl Answer {
    pub(super) fn by(line: Option<Line>) -> Self {
        Self { must: line, may: line.into_iter().collect(), resolver: false }
    }

    pub(super) fn within(lines: impl IntoIterator<Item = Line>) -> Self {
        Self { must: None, may: lines.into_iter().collect(), resolver: false }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |line: &Line| format!("{line:?}");
        let may = self.may.iter().map(name).collect::<Vec<_>>().join(" or ");
        match self.must {
            Some(line) => write!(formatter, "by {}", name(&line)),
            None if may.is_empty() => write!(formatter, "closed"),
            None => write!(formatter, "at most by {may}"),
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
    pub(crate) line: Option<Line>,
}

impl Reference {
    /// What steers this very cgroup.
    pub(crate) fn held_at(&self, place: &str) -> Option<Held> {
        let held = |name, spec, space, line| Held { place: place.to_owned(), name, spec, space, line };
        let of_policy = |name: &str| {
            let InForce { policy, line } = self.policy(name)?;
            Some(held(Some(policy.name), policy.spec, Space::Here, line.filter(|line| self.exists(*line))))
        };
        match self.manual.get(place) {
            Some(Holder::Own { spec, space, line }) => {
                Some(held(None, *spec, *space, line.filter(|line| self.exists(*line))))
            }
            // Closed is closed, also where the policy exempted.
            Some(Holder::Named { name, last }) => {
                Some(of_policy(name).unwrap_or_else(|| held(Some(*name), last.closed(), Space::Here, None)))
            }
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
                for way in Way::ALL.into_iter().filter(|way| !matches!(way, Way::Kept | Way::Accepted)) {
                    answers.insert(Asked { place: place.clone(), space, way }, self.answer(place, space, way));
                }
            }
        }
        for (place, space) in self.kept.keys() {
            let asked = Asked { place: place.clone(), space: *space, way: Way::Kept };
            answers.insert(asked, self.answer_kept(place, *space));
        }
        for (place, space) in self.accepted.keys() {
            let asked = Asked { place: place.clone(), space: *space, way: Way::Accepted };
            answers.insert(asked, self.answer_accepted(place, *space));
        }
        for (asked, answer) in &mut answers {
            if known::waives(self, asked) {
                answer.must = None;
            }
        }
        answers
    }

    /// What was right for those who are asked about now: a cgroup that was not there is as the one around it.
    pub(crate) fn answers_for<'a>(&self, asked: impl Iterator<Item = &'a Asked>) -> BTreeMap<Asked, Answer> {
        let answer = |asked: &Asked| match asked.way {
            Way::Kept if self.kept.contains_key(&(asked.place.clone(), asked.space)) => {
                Some(self.answer_kept(&asked.place, asked.space))
            }
            Way::Accepted if self.accepted.contains_key(&(asked.place.clone(), asked.space)) => {
                Some(self.answer_accepted(&asked.place, asked.space))
            }
            Way::Kept | Way::Accepted => None,
            way => Some(self.answer(&asked.place, asked.space, way)),
        };
        asked.filter_map(|asked| Some((asked.clone(), answer(asked)?))).collect()
    }

    pub(super) fn answer(&self, place: &str, space: Space, way: Way) -> Answer {
        let to = To::of(way);
        let unsteered = Answer::by(self.by_main(space, to));
        let Some(held) = self.holder(place).filter(|held| !held.spec.exempts()) else { return unsteered };
        if held.space != space {
            return if held.spec.refuses { Answer::by(None) } else { unsteered };
        }
        if held.spec.marks() {
            return self.answer_marked(&held, way);
        }
        let is_steer = held.spec.level == Level::Steer;
        match (way, held.line) {
            // Its binding is lost, and only strict puts it back.
            (Way::Disconnected, line) if is_steer => Answer::within(line.into_iter().chain(self.default_line(space))),
            (Way::Disconnected, line) => Answer::within(line),
            (Way::Dns, line) => Answer { resolver: held.spec.dns, ..Answer::by(line) },
            // A datagram that is not connected is looked at by strict only.
            (Way::Host, line) if is_steer => Answer::within(line.into_iter().chain([Line::loopback(space)])),
            (Way::Host | Way::HostTcp, _) => Answer::by(None),
            // Of the addresses of this host, a bound socket reaches those of its uplink.
            (Way::Own, Some(line)) if line.number == 0 => Answer::by(Some(Line::loopback(space))),
            // Closed for good, it may have been marked before.
            (Way::Own, None) => Answer::within([Line::loopback(space)]),
            (_, line) => Answer::by(line),
        }
    }

    /// A socket from before goes by what it is bound to, unless the policy holds it back or binds it.
    fn answer_kept(&self, place: &str, space: Space) -> Answer {
        self.answer_from_before(place, space, &self.kept[&(place.to_owned(), space)])
    }

    pub(super) fn answer_accepted(&self, place: &str, space: Space) -> Answer {
        let accepted = &self.accepted[&(place.to_owned(), space)];
        let answer = self.answer_from_before(place, space, &accepted.bindings);
        Answer { must: answer.must.filter(|must| accepted.by == Some(*must)), ..answer }
    }

    /// A socket that is left of a removed cgroup sends as before, or not.
    fn answer_from_before(&self, place: &str, space: Space, bindings: &Bindings) -> Answer {
        let answer = self.answer_of_bindings(place, space, bindings);
        if place.starts_with(REMOVED) { Answer { must: None, ..answer } } else { answer }
    }

    fn answer_of_bindings(&self, place: &str, space: Space, bindings: &Bindings) -> Answer {
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
            return if held.spec.refuses { Answer { must: None, ..own } } else { own };
        }
        if held.spec.marks() {
            let routed = self.answer_marked(&held, Way::Kept);
            if *bindings == BTreeSet::from([Binding::Mark(Mark::of(&held))]) {
                return routed;
            }
            if held.spec.level == Level::Steer && !held.spec.rebinds {
                return own;
            }
            // The programs let it out where the routes lead, and by the uplink.
            let is_open = is_stale || held.spec.level == Level::Steer;
            let own = own.may.into_iter().filter(|_| is_open);
            return Answer::within(own.chain(routed.may).chain(held.line));
        }
        match (held.spec.rebinds, held.spec.level) {
            (true, _) => Answer::within(
                own.may
                    .into_iter()
                    .filter(|line| is_stale || held.spec.level == Level::Steer || held.line == Some(*line))
                    .chain(held.line),
            ),
            (false, Level::Steer) => own,
            (false, Level::Strict) => {
                let must = own.must.filter(|must| held.line == Some(*must));
                Answer {
                    must,
                    may: own
                        .may
                        .into_iter()
                        .chain(held.line)
                        .filter(|line| is_stale || held.line == Some(*line))
                        .collect(),
                    resolver: false,
                }
            }
        }
    }

    /// What a new socket is bound to; the error is that there is none.
    pub(crate) fn binding(&self, place: &str, space: Space) -> Result<Binding, ()> {
        match self.holder(place) {
            Some(held) if held.spec.exempts() => Ok(Binding::None),
            Some(held) if held.space != space => {
                if held.spec.refuses {
                    Err(())
                } else {
                    Ok(Binding::None)
                }
            }
            Some(held) => Ok(held.binding()),
            None => Ok(Binding::None),
        }
    }

    /// What a policy may bind kept sockets of a cgroup to.
    pub(super) fn binds_kept(&self, place: &str, space: Space) -> Option<Binding> {
        let held = self.holder(place).filter(|held| !held.spec.exempts() && held.space == space)?;
        (held.spec.rebinds || held.spec.level == Level::Strict).then_some(held.binding())
    }

    /// The mark that new sockets of a cgroup get.
    pub(super) fn mark(&self, place: &str, space: Space) -> Option<Mark> {
        let held = self.holder(place).filter(|held| held.spec.marks() && held.space == space)?;
        Some(Mark::of(&held))
    }
}

impl Held {
    fn binding(&self) -> Binding {
        if self.spec.marks() { Binding::Mark(Mark::of(self)) } else { Binding::Line(self.line.unwrap_or(CLOSED)) }
    }
}
