//! What is right for whoever sends: by which link its packets leave, or that none do.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use steer_lab::prober::Way;

use super::{Bindings, CLOSED, Holder, Line, REMOVED, Reference, Space, outer, policy::Level, policy::Spec};
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
    fn by(line: Option<Line>) -> Self {
        Self { must: line, may: line.into_iter().collect(), resolver: false }
    }

    fn within(lines: impl IntoIterator<Item = Line>) -> Self {
        Self { must: None, may: lines.into_iter().collect(), resolver: false }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |line: &Line| format!("link {} {:?}", line.number, line.space);
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
    pub(crate) spec: Spec,
    pub(crate) space: Space,
    pub(crate) line: Option<Line>,
}

impl Reference {
    /// What steers this very cgroup.
    pub(crate) fn held_at(&self, place: &str) -> Option<Held> {
        let held = |spec, space, line| Held { place: place.to_owned(), spec, space, line };
        let of_policy = |name: &str| {
            let found = self.policy(name);
            found.map(|found| held(found.policy.spec, Space::Here, found.line.filter(|line| self.exists(*line))))
        };
        match self.manual.get(place) {
            Some(Holder::Own { spec, space, line }) => {
                Some(held(*spec, *space, line.filter(|line| self.exists(*line))))
            }
            // Closed is closed, also where the policy exempted.
            Some(Holder::Named { name, last }) => {
                let closed = Spec { uplink: "", ..*last };
                Some(of_policy(name).unwrap_or_else(|| held(closed, Space::Here, None)))
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

    fn answer(&self, place: &str, space: Space, way: Way) -> Answer {
        let unsteered = Answer::by(self.default_line(space));
        let Some(held) = self.holder(place).filter(|held| !held.spec.exempts()) else { return unsteered };
        if held.space != space {
            return if held.spec.refuses { Answer::by(None) } else { unsteered };
        }
        match way {
            // Its binding is lost, and only strict puts it back.
            Way::Disconnected if held.spec.level == Level::Steer => {
                Answer::within(held.line.into_iter().chain(self.default_line(space)))
            }
            Way::Disconnected => Answer::within(held.line),
            Way::Dns => Answer { resolver: held.spec.dns, ..Answer::by(held.line) },
            _ => Answer::by(held.line),
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
        let by = |binding: &Option<Line>| match binding {
            None => self.default_line(space),
            Some(line) => Some(*line).filter(|line| self.exists(*line)),
        };
        let by: BTreeSet<Option<Line>> = bindings.iter().map(by).collect();
        let own = match by.first() {
            Some(first) if by.len() == 1 => Answer::by(*first),
            _ => Answer::within(by.into_iter().flatten()),
        };
        // Nobody follows the links of a namespace without a process of the policy.
        let is_stale = place.starts_with(REMOVED) && space == Space::There;
        let Some(held) = self.holder(place).filter(|held| !held.spec.exempts()) else { return own };
        if held.space != space {
            return if held.spec.refuses { Answer { must: None, ..own } } else { own };
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
    pub(crate) fn binding(&self, place: &str, space: Space) -> Result<Option<Line>, ()> {
        match self.holder(place) {
            Some(held) if held.spec.exempts() => Ok(None),
            Some(held) if held.space != space => {
                if held.spec.refuses {
                    Err(())
                } else {
                    Ok(None)
                }
            }
            Some(held) => Ok(Some(held.line.unwrap_or(CLOSED))),
            None => Ok(None),
        }
    }

    /// What a policy may bind kept sockets of a cgroup to.
    pub(super) fn binds_kept(&self, place: &str, space: Space) -> Option<Line> {
        let held = self.holder(place).filter(|held| !held.spec.exempts() && held.space == space)?;
        (held.spec.rebinds || held.spec.level == Level::Strict).then_some(held.line.unwrap_or(CLOSED))
    }
}
