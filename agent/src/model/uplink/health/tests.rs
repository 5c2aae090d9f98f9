//! The state machine, with a virtual clock.

use std::time::Duration;

use steer_common::uplink::HealthRecord as Record;

use super::{Event, Facts, Hand, Health, Reason, Rounds, Settings, State};
use crate::model::uplink::choice::{BUCKETS, Candidate, pick};
use crate::model::uplink::probe::Probe;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;
const ANSWERED: Event = Event::Answered(Duration::from_millis(20));
const NO_CARRIER: Event = Event::Facts(Facts { carrier: false, ..Facts::ALL });
const LINK: Event = Event::Facts(Facts::ALL);

fn settings(interval_ms: u64) -> Settings {
    let time = Duration::from_millis(interval_ms);
    let probe = Probe { interval: time, timeout: time, ..Probe::default() };
    Settings { rounds: Some(Rounds::from(&probe)), hold: Duration::from_secs(30) }
}

fn unprobed() -> Settings {
    Settings { rounds: None, hold: Duration::from_secs(30) }
}

/// A member, its line, and an engine that does what [`Health`] says, event by event.
struct Bed {
    health: Health,
    now: u64,
    /// The round that is out: when its result comes, and whether it is an answer.
    out: Option<(u64, bool)>,
    /// The changes of the state.
    log: Vec<(u64, State)>,
}

impl Bed {
    fn new(settings: Settings) -> Self {
        let now = 1000 * SECOND;
        Self { health: Health::new(settings, Facts::ALL, now), now, out: None, log: Vec::new() }
    }

    fn apply(&mut self, event: Event) {
        let before = self.health.state();
        let is_changed = self.health.apply(event, self.now);
        if self.health.state() != before {
            assert!(is_changed, "a silent change");
            assert_eq!(self.health.since_ns(), self.now);
            self.log.push((self.now, self.health.state()));
        }
    }

    /// Runs until `end`. `is_answered` is asked when a round is sent; an answer takes 20 ms.
    fn run(&mut self, end: u64, mut is_answered: impl FnMut(u64) -> bool) {
        loop {
            let round = self.health.probe(true).filter(|_| self.out.is_none());
            let due = [self.out.map(|(at, _)| at), round.map(|round| round.at_ns), self.health.wake()];
            let next = due.into_iter().flatten().min().unwrap_or(u64::MAX).max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            match (self.out, round) {
                (Some((at, is_answer)), _) if at <= next => {
                    self.out = None;
                    self.apply(if is_answer { ANSWERED } else { Event::Unanswered });
                }
                (None, Some(round)) if round.at_ns <= next => {
                    self.health.sent(next);
                    let is_answer = is_answered(next);
                    self.out = Some((next + if is_answer { 20 * MS } else { round.timeout_ns }, is_answer));
                }
                _ => self.apply(Event::Time),
            }
        }
    }

    fn run_for(&mut self, time: u64, is_answered: impl FnMut(u64) -> bool) {
        self.run(self.now + time, is_answered);
    }

    fn shows(&self, state: State, reason: Reason) {
        assert_eq!((self.health.state(), self.health.reason()), (state, reason), "{:?}", self.log);
    }
}

/// Numbers of a seed.
fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

#[test]
fn a_new_member_is_suspect_until_a_round_decides() {
    let mut bed = Bed::new(settings(1000));
    bed.shows(State::Suspect, Reason::New);
    bed.run_for(SECOND / 2, |_| true);
    bed.shows(State::Up, Reason::Works);
    assert_eq!(bed.health.loss(), (0, 1));
    let mut bed = Bed::new(settings(1000));
    bed.run_for(4 * SECOND, |_| false);
    bed.shows(State::Down, Reason::ProbesFail);
    bed.run_for(20 * SECOND, |_| true);
    assert_eq!(bed.health.state(), State::Held);
    assert_eq!(bed.health.record().flaps, 0, "it never worked before");
    assert_eq!(Health::new(unprobed(), Facts::ALL, 5).state(), State::Up);
}

