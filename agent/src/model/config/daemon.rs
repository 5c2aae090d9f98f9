//! `[daemon]`: the settings of the daemon itself. It reads them when it starts; its options go before them.

use std::net::SocketAddr;

use strum::{EnumMessage, IntoStaticStr, VariantArray};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::reader::Reader;
use crate::model::spec::Word;

/// The name of the table.
pub(super) const NAME: &str = "daemon";
/// The keys of the table.
pub const DAEMON_KEYS: [&str; 3] = ["socket_group", "metrics", "log"];
/// More than the longest name of a group.
const GROUP_BYTES: usize = 64;

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonConfig {
    /// `socket_group`: the name or id of the group that may read through the API.
    pub socket_group: Option<String>,
    /// `metrics`: the loopback address and port where the metrics are also served.
    pub metrics: Option<SocketAddr>,
    /// `log`: what is logged.
    pub log: LogLevel,
}

/// What the daemon logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Errors and warnings.
    Warn,
    /// Also what is steered, and what is stopped.
    #[default]
    Info,
    /// Also each step.
    Debug,
}

impl Word for LogLevel {}

impl Reader<'_> {
    /// Reads the table, if it is there. Invalid values keep their defaults.
    pub(super) fn daemon(&mut self, file: &DeTable<'_>) -> DaemonConfig {
        let mut daemon = DaemonConfig::default();
        let Some(table) = file.get(NAME) else { return daemon };
        let Some(fields) = table.get_ref().as_table() else {
            self.wrong(NAME, table, "expected [daemon], with single brackets");
            return daemon;
        };
        for (key, value) in fields {
            let path = format!("{NAME}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "socket_group" => daemon.socket_group = self.short_text(&path, value, GROUP_BYTES),
                "metrics" => daemon.metrics = self.metrics(&path, value),
                "log" => match value.get_ref().as_str().map_or_else(|| Err(LogLevel::expected()), LogLevel::read) {
                    Ok(level) => daemon.log = level,
                    Err(expected) => self.wrong(&path, value, expected),
                },
                _ => {
                    let expected = format!("unknown key; expected {}", DAEMON_KEYS.join(", "));
                    self.problem(key.span(), &path, "", expected);
                }
            }
        }
        daemon
    }

    fn metrics(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Option<SocketAddr> {
        match value.get_ref().as_str().map(str::parse::<SocketAddr>) {
            Some(Ok(address)) if address.ip().is_loopback() => return Some(address),
            Some(Ok(_)) => self.wrong(
                path,
                value,
                "expected a loopback address, because clients of the metrics are not authenticated",
            ),
            _ => self.wrong(path, value, "expected a loopback address with a port, as \"127.0.0.1:9464\""),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{DaemonConfig, LogLevel};
    use crate::model::config::{Source, parse, parse_all};

    #[test]
    fn a_whole_table() {
        let text = "[daemon]\nsocket_group = \"steer\"\nmetrics = \"[::1]:9464\"\nlog = \"debug\"\n";
        let daemon = parse("f.toml", text).expect("valid").daemon;
        assert_eq!((daemon.socket_group.as_deref(), daemon.log), (Some("steer"), LogLevel::Debug));
        assert_eq!(daemon.metrics, "[::1]:9464".parse().ok());
        assert_eq!(parse("f.toml", "[daemon]\n").expect("valid").daemon, DaemonConfig::default());
    }

    #[test]
    fn mistakes() {
        let cases = [
            ("socket_group = \"\"", "f.toml:2:16: daemon.socket_group = \"\": expected a string of 1 to 63 bytes"),
            ("metrics = 9464", "f.toml:2:11: daemon.metrics = 9464: expected a loopback address with a port"),
            (
                "metrics = \"0.0.0.0:9464\"",
                "f.toml:2:11: daemon.metrics = \"0.0.0.0:9464\": expected a loopback address",
            ),
            (
                "log = \"verbose\"",
                "f.toml:2:7: daemon.log = \"verbose\": expected \"error\", \"warn\", \"info\" or \"debug\"",
            ),
            ("marks = 1", "f.toml:2:1: daemon.marks: unknown key; expected socket_group, metrics, log"),
        ];
        for (line, want) in cases {
            let problems = parse("f.toml", &format!("[daemon]\n{line}\n")).expect_err(line).to_string();
            assert!(problems.starts_with(want), "{line}: {problems}");
        }
        assert!(parse("f.toml", "daemon = 1\n").expect_err("no table").to_string().contains("expected [daemon]"));
        let source = |file: &str, text: &str| Source { file: file.to_owned(), text: text.to_owned() };
        let elsewhere = parse_all(&[source("a.toml", ""), source("policies.d/b.toml", "[daemon]\n")]);
        assert!(elsewhere.expect_err("elsewhere").to_string().contains("expected in a.toml only"));
    }
}
