//! The command line of an OCI runtime, such as runc or crun. Pure.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use thiserror::Error;

/// Options before the command that take the next word as their value.
const WITH_VALUE: [&str; 11] = [
    "--root",
    "-r",
    "--log",
    "-l",
    "--log-format",
    "--log-level",
    "--criu",
    "--rootless",
    "--cgroup-manager",
    "--config",
    "--handler",
];
/// Commands that do not start a container's program, or start it in a steered cgroup.
const OTHERS: [&str; 18] = [
    "checkpoint",
    "create",
    "events",
    "exec",
    "features",
    "help",
    "h",
    "info",
    "kill",
    "list",
    "mounts",
    "pause",
    "ps",
    "resume",
    "spec",
    "state",
    "update",
    "version",
];

/// A call of a runtime that steer does not know, and so cannot prove to be harmless.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no command of an OCI runtime that steer knows; it is not run, because it could start a container that is not steered"
)]
pub struct UnknownCall(OsString);

/// The action of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Executes the program of a container that has been created.
    Start {
        /// The container's id.
        id: OsString,
    },
    /// Creates and starts in one step, so steer cannot act in between.
    Run {
        /// The directory with the configuration.
        bundle: PathBuf,
    },
    /// Removes a container.
    Delete,
    /// Nothing that concerns steer.
    Other,
}

/// A parsed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The number of words before the command.
    pub options: usize,
    /// Its action.
    pub action: Action,
}

impl Call {
    /// Reads a runtime's arguments.
    pub fn parse(arguments: &[OsString]) -> Result<Self, UnknownCall> {
        let mut options = 0;
        while let Some(option) = arguments.get(options).filter(|word| is_option(word)) {
            let takes_next = WITH_VALUE.iter().any(|known| option == known);
            options += if takes_next { 2 } else { 1 };
        }
        let Some(command) = arguments.get(options) else {
            // `--version`, `--help`, or nothing.
            return Ok(Self { options: arguments.len(), action: Action::Other });
        };
        let rest = &arguments[options + 1..];
        let action = match command.to_str() {
            // Its own options take no value, and its one word is the id.
            Some("start") => match rest.iter().rfind(|word| !is_option(word)) {
                Some(id) => Action::Start { id: id.clone() },
                None => Action::Other,
            },
            Some("run" | "restore") => Action::Run { bundle: bundle(rest) },
            Some("delete") => Action::Delete,
            Some(known) if OTHERS.contains(&known) => Action::Other,
            _ => return Err(UnknownCall(command.clone())),
        };
        Ok(Self { options, action })
    }
}

fn is_option(word: &OsStr) -> bool {
    word.as_bytes().starts_with(b"-")
}

/// `--bundle DIR`, `--bundle=DIR`, `-b DIR`, or else the working directory.
fn bundle(words: &[OsString]) -> PathBuf {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--bundle" || word == "-b" || word == "-bundle" {
            return words.next().map(PathBuf::from).unwrap_or_default();
        }
        if let Some(directory) = word.as_bytes().strip_prefix(b"--bundle=") {
            return PathBuf::from(OsStr::from_bytes(directory));
        }
    }
    PathBuf::from(".")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{Action, Call};

    fn call(line: &str) -> Option<Call> {
        Call::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn calls_as_docker_and_podman_make_them() {
        let start = |id: &str| Action::Start { id: id.into() };
        let cases = [
            (
                "--root /var/run/docker/runtime-runc/moby --log /x/log.json --log-format json start 5ad",
                Some((6, start("5ad"))),
            ),
            ("--systemd-cgroup --root=/run/crun start 5ad", Some((2, start("5ad")))),
            ("--root /r create --bundle /b --pid-file /p 5ad", Some((2, Action::Other))),
            ("--root /r delete --force 5ad", Some((2, Action::Delete))),
            ("run -d --bundle=/b 5ad", Some((0, Action::Run { bundle: "/b".into() }))),
            ("restore -b /b 5ad", Some((0, Action::Run { bundle: "/b".into() }))),
            ("run 5ad", Some((0, Action::Run { bundle: ".".into() }))),
            ("--version", Some((1, Action::Other))),
            ("features", Some((0, Action::Other))),
            ("start", Some((0, Action::Other))),
            ("", Some((0, Action::Other))),
            // `new` may take `value` as its own: then this is a start.
            ("--new value start 5ad", None),
            ("launch 5ad", None),
        ];
        for (line, want) in cases {
            assert_eq!(call(line).map(|call| (call.options, call.action)), want, "{line}");
        }
    }
}
