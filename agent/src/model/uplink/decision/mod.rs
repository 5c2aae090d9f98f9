//! What a group does next: who gets which bucket, whose sockets are ended, who is probed.
//!
//! The lowest tier with a member that works is chosen. A held member works only if it carries traffic already, or if no
//! other works. Sockets of a member are ended when it failed, and 30 seconds after a better tier returned if they are to
//! linger.
//!
//! If no member works in one family, this family has the choice of the other: its sockets may carry the other family's packets. If no
//! member works at all, the last choice stays, or the members whose interface exists are chosen.
//!
//! **Invariant:** no socket is ended unless another member is usable. While both families have a member that works, they do not touch
//! each other.

#[cfg(test)]
mod tests;

use super::{
    Family, PerFamily,
    choice::{BUCKETS, CLOSED, Candidate, MOST_MEMBERS, Pick, pick},
    health::State,
};
use crate::model::spec::{AllDown, OnReturn};

/// How long sockets linger, in nanoseconds.
pub const LINGER_NS: u64 = 30_000_000_000;

/// A member as the decision sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Hash of its name.
    pub key: u64,
    /// The lowest tier that works carries the traffic.
    pub tier: PerFamily<u8>,
    /// Its share of its tier.
    pub weight: u16,
    /// Its traffic costs money.
    pub metered: bool,
    /// Its interface exists.
    pub present: bool,
    /// Its health.
    pub states: PerFamily<State>,
}

/// The rules of a group.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `None`: sockets on a metered member linger, others stay.
    pub on_return: Option<OnReturn>,
    /// When no member works.
    pub all_down: AllDown,
}

/// A set of members: bit n is the member at position n.
pub type Members = u8;

/// What is in force in one family. It is input of the next decision, and is kept with the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The member of each bucket.
    pub pick: Pick,
    /// The members that may have sockets.
    pub holding: Members,
    /// When the sockets of each member are ended, in nanoseconds since boot. Zero: they do not linger.
    pub linger_ns: [u64; MOST_MEMBERS],
}

impl Default for Choice {
    /// Closed, and no member has sockets.
    fn default() -> Self {
        Self { pick: [CLOSED; BUCKETS], holding: 0, linger_ns: [0; MOST_MEMBERS] }
    }
}

/// Why sockets are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Their member failed. With `on_fail = "keep"` the caller leaves them alone.
    Failed,
    /// A better tier returned [`LINGER_NS`] ago.
    Displaced,
}

/// All sockets of one member and family are to be ended, after the choice is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The position of the member.
    pub member: usize,
    /// The family of the sockets.
    pub family: Family,
    /// Why.
    pub why: Why,
}

/// What a group does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is in force from now on.
    pub choice: PerFamily<Choice>,
    /// The members that carry traffic now and did not before.
    pub joined: PerFamily<Members>,
    /// The members that carried traffic before and do not now.
    pub left: PerFamily<Members>,
    /// What is to be ended now.
    pub endings: Vec<Ending>,
    /// The members that are watched by probes: those that carry traffic, would be preferred if they worked, or would be next.
    /// Suspect ones are probed in any case.
    pub watched: PerFamily<Members>,
    /// When to decide again if no state changes, in nanoseconds since boot.
    pub wake_ns: Option<u64>,
}

/// Decides. Positions in `previous` are those in `members`, at most [`MOST_MEMBERS`].
pub fn decide(members: &[Member], previous: &PerFamily<Choice>, rules: Rules, now_ns: u64) -> Decision {
    let members = &members[..members.len().min(MOST_MEMBERS)];
    let mut endings = Vec::new();
    let mut wake_ns: Option<u64> = None;
    let mut watched = PerFamily::default();
    let choice = PerFamily::from_fn(|family| {
        let one = One { members, family, decides: deciding(members, family), previous: previous.get(family) };
        let usable = one.usable();
        let mut choice = one.choose(usable, rules.all_down);
        if usable != 0 {
            endings.extend(one.end(&mut choice, rules.on_return, now_ns));
            let next = choice.linger_ns.into_iter().filter(|at| *at > 0).min();
            wake_ns = wake_ns.into_iter().chain(next).min();
        }
        *watched.get_mut(family) = one.watched(usable);
        choice
    });
    let change = |from: &PerFamily<Choice>, to: &PerFamily<Choice>| {
        PerFamily::from_fn(|family| carrying(&to.get(family).pick) & !carrying(&from.get(family).pick))
    };
    let (joined, left) = (change(previous, &choice), change(&choice, previous));
    Decision { choice, joined, left, endings, watched, wake_ns }
}

