//! The health of one member in one family: a state machine with hysteresis.
//!
//! `fall` rounds of probes in a row that fail make a member down, `rise` that succeed make it held, and after `hold` it is
//! up. `hold` doubles with each flap, and a flap is forgotten after [`FORGET`] of health. A failed round while it is held
//! costs the time of ten, so a line that loses more than a tenth never gets back to up. The loss of the link, address or
//! route makes it down at once.
//!
//! **Invariant:** only [`Event`]s change the state, and nothing has to be called while [`Health::wake`] and
//! [`Health::probe`] are `None`.

mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use steer_common::uplink::HealthRecord;

pub use record::{Hand, Reason, State};

use super::probe::Probe;

/// The longest time for which flaps make a member held.
pub const LONGEST_HOLD: Duration = Duration::from_mins(10);

/// A member forgets one flap whenever it was up for this long.
pub const FORGET: Duration = Duration::from_mins(30);

/// How many intervals a failed round adds while held.
const PENALTY: u64 = 10;

/// For how long no hint may come until connections are taken to work again. The kernel repeats an alarm after 10 seconds.
const QUIET_NS: u64 = 30_000_000_000;

/// What stands for the interval where there are no probes.
const UNPROBED_INTERVAL_NS: u64 = 1_000_000_000;

/// How many hints in a row make a member down where there are no probes.
const UNPROBED_FALL: u8 = 3;

/// How often a member is probed, and how many rounds decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// From one round to the next.
    pub interval_ns: u64,
    /// How long a round waits for answers. At most the interval.
    pub timeout_ns: u64,
    /// How many in a row must fail.
    pub fall: u8,
    /// How many in a row must succeed.
    pub rise: u8,
}

impl From<&Probe> for Rounds {
    fn from(probe: &Probe) -> Self {
        let (interval_ns, timeout_ns) = (nanoseconds(probe.interval), nanoseconds(probe.timeout));
        Self { interval_ns, timeout_ns, fall: probe.fall, rise: probe.rise }
    }
}

/// The settings of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its probes. `None`: the link and hints decide.
    pub rounds: Option<Rounds>,
    /// How long it works before it is preferred again, after the first flap.
    pub hold: Duration,
}

/// What the kernel says of the link.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The interface exists.
    pub interface: bool,
    /// It is up and has a carrier.
    pub carrier: bool,
    /// It has an address of the family that packets can be sent from.
    pub address: bool,
    /// It has a default route of the family, in any table.
    pub route: bool,
}

impl Facts {
    /// Everything is there.
    pub const ALL: Self = Self { interface: true, carrier: true, address: true, route: true };

    /// The first that is missing.
    pub const fn missing(self) -> Option<Reason> {
        match self {
            Self { interface: false, .. } => Some(Reason::NoInterface),
            Self { carrier: false, .. } => Some(Reason::NoCarrier),
            Self { address: false, .. } => Some(Reason::NoAddress),
            Self { route: false, .. } => Some(Reason::NoRoute),
            _ => None,
        }
    }
}

/// What may change the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time of [`Health::wake`] has come.
    Time,
    /// The link changed, or not.
    Facts(Facts),
    /// A round of probes succeeded, after this time.
    Answered(Duration),
    /// A round of probes failed.
    Unanswered,
    /// Many connections of programs fail. At most one hint in each interval counts.
    TrafficFails,
    /// An administrator decided.
    Hand(Hand),
}

/// A round of probes that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// When. It may be in the past.
    pub at_ns: u64,
    /// How long it waits for answers. Half of the usual time if it is to confirm a failure and the last answer was fast.
    pub timeout_ns: u64,
}

