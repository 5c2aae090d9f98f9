//! What was stopped of one command, for its user when it has ended.

use std::{collections::BTreeMap, io::Write as _, os::fd::AsRawFd as _};

use serde::{Deserialize, Serialize};
use steer_common::{Counter, LimitKey};

use super::{Event, Events, Reason};
use crate::{
    kernel::{self, Datapath, Pins},
    model::{lines::wrapped, quote::shown},
};

/// What was stopped for one reason, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The name of the reason.
    pub reason: String,
    /// The policy observes: it passed.
    pub observed: bool,
    /// How often.
    pub count: u64,
    /// The last of it, if it is known: the program and the destination.
    pub last: Option<String>,
}

/// What was stopped in a cgroup. `events`: those that are known.
pub fn in_cgroup(pins: &Pins, cgroup_id: u64, events: &[Event]) -> Result<Vec<Stopped>, kernel::Error> {
    let named = kernel::stopped_in(pins, cgroup_id)?.into_iter().filter_map(|(reason, count)| {
        let kind = LimitKey { reason, ..LimitKey::default() };
        let reason = Counter::of_index(kind.counter())?.name();
        let observed = kind.is_observed();
        let mut known = events.iter().rev().filter(|event| event.cgroup_id == cgroup_id && !event.summary);
        let last = known.find(|event| event.reason == reason && event.observed == observed).and_then(what);
        Some(Stopped { reason: reason.to_owned(), observed, count, last })
    });
    Ok(named.collect())
}

/// The events that no daemon reads, if all of them are those of this cgroup: nobody else is to read them.
pub fn unread(pins: &Pins, cgroup_id: u64) -> Vec<Event> {
    let read = || {
        let Some(datapath) = Datapath::open(pins)? else { return Ok(Vec::new()) };
        if datapath.attachments()?.iter().any(|attachment| attachment.cgroup_id != cgroup_id) {
            return Ok(Vec::new());
        }
        let Some(mut events) = Events::open(pins)? else { return Ok(Vec::new()) };
        Ok::<_, kernel::Error>(events.backlog()?.into())
    };
    read().unwrap_or_else(|error| {
        log::debug!("read the events of cgroup {cgroup_id}: {error}");
        Vec::new()
    })
}

fn what(event: &Event) -> Option<String> {
    let program = match (&event.comm, event.pid) {
        (Some(comm), Some(pid)) => Some(format!("{} (PID {pid})", shown(comm))),
        _ => None,
    };
    let option = event.option.as_ref().map(|option| format!("option {option}"));
    let destination = event.destination().map(|destination| format!("to {destination}"));
    let words: Vec<_> = program.into_iter().chain(option).chain(destination).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Says it on a terminal: for each reason what happened, and what to change. If nothing was stopped, it says nothing.
pub fn say(mut terminal: &std::fs::File, stopped: &[Stopped]) -> std::io::Result<()> {
    let lines = lines(stopped);
    if lines.is_empty() {
        return Ok(());
    }
    let width = width(terminal);
    // The shell has probably written its prompt.
    let text: Vec<_> = lines.iter().map(|line| wrapped(line, width, 2).replace('\n', "\r\n")).collect();
    terminal.write_all(format!("\r\n{}\r\n", text.join("\r\n")).as_bytes())
}

fn lines(stopped: &[Stopped]) -> Vec<String> {
    let mut lines = Vec::new();
    // A reason may have been observed and stopped.
    let mut cures = BTreeMap::new();
    for Stopped { reason: name, observed, count, last } in stopped {
        let Ok(reason) = name.parse::<Reason>() else { continue };
        let (observed, meaning) =
            if *observed { (" observed", "strict would stop this.") } else { ("", reason.meaning()) };
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
        let last = last.as_ref().map_or_else(String::new, |last| format!(", last {last}"));
        lines.push(format!("steer: {name}{observed} {times}{last}: {meaning}"));
        cures.insert(name, format!("steer: what to change for {name}: {}", reason.cure()));
    }
    lines.extend(cures.into_values());
    lines
}

/// The columns of a terminal.
fn width(terminal: &std::fs::File) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes a `winsize`, which outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Some(usize::from(size.ws_col)).filter(|columns| result == 0 && *columns > 0)
}

#[cfg(test)]
mod tests {
    use super::{Stopped, lines};

    #[test]
    fn what_was_stopped_is_told_with_what_to_change() {
        let last = Some("curl (PID 7), to 127.0.0.1:80".to_owned());
        let stopped = Stopped { reason: "stopped_local".to_owned(), observed: false, count: 2, last };
        let told = lines(&[stopped.clone(), Stopped { observed: true, count: 1, last: None, ..stopped }]);
        assert!(told[0].starts_with("steer: stopped_local 2 times, last curl (PID 7), to 127.0.0.1:80: A call to "));
        assert_eq!(told[1], "steer: stopped_local observed once: strict would stop this.");
        assert!(
            told.len() == 3 && told[2].starts_with("steer: what to change for stopped_local: `local = [\"host\"]`")
        );
        assert!(lines(&[]).is_empty());
    }
}
