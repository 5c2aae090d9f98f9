//! The drop-in by which systemd attaches a service to its uplink before the service's first command.
//!
//! It is an `ExecCondition=` (systemd 243), which runs before every `ExecStartPre=`. An `ExecStartPre=` in the unit's own
//! file could make sockets. systemd runs it in the unit's cgroup. With `+` it has all privileges, whatever `User=` is.
//!
//! **Invariant:** no I/O. systemd passes the words of the command unchanged, whatever they contain.

use std::{path::PathBuf, str::FromStr};

use thiserror::Error;

/// Name of the drop-in's file.
pub const FILE: &str = "50-steer.conf";
/// The first words of every drop-in made here.
const HEADER: &str = "# Written by `steer unit`";
/// The longest unit name that systemd accepts, in bytes.
const NAME_BYTES: usize = 255;
/// Endings of units that run no commands.
const OTHER_KINDS: [&str; 10] =
    [".automount", ".device", ".mount", ".path", ".scope", ".slice", ".socket", ".swap", ".target", ".timer"];

/// Not a unit that can have this drop-in.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidUnit {
    /// Not a valid name for systemd.
    #[error("{0:?} is not the name of a unit: expected one like x.service")]
    Name(String),
    /// The unit runs no command that could attach it.
    #[error(
        "{0} is not a service, and only services run a command before they start; add its cgroup to a policy in the daemon's configuration"
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

    /// The drop-in's file, below the directory of units.
    pub fn file(&self) -> PathBuf {
        PathBuf::from(format!("{}.d", self.0)).join(FILE)
    }
}

impl FromStr for Service {
    type Err = InvalidUnit;

    /// As in systemctl, a name without an ending is the name of a service.
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

/// The text of the drop-in that runs `attach`, a program and its arguments, with the unit's name added. `needs_daemon`: the
/// policy belongs to the daemon. `is_restricted`: with settings that refuse sockets past the IP stack.
pub fn text(service: &Service, attach: &[String], needs_daemon: bool, is_restricted: bool) -> String {
    let wants = if needs_daemon { "Wants=steer.service\n" } else { "" };
    let attach = attach.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    // A status below 255 would skip the unit without failing it.
    format!(
        "{HEADER}; removed by `steer unit --remove {name}`.\n\
         [Unit]\n\
         {wants}\
         After=steer.service\n\
         \n\
         [Service]\n\
         # Runs before the first command of the unit, in its cgroup. If it fails, the unit fails.\n\
         ExecCondition=+/bin/sh -c '\"$$@\" || exit 255' sh {attach} --unit %n\n{restrictions}",
        name = service.name(),
        restrictions = if is_restricted { RESTRICTIONS } else { "" },
    )
}

/// Settings that refuse what no program of steer sees where the kernel runs no security programs: sockets past the IP stack,
/// io_uring, which makes them without a system call, and 32 bit calls, whose socket options no program sees. They only add to
/// what the unit refuses. systemd skips names that it does not know.
const RESTRICTIONS: &str = "\
# The kernel runs no program that refuses sockets past the IP stack.
RestrictAddressFamilies=~AF_PACKET AF_XDP AF_SMC AF_VSOCK AF_BLUETOOTH AF_CAN AF_TIPC AF_RDS AF_QIPCRTR AF_PHONET AF_CAIF AF_NFC \
AF_IEEE802154 AF_MCTP AF_PPPOX AF_LLC AF_X25 AF_AX25 AF_NETROM AF_ROSE AF_ATMPVC AF_ATMSVC AF_APPLETALK AF_IPX AF_RXRPC AF_IB AF_MPLS \
AF_ISDN AF_IUCV
SystemCallFilter=~io_uring_setup:EPERM
SystemCallArchitectures=native
";

/// The properties of a unit that [`may_restrict`] reads.
pub const PROPERTIES: &str = "LoadState,User,DynamicUser,NoNewPrivileges";

/// Whether a service can have [`text`]'s restrictions. With `User=`, systemd sets NoNewPrivileges= for them, which breaks sudo and
/// file capabilities. `properties` is the output of `systemctl show`. An error is the reason.
pub fn may_restrict(properties: &str) -> Result<(), String> {
    let value =
        |name: &str| properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    match (value("LoadState"), value("User"), value("DynamicUser"), value("NoNewPrivileges")) {
        (_, _, _, "yes") | ("loaded", "" | "root" | "0", "no", _) => Ok(()),
        ("loaded", user, _, _) => Err(format!(
            "the settings for that would force NoNewPrivileges= on a service with User={user}; if it does not need sudo or file \
             capabilities, set NoNewPrivileges=yes and repeat this command"
        )),
        _ => Err("systemd has not loaded the service".to_owned()),
    }
}

/// Whether a file holds a drop-in made here.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// Quotes a word of a systemd command line, so that systemd expands no specifiers, variables and escapes in it.
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
    fn systemd_passes_words_unchanged() {
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
        let want = "# Written by `steer unit`; removed by `steer unit --remove x.service`.
[Unit]
Wants=steer.service
After=steer.service

[Service]
# Runs before the first command of the unit, in its cgroup. If it fails, the unit fails.
ExecCondition=+/bin/sh -c '\"$$@\" || exit 255' sh /usr/bin/steer attach \"--policy=my vpn\" --unit %n
";
        assert_eq!(text(&service, &attach, true, false), want);
        assert_eq!(text(&service, &attach, true, true), format!("{want}{RESTRICTIONS}"));
        assert!(is_ours(want) && !is_ours("[Service]\n"));
        assert!(!text(&service, &attach, false, false).contains("Wants="));
    }

    #[test]
    fn restrictions_take_no_privilege_away() {
        let properties = |user: &str, dynamic: &str, no_new: &str| {
            format!("LoadState=loaded\nUser={user}\nDynamicUser={dynamic}\nNoNewPrivileges={no_new}\n")
        };
        for (user, dynamic, no_new, may) in [
            ("", "no", "no", true),
            ("root", "no", "no", true),
            ("nobody", "no", "no", false),
            ("", "yes", "no", false),
            ("nobody", "no", "yes", true),
        ] {
            assert_eq!(may_restrict(&properties(user, dynamic, no_new)).is_ok(), may, "{user:?} {dynamic} {no_new}");
        }
        assert!(may_restrict("LoadState=not-found\nUser=\nDynamicUser=no\nNoNewPrivileges=no\n").is_err());
        assert!(may_restrict("").is_err());
    }
}