/// The health of one member in one family.
#[derive(Clone, Debug)]
pub struct Health {
    settings: Settings,
    facts: Facts,
    state: State,
    reason: Reason,
    hand: Hand,
    flaps: u8,
    since_ns: u64,
    deadline_ns: u64,
    /// Rounds in a row.
    failures: u8,
    successes: u8,
    /// Hints in a row, when the last one counted, and when the last one came.
    hints: u8,
    counted_ns: u64,
    hint_ns: u64,
    /// When the last round was sent, and whether its result is missing. `None`: a round is due at once.
    sent_ns: Option<u64>,
    is_out: bool,
    /// The last results, the newest lowest; a failed one is 1.
    results: u32,
    result_count: u8,
    latency: Option<Duration>,
}

impl Health {
    /// A member that is new. It carries traffic until `fall` rounds have failed: nothing is known against it.
    pub fn new(settings: Settings, facts: Facts, now_ns: u64) -> Self {
        let record = HealthRecord {
            state: State::Suspect as u8,
            reason: Reason::New as u8,
            flaps: 0,
            hand: Hand::Auto as u8,
            reserved: 0,
            since_ns: now_ns,
            deadline_ns: now_ns + nanoseconds(FORGET),
        };
        Self::restore(&record, settings, facts, now_ns)
    }

    /// A member as an earlier daemon left it. Its settings may have changed. One with numbers that mean nothing is new.
    pub fn restore(record: &HealthRecord, settings: Settings, facts: Facts, now_ns: u64) -> Self {
        let words = (State::from_repr(record.state), Reason::from_repr(record.reason), Hand::from_repr(record.hand));
        let (Some(state), Some(reason), Some(hand)) = words else { return Self::new(settings, facts, now_ns) };
        let mut health = Self {
            settings,
            facts,
            state,
            reason,
            hand,
            flaps: record.flaps,
            since_ns: record.since_ns.min(now_ns),
            deadline_ns: record.deadline_ns.min(now_ns + nanoseconds(FORGET.max(settings.hold))),
            failures: 0,
            successes: 0,
            hints: u8::from(reason == Reason::TrafficFails),
            counted_ns: now_ns,
            hint_ns: now_ns,
            sent_ns: None,
            is_out: false,
            results: 0,
            result_count: 0,
            latency: None,
        };
        health.settle(now_ns);
        health
    }

    /// What is to be kept. It changes only if [`Self::apply`] says so, or while held.
    pub const fn record(&self) -> HealthRecord {
        HealthRecord {
            state: self.state as u8,
            reason: self.reason as u8,
            flaps: self.flaps,
            hand: self.hand as u8,
            reserved: 0,
            since_ns: self.since_ns,
            deadline_ns: self.deadline_ns,
        }
    }

    /// The state.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why it is in this state.
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Since when it is in this state, in nanoseconds since boot.
    pub const fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// What an administrator has decided.
    pub const fn hand(&self) -> Hand {
        self.hand
    }

    /// The latency of the last round that succeeded.
    pub const fn latency(&self) -> Option<Duration> {
        self.latency
    }