/// The family whose states decide about this one.
fn deciding(members: &[Member], family: Family) -> Family {
    let works = |family| members.iter().any(|member| *member.states.get(family) != State::Down);
    let other = family.other();
    if works(family) || !works(other) { family } else { other }
}

/// The members that have a bucket.
pub fn carrying(pick: &Pick) -> Members {
    pick.iter().filter(|member| usize::from(**member) < MOST_MEMBERS).fold(0, |set, member| set | 1 << member)
}

/// The decision for one family.
struct One<'a> {
    members: &'a [Member],
    family: Family,
    /// The family whose states decide.
    decides: Family,
    previous: &'a Choice,
}

impl One<'_> {
    fn tier_of(&self, member: usize) -> u8 {
        *self.members[member].tier.get(self.decides)
    }

    fn state(&self, member: usize) -> State {
        *self.members[member].states.get(self.decides)
    }

    fn set(&self, is_in: impl Fn(usize) -> bool) -> Members {
        (0..self.members.len()).filter(|member| is_in(*member)).fold(0, |set, member| set | 1 << member)
    }

    /// The members that may be chosen.
    fn usable(&self) -> Members {
        let carried = carrying(&self.previous.pick);
        let works = self.set(|member| match self.state(member) {
            State::Up | State::Suspect => true,
            State::Held => has(carried, member),
            State::Down => false,
        });
        if works == 0 { self.set(|member| self.state(member) == State::Held) } else { works }
    }

    fn choose(&self, usable: Members, all_down: AllDown) -> Choice {
        let mut choice = *self.previous;
        let present = self.set(|member| self.members[member].present);
        choice.pick = match all_down {
            AllDown::Keep if usable == 0 && carrying(&self.previous.pick) & present == 0 => self.pick_of(present),
            AllDown::Keep if usable == 0 => {
                self.previous.pick.map(|member| if usize::from(member) < self.members.len() { member } else { CLOSED })
            }
            AllDown::Keep | AllDown::Close => self.pick_of(usable),
        };
        choice.holding |= carrying(&choice.pick) | carrying(&self.previous.pick);
        choice
    }

    /// The choice between these members.
    fn pick_of(&self, usable: Members) -> Pick {
        let candidate = |(at, member): (usize, &Member)| {
            let Member { key, weight, .. } = *member;
            Candidate { key, tier: self.tier_of(at), weight, usable: has(usable, at) }
        };
        pick(&self.members.iter().enumerate().map(candidate).collect::<Vec<_>>())
    }

    /// Whose sockets are ended now. Lingering ones are noted in `choice`.
    fn end(&self, choice: &mut Choice, on_return: Option<OnReturn>, now_ns: u64) -> Vec<Ending> {
        let carrying = carrying(&choice.pick);
        let tier = self.tier(carrying);
        let mut endings = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            let linger_ns = &mut choice.linger_ns[at];
            if has(carrying, at) || !has(choice.holding, at) {
                *linger_ns = 0;
                continue;
            }
            let default = if member.metered { OnReturn::Linger } else { OnReturn::Keep };
            let lingers =
                on_return.unwrap_or(default) == OnReturn::Linger && tier.is_some_and(|tier| tier < self.tier_of(at));
            let why = match self.state(at) {
                State::Down | State::Held => Some(Why::Failed),
                State::Up | State::Suspect if !lingers => {
                    *linger_ns = 0;
                    None
                }
                State::Up | State::Suspect if *linger_ns == 0 => {
                    *linger_ns = now_ns + LINGER_NS;
                    None
                }
                State::Up | State::Suspect => (now_ns >= *linger_ns).then_some(Why::Displaced),
            };
            if let Some(why) = why {
                *linger_ns = 0;
                choice.holding &= !(1 << at);
                endings.push(Ending { member: at, family: self.family, why });
            }
        }
        endings
    }

    /// The lowest tier of these members.
    fn tier(&self, members: Members) -> Option<u8> {
        (0..self.members.len()).filter(|at| has(members, *at)).map(|at| self.tier_of(at)).min()
    }

    /// Every tier up to the first behind the chosen one that has a member which could take over.
    fn watched(&self, usable: Members) -> Members {
        let Some(chosen) = self.tier(usable).filter(|_| self.decides == self.family) else { return self.set(|_| true) };
        let next = self.set(|member| self.tier_of(member) > chosen && self.state(member) != State::Down);
        let last = self.tier(next).unwrap_or(u8::MAX);
        self.set(|member| self.tier_of(member) <= last)
    }
}

const fn has(set: Members, member: usize) -> bool {
    set & 1 << member != 0
}
