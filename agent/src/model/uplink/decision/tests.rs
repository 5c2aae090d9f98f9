//! Decisions of a group, by the states of its members.

use super::{Choice, Decision, LINGER_NS, Member, Rules, Why, carrying, decide, deciding, has};
use crate::model::spec::{AllDown, OnReturn};
use crate::model::uplink::{
    Family, PerFamily,
    choice::{BUCKETS, CLOSED},
    health::State::{self, Down, Held, Suspect, Up},
};

const DEFAULT: Rules = Rules { on_return: None, all_down: AllDown::Keep };

/// A group whose last decision is in force.
struct Group {
    members: Vec<Member>,
    rules: Rules,
    choice: PerFamily<Choice>,
    now: u64,
}

impl Group {
    /// Members by tier. Those of the tiers behind the first are metered.
    fn new(tiers: &[u8]) -> Self {
        let states = PerFamily { v4: Up, v6: Up };
        let member = |(key, tier): (u64, &u8)| Member {
            key,
            tier: PerFamily { v4: *tier, v6: *tier },
            weight: 1,
            metered: *tier > 1,
            present: true,
            states,
        };
        let members = (0..).zip(tiers).map(member).collect();
        Self { members, rules: DEFAULT, choice: PerFamily::default(), now: 1 }
    }

    /// Sets the states of IPv4. The result is: who carries, whose sockets are ended.
    fn v4(&mut self, states: &[State]) -> (u8, Vec<(usize, Why)>) {
        for (member, state) in self.members.iter_mut().zip(states) {
            member.states.v4 = *state;
        }
        let decision = self.decide();
        assert!(decision.endings.iter().all(|ending| ending.family == Family::V4));
        let endings = decision.endings.iter().map(|ending| (ending.member, ending.why)).collect();
        (carrying(&decision.choice.v4.pick), endings)
    }

    /// Sets the states of both families, which then have the same result.
    fn both(&mut self, states: &[State]) -> (u8, Vec<(usize, Why)>) {
        for (member, state) in self.members.iter_mut().zip(states) {
            member.states = PerFamily { v4: *state, v6: *state };
        }
        let Decision { choice, endings, .. } = self.decide();
        assert_eq!(choice.v4, choice.v6);
        let of = |family| endings.iter().filter(move |ending| ending.family == family);
        let of = |family| of(family).map(|ending| (ending.member, ending.why)).collect::<Vec<_>>();
        assert_eq!(of(Family::V4), of(Family::V6));
        (carrying(&choice.v4.pick), of(Family::V4))
    }

    fn decide(&mut self) -> Decision {
        let decision = decide(&self.members, &self.choice, self.rules, self.now);
        self.choice = decision.choice;
        decision
    }
}

#[test]
fn a_failure_by_family() {
    let mut group = Group::new(&[1, 2]);
    assert_eq!(group.v4(&[Up, Up]), (0b01, vec![]));
    assert_eq!(group.v4(&[Suspect, Up]), (0b01, vec![]));
    let v6 = group.choice.v6;
    assert_eq!(group.v4(&[Down, Up]), (0b10, vec![(0, Why::Failed)]));
    assert_eq!(group.choice.v6, v6, "IPv6 is untouched");
    assert_eq!(group.v4(&[Down, Up]), (0b10, vec![]), "once");
    assert_eq!(group.v4(&[Held, Up]), (0b10, vec![]));
    assert_eq!(group.v4(&[Up, Up]), (0b01, vec![]));
    group.now += LINGER_NS;
    assert_eq!(group.v4(&[Up, Up]), (0b01, vec![(1, Why::Displaced)]), "it is metered");
}