#[test]
fn a_black_hole_behind_a_live_carrier() {
    for (interval, median, worst) in [(1000, 3000, 5000), (300, 1200, 1200)] {
        let mut times: Vec<_> = (0..100)
            .map(|part| {
                let mut bed = Bed::new(settings(interval));
                let cut = bed.now + 10 * SECOND + part * interval * MS / 100;
                bed.run(cut + 10 * SECOND, |sent| sent < cut);
                bed.shows(State::Down, Reason::ProbesFail);
                (bed.log.iter().rev().find(|(_, state)| *state == State::Down).expect("down").0 - cut) / MS
            })
            .collect();
        times.sort_unstable();
        assert!(times[50] < median && times[99] < worst, "{interval} ms: {} {}", times[50], times[99]);
    }
}

#[test]
fn a_slow_line_gets_the_whole_timeout() {
    let mut health = Health::new(settings(1000), Facts::ALL, 0);
    health.apply(Event::Answered(Duration::from_millis(700)), 1);
    health.apply(Event::Unanswered, 2);
    assert_eq!(health.probe(false).expect("suspect").timeout_ns, SECOND);
    health.apply(ANSWERED, 3);
    assert_eq!(health.probe(false), None, "up and not watched");
    health.apply(Event::Unanswered, 4);
    assert_eq!(health.probe(false).expect("suspect").timeout_ns, SECOND / 2);
}

#[test]
fn what_the_link_loses_acts_at_once() {
    for (facts, reason) in [
        (Facts { interface: false, ..Facts::ALL }, Reason::NoInterface),
        (Facts { carrier: false, ..Facts::ALL }, Reason::NoCarrier),
        (Facts { address: false, ..Facts::ALL }, Reason::NoAddress),
        (Facts { route: false, ..Facts::ALL }, Reason::NoRoute),
    ] {
        let mut bed = Bed::new(settings(1000));
        bed.run_for(10 * SECOND, |_| true);
        bed.apply(Event::Facts(facts));
        bed.shows(State::Down, reason);
        assert_eq!((bed.health.probe(true), bed.health.wake()), (None, None), "nothing to wait for");
        bed.apply(LINK);
        bed.shows(State::Down, Reason::Unproven);
        bed.run_for(6 * SECOND, |_| true);
        bed.shows(State::Held, Reason::Returned);
        bed.run_for(30 * SECOND, |_| true);
        bed.shows(State::Up, Reason::Works);
    }
    let mut bed = Bed::new(unprobed());
    bed.apply(NO_CARRIER);
    bed.apply(LINK);
    bed.shows(State::Held, Reason::Returned);
    bed.run_for(30 * SECOND, |_| true);
    bed.shows(State::Up, Reason::Works);
}

#[test]
fn hold_doubles_with_each_flap_and_is_forgotten() {
    let mut bed = Bed::new(unprobed());
    let mut holds = Vec::new();
    let mut flap = |bed: &mut Bed| {
        bed.apply(NO_CARRIER);
        bed.apply(LINK);
        let start = bed.now;
        bed.run_for(601 * SECOND, |_| true);
        bed.shows(State::Up, Reason::Works);
        holds.push((bed.log[bed.log.len() - 1].0 - start) / SECOND);
    };
    (0..8).for_each(|_| flap(&mut bed));
    bed.run_for(91 * MINUTE, |_| true);
    flap(&mut bed);
    bed.run_for(24 * 60 * MINUTE, |_| true);
    flap(&mut bed);
    assert_eq!(holds, [30, 60, 120, 240, 480, 600, 600, 600, 240, 30]);
}

