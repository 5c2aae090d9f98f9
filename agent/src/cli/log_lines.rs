//! Lines on standard error, in one of two formats: with time and level for a terminal or file, or for the journal with the
//! priority that sd-daemon(3) describes, `<N>` in front of each line, and without a time, because the journal adds it.

use std::{fmt::Write as _, io::Write as _};

use log::Level;
use nix::sys::stat::fstat;

/// Starts logging, at the level of STEER_LOG or else at `default_level`.
pub fn init(default_level: &str) {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::new().filter_or("STEER_LOG", default_level));
    builder.format_target(false);
    if is_journal() {
        builder.format(|line, record| line.write_all(prefixed(record.level(), &record.args().to_string()).as_bytes()));
    }
    builder.init();
}

/// Prints why the command failed.
pub fn complain(reason: &str) {
    let lines = format!("steer: {reason}\n");
    let lines = if is_journal() { prefixed(Level::Error, &lines) } else { lines };
    // There is nowhere to report that standard error takes no more.
    let _ = std::io::stderr().lock().write_all(lines.as_bytes());
}

/// Whether standard error is the stream to the journal that JOURNAL_STREAM names. A process may inherit the variable without
/// that standard error.
fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stderr| named == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Each line of a text is a separate entry in the journal.
fn prefixed(level: Level, text: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    text.lines().fold(String::new(), |mut lines, line| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "<{priority}>{line}");
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(prefixed(Level::Error, "one\ntwo"), "<3>one\n<3>two\n");
        assert_eq!(prefixed(Level::Info, "ready"), "<6>ready\n");
    }
}