    /// How many of the last rounds, at most 32, failed; and of how many.
    pub const fn loss(&self) -> (u32, u8) {
        (self.results.count_ones(), self.result_count)
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    pub fn wake(&self) -> Option<u64> {
        match (self.hand, self.state, self.reason) {
            (Hand::Auto, State::Held, _) => Some(self.deadline_ns),
            (Hand::Auto, State::Suspect, Reason::TrafficFails) if self.failures == 0 => Some(self.quiet_ns()),
            _ => None,
        }
    }

    /// The next round of probes. `is_watched`: the member carries traffic, or would be next. One that is suspect is probed in
    /// any case, and one without a link, or in the hand of an administrator, never.
    pub fn probe(&self, is_watched: bool) -> Option<Round> {
        let rounds = self.settings.rounds?;
        if self.is_fixed() || !is_watched && self.state != State::Suspect {
            return None;
        }
        let is_confirming = self.state == State::Suspect && self.failures > 0;
        let is_fast = self.latency.is_some_and(|latency| nanoseconds(latency) < rounds.timeout_ns / 4);
        let timeout_ns = if is_confirming && is_fast { rounds.timeout_ns / 2 } else { rounds.timeout_ns };
        let at_ns = match self.sent_ns {
            // Its result is late: perhaps it was never sent.
            Some(sent) if self.is_out => sent + rounds.timeout_ns + rounds.interval_ns,
            Some(sent) if !is_confirming => sent + rounds.interval_ns,
            _ => 0,
        };
        Some(Round { at_ns, timeout_ns })
    }

    /// A round of probes is sent now.
    pub const fn sent(&mut self, now_ns: u64) {
        self.sent_ns = Some(now_ns);
        self.is_out = true;
    }

    /// A round of probes has shown nothing.
    pub const fn learned_nothing(&mut self) {
        self.is_out = false;
    }

    /// Takes an event. Returns whether the state or the reason changed.
    pub fn apply(&mut self, event: Event, now_ns: u64) -> bool {
        let before = (self.state, self.reason, self.hand);
        match event {
            Event::Time => {}
            Event::Facts(facts) => self.facts = facts,
            Event::Hand(hand) => self.hand = hand,
            Event::Answered(latency) => self.result(Some(latency), now_ns),
            Event::Unanswered => self.result(None, now_ns),
            Event::TrafficFails => self.hint(now_ns),
        }
        self.settle(now_ns);
        before != (self.state, self.reason, self.hand)
    }

    /// Whether probes and hints decide nothing.
    const fn is_fixed(&self) -> bool {
        !matches!(self.hand, Hand::Auto) || self.facts.missing().is_some()
    }

    fn result(&mut self, latency: Option<Duration>, now_ns: u64) {
        self.is_out = false;
        let Some(rounds) = self.settings.rounds.filter(|_| !self.is_fixed()) else { return };
        self.results = self.results << 1 | u32::from(latency.is_none());
        self.result_count = (self.result_count + 1).min(32);
        if latency.is_some() {
            self.latency = latency;
            (self.failures, self.successes) = (0, self.successes.saturating_add(1));
        } else {
            (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
            if self.state == State::Held {
                let later = self.deadline_ns.saturating_add(PENALTY * rounds.interval_ns);
                self.deadline_ns = later.min(now_ns + self.hold_ns());
            }
        }
        match (self.state, self.reason, latency) {
            (State::Up, _, None) => self.enter(State::Suspect, Reason::ProbeFailed, now_ns),
            (State::Suspect, Reason::New | Reason::ProbeFailed, Some(_)) => {
                self.enter(State::Up, Reason::Works, now_ns);
            }
            _ => {}
        }
        if self.failures >= rounds.fall.max(1) {
            self.fall(Reason::ProbesFail, now_ns);
        }
    }

    fn hint(&mut self, now_ns: u64) {
        if self.is_fixed() || !matches!(self.state, State::Up | State::Suspect) {
            return;
        }
        let is_first = self.reason != Reason::TrafficFails;
        self.hint_ns = now_ns;
        if is_first || now_ns >= self.counted_ns + self.interval_ns() {
            self.hints = if is_first { 1 } else { self.hints.saturating_add(1) };
            self.counted_ns = now_ns;
        }
        if is_first {
            self.sent_ns = self.sent_ns.filter(|_| self.is_out);
            self.enter(State::Suspect, Reason::TrafficFails, now_ns);
        }
        let fall = self.settings.rounds.map_or(UNPROBED_FALL, |rounds| rounds.fall.max(1));
        if self.hints >= fall && !is_first {
            self.fall(Reason::TrafficFails, now_ns);
        }
    }

    /// Goes where hand, link and time lead.
    fn settle(&mut self, now_ns: u64) {
        let missing = self.facts.missing();
        match (self.hand, missing) {
            (Hand::Down, _) => return self.set_by_hand(State::Down, now_ns),
            (_, Some(missing)) => return self.fall(missing, now_ns),
            (Hand::Up, None) => return self.set_by_hand(State::Up, now_ns),
            (Hand::Auto, None) => {}
        }
        match (self.state, self.reason, self.settings.rounds) {
            (State::Down, _, None) => self.hold(now_ns),
            (State::Down, reason, Some(rounds)) => {
                if !matches!(reason, Reason::ProbesFail | Reason::TrafficFails | Reason::Unproven) {
                    self.enter(State::Down, Reason::Unproven, now_ns);
                } else if self.successes >= rounds.rise.max(1) {
                    self.hold(now_ns);
                }
            }
            (State::Up, Reason::ByHand, Some(_)) => self.enter(State::Suspect, Reason::New, now_ns),
            (State::Up, Reason::ByHand, None) | (State::Suspect, Reason::New | Reason::ProbeFailed, None) => {
                self.enter(State::Up, Reason::Works, now_ns);
            }
            (State::Suspect, Reason::TrafficFails, _) if now_ns >= self.quiet_ns() && self.failures == 0 => {
                self.enter(State::Up, Reason::Works, now_ns);
            }
            _ => {}
        }
        if self.state == State::Held && now_ns >= self.deadline_ns {
            self.enter(State::Up, Reason::Works, now_ns);
        }
    }

    fn set_by_hand(&mut self, state: State, now_ns: u64) {
        self.flaps = self.flaps_left(now_ns);
        self.enter(state, Reason::ByHand, now_ns);
    }

    /// Down. It is a flap if it was not down or held before.
    fn fall(&mut self, reason: Reason, now_ns: u64) {
        if matches!(self.state, State::Up | State::Suspect) && self.reason != Reason::New {
            self.flaps = (self.flaps_left(now_ns) + 1).min(self.most_flaps());
        }
        self.enter(State::Down, reason, now_ns);
    }

    fn hold(&mut self, now_ns: u64) {
        self.enter(State::Held, Reason::Returned, now_ns);
    }

    fn enter(&mut self, state: State, reason: Reason, now_ns: u64) {
        let is_on = |state| matches!(state, State::Up | State::Suspect);
        let (from, was) = (self.state, self.reason);
        (self.state, self.reason) = (state, reason);
        if (from, was) == (state, reason) {
            return;
        }
        if from != state {
            self.since_ns = now_ns;
        }
        match state {
            State::Up | State::Suspect if is_on(from) => {}
            State::Up | State::Suspect => self.deadline_ns = now_ns + nanoseconds(FORGET),
            State::Held => self.deadline_ns = now_ns + self.hold_ns(),
            State::Down => self.deadline_ns = 0,
        }
        if state == State::Down {
            (self.failures, self.successes) = (0, 0);
        }
        if reason != Reason::TrafficFails {
            self.hints = 0;
        }
    }

    /// The flaps that are not forgotten.
    fn flaps_left(&self, now_ns: u64) -> u8 {
        if !matches!(self.state, State::Up | State::Suspect) || now_ns < self.deadline_ns {
            return self.flaps;
        }
        let forgotten = 1 + (now_ns - self.deadline_ns) / nanoseconds(FORGET);
        self.flaps.saturating_sub(u8::try_from(forgotten).unwrap_or(u8::MAX))
    }

    /// More flaps would not make it longer.
    fn most_flaps(&self) -> u8 {
        let doubled = |flaps: &u8| self.settings.hold.saturating_mul(1 << (flaps - 1)) >= LONGEST_HOLD;
        (1..=15).find(doubled).unwrap_or(1)
    }

    fn hold_ns(&self) -> u64 {
        let doubled = self.settings.hold.saturating_mul(1 << self.flaps.clamp(1, 16).saturating_sub(1));
        nanoseconds(doubled.min(LONGEST_HOLD.max(self.settings.hold)))
    }

    fn interval_ns(&self) -> u64 {
        self.settings.rounds.map_or(UNPROBED_INTERVAL_NS, |rounds| rounds.interval_ns)
    }

    /// When the last hint has been without another for long enough.
    fn quiet_ns(&self) -> u64 {
        self.hint_ns + QUIET_NS
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}