#[test]
fn ten_percent_answered_switches_at_most_once() {
    for (interval, seeds) in [(1000, 200), (300, 100)] {
        for seed in 0..seeds {
            let mut bed = Bed::new(settings(interval));
            bed.run_for(10 * SECOND, |_| true);
            let mut number = numbers(seed + 1);
            bed.run_for(10 * MINUTE, |_| number(10) == 0);
            let down = bed.log.iter().filter(|(_, state)| *state == State::Down).count();
            let up = bed
                .log
                .iter()
                .skip(1)
                .zip(&bed.log)
                .filter(|((_, to), (_, from))| *from == State::Held && *to == State::Up);
            assert!(down >= 1 && up.count() == 0, "seed {seed}: {:?}", bed.log);
        }
    }
}

#[test]
fn a_backup_that_flaps_moves_nothing_of_a_good_line() {
    let (mut good, mut backup, mut number) = (Bed::new(settings(1000)), Bed::new(settings(1000)), numbers(3));
    for _ in 0..300 {
        backup.apply([NO_CARRIER, LINK, Event::TrafficFails][usize::try_from(number(3)).expect("small")]);
        backup.run_for(SECOND, |_| number(2) == 0);
        good.run(backup.now, |_| true);
        let carries = |bed: &Bed| matches!(bed.health.state(), State::Up | State::Suspect);
        let member = |key, tier, bed| Candidate { key, tier, weight: 1, usable: carries(bed) };
        assert_eq!(pick(&[member(1, 1, &good), member(2, 2, &backup)]), [0; BUCKETS]);
    }
    assert!(backup.log.len() > 1 && good.log.len() == 1, "{:?} {:?}", backup.log, good.log);
}

/// Held, a line with 2 % loss returns; one with 20 % loss does not.
#[test]
fn loss_while_held_costs_time() {
    let mut returned = [0, 0];
    for seed in 0..50 {
        for (at, percent) in [2, 20].into_iter().enumerate() {
            let mut bed = Bed::new(settings(1000));
            bed.run_for(SECOND, |_| true);
            (0..5).for_each(|_| [NO_CARRIER, LINK].into_iter().for_each(|event| bed.apply(event)));
            let mut number = numbers(seed + 1);
            bed.run_for(3 * MINUTE, |_| number(100) >= percent);
            returned[at] += u32::from(bed.log.iter().any(|(time, state)| *state == State::Up && *time > 1002 * SECOND));
        }
    }
    assert!(returned[0] >= 48 && returned[1] <= 10, "{returned:?}");
}

#[test]
fn connections_fail_while_probes_are_answered() {
    let mut bed = Bed::new(settings(1000));
    bed.run_for(10 * SECOND + 500 * MS, |_| true);
    bed.apply(Event::TrafficFails);
    bed.shows(State::Suspect, Reason::TrafficFails);
    assert!(bed.health.probe(false).expect("suspect").at_ns <= bed.now, "probed at once");
    (0..100).for_each(|_| bed.apply(Event::TrafficFails));
    bed.shows(State::Suspect, Reason::TrafficFails);
    bed.run_for(29 * SECOND, |_| true);
    bed.shows(State::Suspect, Reason::TrafficFails);
    bed.run_for(SECOND, |_| true);
    bed.shows(State::Up, Reason::Works);
    for _ in 0..3 {
        bed.apply(Event::TrafficFails);
        bed.run_for(SECOND, |_| true);
    }
    bed.shows(State::Down, Reason::TrafficFails);
    bed.run_for(5 * SECOND, |_| true);
    bed.shows(State::Held, Reason::Returned);
}

#[test]
fn without_probes_hints_decide() {
    let mut bed = Bed::new(unprobed());
    bed.apply(Event::TrafficFails);
    bed.shows(State::Suspect, Reason::TrafficFails);
    bed.run_for(31 * SECOND, |_| true);
    bed.shows(State::Up, Reason::Works);
    for _ in 0..3 {
        bed.apply(Event::TrafficFails);
        bed.now += SECOND;
    }
    bed.shows(State::Held, Reason::Returned);
}