#[test]
fn lingering() {
    let mut group = Group::new(&[1, 2]);
    group.rules.on_return = Some(OnReturn::Linger);
    group.v4(&[Down, Up]);
    group.v4(&[Up, Up]);
    assert_eq!(group.decide().wake_ns, Some(1 + LINGER_NS));
    group.now += LINGER_NS - 1;
    assert_eq!(group.v4(&[Down, Up]), (0b10, vec![(0, Why::Failed)]));
    group.now += LINGER_NS;
    assert_eq!(group.v4(&[Down, Up]), (0b10, vec![]), "it carries again");
    assert_eq!(group.v4(&[Up, Up]), (0b01, vec![]));
    assert_eq!(group.v4(&[Up, Down]), (0b01, vec![(1, Why::Failed)]));
    assert_eq!(group.decide().wake_ns, None);
    group.rules.on_return = Some(OnReturn::Keep);
    group.v4(&[Down, Up]);
    group.v4(&[Up, Up]);
    group.now += 100 * LINGER_NS;
    assert_eq!(group.v4(&[Up, Up]), (0b01, vec![]));
    assert_eq!(group.v4(&[Up, Down]), (0b01, vec![(1, Why::Failed)]), "what stayed there fails with it");
}

#[test]
fn all_down() {
    let mut group = Group::new(&[1, 2]);
    assert_eq!(group.both(&[Down, Down]), (0b01, vec![]), "nothing to keep, so any that exists");
    group.members[0].present = false;
    assert_eq!(group.both(&[Down, Down]), (0b10, vec![]), "the kept one is gone");
    group.members[0].present = true;
    assert_eq!(group.both(&[Up, Up]), (0b01, vec![]));
    assert_eq!(group.both(&[Down, Down]), (0b01, vec![]), "kept, and nothing is touched");
    assert_eq!(group.both(&[Down, Held]), (0b10, vec![(0, Why::Failed)]), "better than none");
    assert_eq!(group.both(&[Held, Held]), (0b10, vec![]));
    assert_eq!(group.both(&[Down, Down]), (0b10, vec![]));
    group.rules.all_down = AllDown::Close;
    assert_eq!(group.both(&[Down, Down]), (0, vec![]), "closed, and nothing is touched");
    assert_eq!(group.choice.v4.pick, [CLOSED; BUCKETS]);
    assert_eq!(group.both(&[Up, Down]), (0b01, vec![(1, Why::Failed)]));
}

#[test]
fn a_family_that_no_member_has_follows_the_other() {
    let mut group = Group::new(&[1, 2]);
    group.members.iter_mut().for_each(|member| member.states.v6 = Down);
    assert_eq!(group.decide().choice.v6.pick, group.choice.v4.pick);
    group.members[0].states.v4 = Down;
    let endings = group.decide().endings;
    assert_eq!(
        endings.iter().map(|ending| (ending.member, ending.family)).collect::<Vec<_>>(),
        [(0, Family::V4), (0, Family::V6)]
    );
}

/// Both lines return from a power cut. The first that is up must not take over from one that works.
#[test]
fn a_held_member_that_carries_traffic_keeps_it() {
    let mut group = Group::new(&[1, 2]);
    group.both(&[Up, Up]);
    group.both(&[Down, Down]);
    for states in [[Held, Down], [Held, Held], [Held, Up], [Up, Up]] {
        assert_eq!(group.both(&states), (0b01, vec![]), "{states:?}");
    }
}

#[test]
fn a_flapping_backup_touches_nothing() {
    let mut group = Group::new(&[1, 2, 2]);
    group.v4(&[Up, Up, Up]);
    let before = group.choice;
    for states in [[Up, Down, Up], [Up, Held, Down], [Suspect, Up, Down], [Up, Suspect, Held], [Up, Down, Down]] {
        let decision = {
            group.v4(&states);
            group.decide()
        };
        assert_eq!((decision.choice, decision.endings, decision.wake_ns), (before, vec![], None), "{states:?}");
    }
}

