//! Lines on standard error, or in the system log. On standard error in one of two formats: with time and level for a terminal or file, or for the journal with the
//! priority that sd-daemon(3) describes, `<N>` in front of each line, and without a time, because the journal adds it.

use std::{ffi::CString, fmt::Write as _, io::Write as _};

use log::Level;
use nix::sys::stat::fstat;

use crate::model::quote::shown;

/// Starts logging of a command, whose lines look like its errors, at the level of STEER_LOG or else at `default_level`.
pub(super) fn init_command(default_level: &str) {
    if is_journal() {
        return init(default_level);
    }
    let mut builder = env_logger::Builder::from_env(env_logger::Env::new().filter_or("STEER_LOG", default_level));
    builder.format(|line, record| {
        let level = if record.level() == Level::Warn {
            "warning".to_owned()
        } else {
            record.level().to_string().to_lowercase()
        };
        writeln!(line, "steer: {level}: {}", printable(&record.args().to_string()))
    });
    builder.init();
}

/// Starts logging, at the level of STEER_LOG or else at `default_level`.
pub fn init(default_level: &str) {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::new().filter_or("STEER_LOG", default_level));
    builder.format_target(false);
    if is_journal() {
        builder.format(|line, record| line.write_all(prefixed(record.level(), &record.args().to_string()).as_bytes()));
    } else {
        builder.format(|line, record| {
            let (level, style) = (record.level(), line.default_level_style(record.level()));
            let text = printable(&record.args().to_string());
            writeln!(line, "[{} {style}{level:<5}{style:#}] {text}", line.timestamp())
        });
    }
    builder.init();
}

/// Lowers the level, unless STEER_LOG sets one.
pub(super) fn set_level(level: &str) {
    if let Ok(level) = level.parse()
        && std::env::var_os("STEER_LOG").is_none()
    {
        log::set_max_level(level);
    }
}

/// Starts logging of warnings and errors to the system log, which is the journal where systemd runs: for a process without
/// standard error.
pub(super) fn init_system_log() {
    static LOGGER: SystemLog = SystemLog;
    // SAFETY: the name lives as long as the program.
    unsafe { libc::openlog(c"steer-keeper".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

struct SystemLog;

impl log::Log for SystemLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // No control character is left, and so no NUL.
        let text = CString::new(printable(&record.args().to_string())).unwrap_or_default();
        // SAFETY: the format takes one string.
        unsafe { libc::syslog(priority(record.level()), c"%s".as_ptr(), text.as_ptr()) };
    }

    fn flush(&self) {}
}

/// Prints why the command failed.
pub fn complain(reason: &str) {
    let text = format!("steer: {}", printable(reason));
    let lines = if is_journal() { prefixed(Level::Error, &text) } else { text + "\n" };
    // There is nowhere to report that standard error takes no more.
    let _ = std::io::stderr().lock().write_all(lines.as_bytes());
}

/// Whether standard error is the stream to the journal that JOURNAL_STREAM names. A process may inherit the variable without
/// that standard error.
fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stderr| named == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// A text whose lines are [`shown`]. Names that can contain line breaks are shown where they become text.
fn printable(text: &str) -> String {
    text.lines().map(|line| shown(line).to_string()).collect::<Vec<_>>().join("\n")
}

fn priority(level: Level) -> i32 {
    match level {
        Level::Error => libc::LOG_ERR,
        Level::Warn => libc::LOG_WARNING,
        Level::Info => libc::LOG_INFO,
        Level::Debug | Level::Trace => libc::LOG_DEBUG,
    }
}

/// Each line of a text is a separate entry in the journal.
fn prefixed(level: Level, text: &str) -> String {
    let priority = priority(level);
    text.lines().fold(String::new(), |mut lines, line| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "<{priority}>{}", shown(line));
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(prefixed(Level::Error, "one\ntwo"), "<3>one\n<3>two\n");
        assert_eq!(prefixed(Level::Info, "ready \x1b[2J"), "<6>ready \\u{1b}[2J\n");
    }
}
