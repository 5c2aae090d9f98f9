//! How the health of a group's members is probed: what is asked, how often, and how many answers decide.
//!
//! **Invariant:** a [`Probe`] without [`Probe::problems`] sends at most one packet or connection at a time to each target.

mod target;
mod url;

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;

pub use target::{DNS_PORT, Target};
pub use url::{Expect, Host, Url};

use super::Family;

/// The most targets of one probe.
pub const MAX_TARGETS: usize = 8;
/// The shortest interval and the shortest timeout.
pub const SHORTEST: Duration = Duration::from_millis(50);
/// The longest interval.
pub const LONGEST: Duration = Duration::from_hours(1);

/// The probes of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked, in this order.
    pub targets: Vec<Target>,
    /// How many targets must answer. In a family with fewer targets, all of them.
    pub need: u8,
    /// The time from one round to the next.
    pub interval: Duration,
    /// The time for each answer. At most the interval, so that rounds do not overlap.
    pub timeout: Duration,
    /// How many rounds in a row must fail before a member is down.
    pub fall: u8,
    /// How many rounds in a row must succeed before it is up again.
    pub rise: u8,
    /// Whether members are probed while no cgroup uses the group.
    pub idle: bool,
}

impl Default for Probe {
    /// The gateway only: steer asks nobody else unless it is told to.
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self {
            targets: vec![Target::Gateway],
            need: 1,
            interval: second,
            timeout: second,
            fall: 3,
            rise: 5,
            idle: false,
        }
    }
}

impl Probe {
    /// What is wrong: the key, and what was expected.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        let twice = self.targets.iter().map(Target::to_string).find(|target| !seen.insert(target.clone()));
        if self.targets.is_empty() || self.targets.len() > MAX_TARGETS {
            problems.push(("targets", format!("expected 1 to {MAX_TARGETS} targets")));
        } else if let Some(target) = twice {
            problems.push(("targets", format!("{target:?} is there twice, and would count twice")));
        }
        let count = |family| self.targets.iter().filter(|target| target.is_for(family)).count();
        let most = count(Family::V4).max(count(Family::V6));
        if !(1..=most.max(1)).contains(&usize::from(self.need)) {
            problems
                .push(("need", format!("expected 1 to {}, the number of targets that one family has", most.max(1))));
        }
        if !(SHORTEST..=LONGEST).contains(&self.interval) {
            problems.push(("interval", format!("expected {} to {}", shown(SHORTEST), shown(LONGEST))));
        } else if !(SHORTEST..=self.interval).contains(&self.timeout) {
            let interval = shown(self.interval);
            problems.push(("timeout", format!("expected {} to {interval}, the interval", shown(SHORTEST))));
        }
        for (key, value) in [("fall", self.fall), ("rise", self.rise)] {
            if value == 0 {
                problems.push((key, "expected 1 to 255 rounds".to_owned()));
            }
        }
        problems
    }

    /// The targets that need a resolver behind the member: URLs with a name.
    pub fn needing_resolver(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| target.name().is_some())
    }
}

/// Reads a duration such as `1s` or `300ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| format!("{text:?} is not a duration; expected one like \"1s\" or \"300ms\""))
}

/// A duration as [`duration`] reads it.
pub fn shown(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |duration| format!("{duration:#}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Probe, Target, duration, shown};

    #[test]
    fn durations() {
        for (text, milliseconds) in [("1s", 1000), ("300ms", 300), ("1m 30s", 90_000)] {
            let read = duration(text).expect(text);
            assert_eq!((read, shown(read)), (Duration::from_millis(milliseconds), text.to_owned()));
        }
        for text in ["", "1", "-1s", "fast"] {
            assert!(duration(text).expect_err(text).contains("300ms"));
        }
    }

    #[test]
    fn what_is_refused() {
        let probe = |change: fn(&mut Probe)| {
            let mut probe = Probe::default();
            change(&mut probe);
            probe
                .problems()
                .into_iter()
                .map(|(key, message)| format!("{key}: {message}"))
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(probe(|_| ()), "");
        for (change, want) in [
            ((|probe| probe.targets.clear()) as fn(&mut Probe), "targets: expected 1 to 8"),
            (|probe| probe.targets.push(Target::Gateway), "targets: \"gateway\" is there twice"),
            (|probe| probe.need = 0, "need: expected 1 to 1"),
            (|probe| probe.need = 2, "need: expected 1 to 1"),
            (|probe| probe.interval = Duration::from_millis(1), "interval: expected 50ms to 1h"),
            (|probe| probe.timeout = Duration::from_secs(2), "timeout: expected 50ms to 1s, the interval"),
            (|probe| probe.fall = 0, "fall: expected 1 to 255"),
            (|probe| probe.rise = 0, "rise: expected 1 to 255"),
        ] {
            assert!(probe(change).starts_with(want), "{want}: {:?}", probe(change));
        }
        let both = |need| {
            let read = |text: &str| Target::parse(text).expect("a target");
            let targets = ["gateway", "dns:192.0.2.1", "dns:[2001:db8::1]"].map(read).to_vec();
            Probe { targets, need, ..Probe::default() }
        };
        assert!(both(2).problems().is_empty());
        assert!(!both(3).problems().is_empty(), "no family has three");
    }
}
