//! The lines about stopped traffic in the daemon's log: for each policy and reason one line a minute at most.
//!
//! **Invariant:** pure; the caller passes the time. Every event is counted in one line.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::Event;

/// From one line to the next of the same policy and reason.
const PERIOD: Duration = Duration::from_mins(1);

/// What is to be logged.
#[derive(Debug, Default)]
pub struct Journal(BTreeMap<Key, Kind>);

/// Policy, reason, and whether the policy observes.
type Key = (String, String, bool);

/// The events of one policy and reason.
#[derive(Debug)]
struct Kind {
    /// When the last line was written.
    said: Instant,
    /// The events since then.
    count: u64,
    /// The last one that says more than its count.
    last: String,
}

impl Journal {
    /// Takes an event in. The first of its kind in a minute is a line.
    pub fn add(&mut self, event: &Event, now: Instant) -> Option<String> {
        if event.uplink.is_some() {
            return None;
        }
        let key = (event.policy.clone().unwrap_or_default(), event.reason.to_string(), event.observed);
        let last = described(event);
        let Some(kind) = self.0.get_mut(&key) else {
            let kind = Kind { said: now, count: event.count, last: last.unwrap_or_default() };
            let line = kind.line(&key);
            self.0.insert(key, Kind { count: 0, ..kind });
            return Some(line);
        };
        kind.count += event.count;
        if let Some(last) = last {
            kind.last = last;
        }
        None
    }

    /// When [`Self::lines`] has something to say.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().map(|kind| kind.said + PERIOD).min()
    }

    /// The lines of the kinds whose minute is over.
    pub fn lines(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        self.0.retain(|key, kind| {
            let is_over = now >= kind.said + PERIOD;
            if is_over && kind.count > 0 {
                lines.push(kind.line(key));
                (kind.said, kind.count) = (now, 0);
                return true;
            }
            !is_over
        });
        lines
    }
}

impl Kind {
    fn line(&self, (policy, reason, observed): &Key) -> String {
        let Self { count, last, .. } = self;
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
        let last = if last.is_empty() { String::new() } else { format!("; last: {last}") };
        let observed = if *observed { " observed" } else { "" };
        format!("policy {policy}: {reason}{observed} {times}{last}; `steer events --explain {reason}` says what to do")
    }
}

/// The program and the destination of an event. `None`: it has neither.
fn described(event: &Event) -> Option<String> {
    let program = match (&event.comm, event.pid) {
        (Some(comm), Some(pid)) => Some(format!("{comm} (PID {pid})")),
        (Some(comm), None) => Some(comm.clone()),
        (None, Some(pid)) => Some(format!("PID {pid}")),
        (None, None) => event.cgroup.as_ref().map(ToString::to_string),
    };
    let to = event.destination().map(|to| format!("to {to}"));
    let by = event.interface.as_ref().map(|link| format!("by {link}"));
    let words: Vec<String> = program.into_iter().chain(to).chain(by).collect();
    (!words.is_empty() && !event.summary).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use steer_common::{Counter, EventRecord, Peer};
    use tokio::time::Instant;

    use super::{Event, Journal};

    fn event(reason: Counter, comm: &[u8], policy: &[u8]) -> Event {
        let mut record = EventRecord { reason: reason as u32, pid: 42, ..EventRecord::EMPTY };
        record.comm[..comm.len()].copy_from_slice(comm);
        record.policy_name[..policy.len()].copy_from_slice(policy);
        let address = steer_common::mapped(u32::from_ne_bytes([192, 0, 2, 1]));
        record.peer = Peer { address, port: 443, protocol: 6 };
        Event::of(&record, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn one_line_a_minute_for_each_policy_and_reason() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut journal = Journal::default();
        let stopped = |comm: &[u8]| event(Counter::StoppedEgress, comm, b"vpn");
        let first = journal.add(&stopped(b"curl"), at(0));
        assert_eq!(
            first.as_deref(),
            Some(
                "policy vpn: stopped_egress once; last: curl (PID 42) to 192.0.2.1:443; `steer events --explain stopped_egress` says what \
                 to do"
            )
        );
        let observed = Event { observed: true, ..stopped(b"curl") };
        let line = journal.add(&observed, at(0)).expect("a kind of its own");
        assert!(line.starts_with("policy vpn: stopped_egress observed once; "), "{line}");
        // Another policy and another reason have lines of their own.
        assert!(journal.add(&event(Counter::StoppedEgress, b"curl", b"other"), at(1)).is_some());
        assert!(journal.add(&event(Counter::StoppedLocal, b"curl", b"vpn"), at(1)).is_some());
        for _ in 0..1000 {
            assert_eq!(journal.add(&stopped(b"curl"), at(2)), None);
        }
        let summary = Event { summary: true, count: 500, comm: None, pid: None, peer: None, ..stopped(b"wget") };
        assert_eq!(journal.add(&stopped(b"wget"), at(3)), None);
        assert_eq!(journal.add(&summary, at(3)), None);
        assert_eq!((journal.due(), journal.lines(at(59))), (Some(at(60)), Vec::new()));
        let lines = journal.lines(at(60));
        assert!(lines.len() == 1 && lines[0].contains("1501 times; last: wget (PID 42)"), "{lines:?}");
        assert_eq!(journal.due(), Some(at(61)));
        // A quiet minute ends it.
        assert_eq!(journal.lines(at(120)), Vec::<String>::new());
        assert_eq!(journal.due(), None);
        assert!(journal.add(&stopped(b"curl"), at(121)).is_some());
    }
}