#[test]
fn members_of_one_tier_share() {
    let mut group = Group::new(&[1, 1, 2]);
    assert_eq!(group.v4(&[Up, Up, Up]), (0b011, vec![]));
    let before = group.choice.v4.pick;
    assert_eq!(group.v4(&[Up, Down, Up]), (0b001, vec![(1, Why::Failed)]));
    assert_eq!(group.v4(&[Up, Held, Up]), (0b001, vec![]));
    assert_eq!(group.v4(&[Up, Up, Up]), (0b011, vec![]));
    assert_eq!(group.choice.v4.pick, before, "the same buckets");
}

#[test]
fn who_is_watched() {
    for (tiers, states, want) in [
        (&[1, 2, 3][..], &[Up, Up, Up][..], 0b011),
        (&[1, 2, 3], &[Up, Down, Up], 0b111),
        (&[1, 2, 3], &[Down, Up, Up], 0b111),
        (&[1, 1, 2, 3], &[Up, Down, Up, Up], 0b0111),
        (&[1, 2, 3, 4], &[Down, Up, Held, Up], 0b0111),
        (&[1, 2, 3], &[Down, Down, Down], 0b111),
    ] {
        let mut group = Group::new(tiers);
        group.v4(states);
        assert_eq!(group.decide().watched.v4, want, "{tiers:?} {states:?}");
    }
}

/// Any states in any order: nobody who is down is chosen beside one that works, nothing is ended that carries traffic or that
/// has no better member, and a decision is stable.
#[test]
fn any_states() {
    let mut seed = 88_172_645_463_325_252_u64;
    let mut number = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % below
    };
    for round in 0..60 {
        let tiers: Vec<_> = (0..=number(6)).map(|_| u8::try_from(1 + number(3)).expect("small")).collect();
        let mut group = Group::new(&tiers);
        group.rules.on_return = [None, Some(OnReturn::Linger), Some(OnReturn::Keep)][round % 3];
        group.rules.all_down = [AllDown::Keep, AllDown::Close][round % 2];
        for _ in 0..50 {
            group.now += number(20_000_000_000);
            for member in &mut group.members {
                if number(3) == 0 {
                    let state = [Up, Suspect, Down, Held][usize::try_from(number(4)).expect("small")];
                    if number(2) == 0 { member.states.v4 = state } else { member.states.v6 = state }
                }
            }
            let before = group.choice;
            let decision = group.decide();
            for family in Family::ALL {
                let decides = deciding(&group.members, family);
                let state = |at: usize| *group.members[at].states.get(decides);
                let chosen = carrying(&decision.choice.get(family).pick);
                let is_any = (0..tiers.len()).any(|at| state(at) != Down);
                if is_any {
                    assert!(chosen != 0 && (0..tiers.len()).all(|at| !has(chosen, at) || state(at) != Down));
                } else if group.rules.all_down == AllDown::Keep {
                    assert!(chosen != 0 && decision.endings.is_empty());
                    assert!(chosen == carrying(&before.get(family).pick) || carrying(&before.get(family).pick) == 0);
                }
                let up = (0..tiers.len()).filter(|at| matches!(state(*at), Up | Suspect)).map(|at| tiers[at]).min();
                let best = (0..tiers.len()).filter(|at| has(chosen, *at)).map(|at| tiers[at]).min();
                assert!(up.is_none_or(|up| best.is_some_and(|best| best <= up)));
                for ending in decision.endings.iter().filter(|ending| ending.family == family) {
                    assert!(is_any && !has(chosen, ending.member) && has(before.get(family).holding, ending.member));
                    assert_eq!(ending.why == Why::Failed, matches!(state(ending.member), Down | Held));
                    assert!(ending.why == Why::Failed || best.is_some_and(|best| best < tiers[ending.member]));
                }
                assert_eq!(chosen & !decision.watched.get(family), 0);
            }
            assert!(decision.wake_ns.is_none_or(|at| at > group.now));
            let again = group.decide();
            assert_eq!((again.choice, again.endings.len()), (decision.choice, 0));
        }
    }
}