#[test]
fn by_hand() {
    let mut bed = Bed::new(settings(1000));
    bed.run_for(10 * SECOND, |_| true);
    bed.apply(Event::Hand(Hand::Down));
    bed.shows(State::Down, Reason::ByHand);
    assert_eq!((bed.health.probe(true), bed.health.wake()), (None, None));
    for event in [NO_CARRIER, LINK, ANSWERED, Event::TrafficFails] {
        bed.apply(event);
        bed.shows(State::Down, Reason::ByHand);
    }
    let kept = Health::restore(&bed.health.record(), settings(1000), Facts::ALL, bed.now);
    assert_eq!((kept.state(), kept.hand()), (State::Down, Hand::Down), "a restart does not end maintenance");
    bed.apply(Event::Hand(Hand::Auto));
    bed.run_for(6 * SECOND, |_| true);
    assert_eq!((bed.health.state(), bed.health.record().flaps), (State::Held, 0));
    bed.apply(Event::Hand(Hand::Up));
    (0..9).for_each(|_| bed.apply(Event::Unanswered));
    bed.shows(State::Up, Reason::ByHand);
    bed.apply(NO_CARRIER);
    bed.shows(State::Down, Reason::NoCarrier);
    bed.apply(LINK);
    bed.shows(State::Up, Reason::ByHand);
    bed.apply(Event::Hand(Hand::Auto));
    bed.shows(State::Suspect, Reason::New);
}

#[test]
fn records_of_nonsense_are_new() {
    let record = Record { state: 9, reason: 0, flaps: 3, hand: 0, reserved: 0, since_ns: 1, deadline_ns: 2 };
    let health = Health::restore(&record, settings(1000), Facts::ALL, 77);
    assert_eq!((health.state(), health.reason(), health.since_ns()), (State::Suspect, Reason::New, 77));
    let late = Record { state: 3, reason: 11, since_ns: u64::MAX, deadline_ns: u64::MAX, ..record };
    let health = Health::restore(&late, settings(1000), Facts::ALL, 77);
    assert_eq!((health.state(), health.since_ns()), (State::Held, 77));
    assert!(health.wake().expect("held") <= 77 + 30 * MINUTE);
}

/// Random events: the state fits the hand and the link, a restart at any time changes nothing, and time alone ends no
/// state but held and suspect.
#[test]
fn any_events() {
    for seed in 0..300 {
        let mut number = numbers(seed + 1);
        let settings = if seed % 3 == 0 { unprobed() } else { settings(1000) };
        let (mut health, mut now, mut facts) = (Health::new(settings, Facts::ALL, SECOND), SECOND, Facts::ALL);
        for _ in 0..400 {
            now += number(3) * number(20) * SECOND / 4;
            let event = match number(20) {
                0 => Event::Hand(Hand::from_repr(u8::try_from(number(3)).expect("small")).expect("a word")),
                1..4 => {
                    facts = Facts { carrier: number(3) > 0, route: number(4) > 0, ..Facts::ALL };
                    Event::Facts(facts)
                }
                4..6 => Event::TrafficFails,
                6..9 => Event::Unanswered,
                9..12 => Event::Time,
                _ => ANSWERED,
            };
            let was = health.record();
            let is_changed = health.apply(event, now);
            let is = health.record();
            assert_eq!(is_changed, (was.state, was.reason, was.hand) != (is.state, is.reason, is.hand));
            if was.state != is.state {
                assert_eq!(is.since_ns, now);
            }
            match (health.hand(), facts.missing()) {
                (Hand::Down, _) => assert_eq!(health.state(), State::Down),
                (_, Some(reason)) => assert_eq!((health.state(), health.reason()), (State::Down, reason)),
                (Hand::Up, _) => assert_eq!(health.state(), State::Up),
                _ => {}
            }
            assert!(health.wake().is_none_or(|at| at > now && matches!(health.state(), State::Held | State::Suspect)));
            assert!(health.probe(true).is_none() || settings.rounds.is_some() && facts.missing().is_none());
            assert_eq!(Health::restore(&is, settings, facts, now).record(), is);
        }
    }
}
