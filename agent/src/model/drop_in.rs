//! The drop-in by which systemd attaches a service to its uplink before the first of its own commands.
//!
//! It is an `ExecCondition=` (systemd 243), for those come before every `ExecStartPre=`, also before those in the unit's own
//! file, which could make sockets. systemd starts it in the unit's cgroup; `+` leaves it all privileges whatever `User=` says.
//!
//! **Invariant:** no I/O. Whatever the words of a command contain, systemd hands them on as they are.

use std::{path::PathBuf, str::FromStr};

use thiserror::Error;

/// Name of the drop-in's file.
pub const FILE: &str = "50-steer.conf";
/// How every drop-in made here begins.
const HEADER: &str = "# Written by `steer unit`";
/// The longest name systemd takes, in bytes.
const NAME_BYTES: usize = 255;
/// Endings of the units that start no command of their own.
const OTHER_KINDS: [&str; 10] =
    [".automount", ".device", ".mount", ".path", ".scope", ".slice", ".socket", ".swap", ".target", ".timer"];

/// Not a unit that can have this drop-in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidUnit {
    /// systemd has no such names.
    #[error("{0:?} is not the name of a unit: expected one like x.service")]
    Name(String),
    /// It has no start of its own at which to attach.
    #[error(
        "{0} is not a service, and only services run a command before they start; let the daemon's configuration name its cgroup"
    )]
    Kind(String),
}

/// Name of a service, or of a template of services, with its ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service(String);

impl Service {
    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Where the drop-in goes, below the directory that holds units.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(format!("{}.d", self.0)).join(FILE)
    }
}

impl FromStr for Service {
    type Err = InvalidUnit;

    /// As systemctl, takes a name without an ending for that of a service.
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        if OTHER_KINDS.iter().any(|kind| text.ends_with(kind)) {
            return Err(InvalidUnit::Kind(text.to_owned()));
        }
        let stem = text.strip_suffix(".service").unwrap_or(text);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        let name = format!("{stem}.service");
        if stem.is_empty() || stem.starts_with('@') || name.len() > NAME_BYTES || !stem.chars().all(allowed) {
            return Err(InvalidUnit::Name(text.to_owned()));
        }
        Ok(Self(name))
    }
}

/// The text of the drop-in that runs `attach`, a program and its arguments, to which it adds the unit's name. `needs_daemon`:
/// what it attaches to is the daemon's.
pub fn text(service: &Service, attach: &[String], needs_daemon: bool) -> String {
    let wants = if needs_daemon { "Wants=steer.service\n" } else { "" };
    let attach = attach.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    // A status below 255 would skip the unit without failing it.
    format!(
        "{HEADER}; taken away by `steer unit --remove {name}`.\n\
         [Unit]\n\
         {wants}\
         After=steer.service\n\
         \n\
         [Service]\n\
         # Before the first command of the unit, in its cgroup. If it fails, so does the unit.\n\
         ExecCondition=+/bin/sh -c '\"$$@\" || exit 255' sh {attach} --unit %n\n",
        name = service.name()
    )
}

/// Whether a file holds a drop-in made here.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// A word of a command line as systemd reads it: without specifiers, variables and escapes.
fn quoted(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c)) {
        return word.to_owned();
    }
    let escaped = word.chars().fold(String::new(), |mut escaped, c| {
        match c {
            '%' | '$' => escaped.extend([c, c]),
            '"' | '\\' => escaped.extend(['\\', c]),
            _ => escaped.push(c),
        }
        escaped
    });
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let long = "x".repeat(NAME_BYTES);
        let name = |text: &str| Err(InvalidUnit::Name(text.to_owned()));
        let cases = [
            ("x.service", Ok("x.service.d/50-steer.conf")),
            ("x", Ok("x.service.d/50-steer.conf")),
            ("dev-a\\x2db@1:2.service", Ok("dev-a\\x2db@1:2.service.d/50-steer.conf")),
            ("x@.service", Ok("x@.service.d/50-steer.conf")),
            ("a.b", Ok("a.b.service.d/50-steer.conf")),
            ("x.slice", Err(InvalidUnit::Kind("x.slice".to_owned()))),
            ("", name("")),
            (".service", name(".service")),
            ("@x", name("@x")),
            ("../x", name("../x")),
            ("x y", name("x y")),
            (&long, name(&long)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Service>().map(|service| service.file()), want.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn words_survive_systemd() {
        for (word, want) in [
            ("/usr/bin/steer", "/usr/bin/steer"),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("50% of $HOME", "\"50%% of $$HOME\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("größer;", "\"größer;\""),
        ] {
            assert_eq!(quoted(word), want);
        }
    }

    #[test]
    fn the_whole_drop_in() {
        let service = "x".parse().expect("a name");
        let attach = ["/usr/bin/steer", "attach", "--policy=my vpn"].map(str::to_owned);
        let want = "# Written by `steer unit`; taken away by `steer unit --remove x.service`.
[Unit]
Wants=steer.service
After=steer.service

[Service]
# Before the first command of the unit, in its cgroup. If it fails, so does the unit.
ExecCondition=+/bin/sh -c '\"$$@\" || exit 255' sh /usr/bin/steer attach \"--policy=my vpn\" --unit %n
";
        assert_eq!(text(&service, &attach, true), want);
        assert!(is_ours(want) && !is_ours("[Service]\n"));
        assert!(!text(&service, &attach, false).contains("Wants="));
    }
}
