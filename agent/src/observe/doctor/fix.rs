//! The repair of a finding.
//!
//! **Invariant:** `--fix` only does an [`Action`]. No action can end a connection or let traffic out by another link. All other
//! repairs are text for the user.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde::{Serialize, Serializer};

use crate::{
    apply::routes::{self, Leftovers},
    host::cgroup::Hierarchy,
    kernel::Pins,
    model::quote::quoted,
};

/// The repair of a finding.
#[derive(Clone, Debug, Serialize)]
pub struct Fix {
    /// The command or advice.
    #[serde(flatten)]
    pub how: How,
    /// A command that makes it permanent. Absent if it already is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<String>,
    /// What `--fix` does instead of the command.
    #[serde(rename = "safe", serialize_with = "is_some")]
    action: Option<Action>,
}

/// A command for a shell, or advice if the user has to decide or to know more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// A command to run unchanged.
    Command(String),
    /// Text. Words in capital letters are placeholders.
    Advice(String),
}

/// A repair that is safe to do without a question.
#[derive(Clone, Debug)]
enum Action {
    /// Writes a number below /proc/sys.
    Sysctl { file: PathBuf, value: u32 },
    /// Removes pins that steer nothing.
    RemoveLeftovers,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn is_some<S: Serializer>(action: &Option<Action>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(action.is_some())
}

impl Fix {
    /// A command that the user must review first.
    pub(super) fn command(command: impl Into<String>) -> Self {
        Self { how: How::Command(command.into()), persistent: None, action: None }
    }

    /// Advice as text.
    pub(super) fn advice(advice: impl Into<String>) -> Self {
        Self { how: How::Advice(advice.into()), persistent: None, action: None }
    }

    /// A sysctl of a network interface. The caller must know that this value cannot cut off a connection.
    pub(super) fn interface_sysctl(interface: &str, name: &str, value: u32) -> Self {
        // In a dotted key, sysctl(8) expects a slash for each dot in the interface's name.
        let key = format!("net.ipv4.conf.{}.{name}", interface.replace('.', "/"));
        let file = format!("/etc/sysctl.d/90-steer-{interface}.conf");
        let file_action = PathBuf::from("/proc/sys/net/ipv4/conf").join(interface).join(name);
        Self {
            how: How::Command(format!("sysctl -w {}={value}", quoted(&key))),
            persistent: Some(format!("echo {} > {}", quoted(&format!("{key} = {value}")), quoted(&file))),
            action: Some(Action::Sysctl { file: file_action, value }),
        }
    }

    /// `steer doctor --fix`, which removes leftover pins. `steer` is the command for this instance.
    pub(super) fn remove_leftovers(steer: &str) -> Self {
        Self {
            how: How::Command(format!("{steer} doctor --fix")),
            persistent: None,
            action: Some(Action::RemoveLeftovers),
        }
    }

    /// Whether `--fix` applies it.
    pub fn is_safe(&self) -> bool {
        self.action.is_some()
    }

    /// Applies it, if it is safe.
    pub(super) fn apply(&self, pins: Option<&Pins>) -> anyhow::Result<()> {
        match &self.action {
            None => Ok(()),
            Some(Action::Sysctl { file, value }) => {
                fs::write(file, value.to_string()).with_context(|| format!("write {}", file.display()))
            }
            Some(Action::RemoveLeftovers) => {
                let hierarchy = Hierarchy::find()?;
                let Some(pins) = pins else { return Ok(()) };
                let Some(lock) = pins.lock()? else { return Ok(()) };
                Ok(routes::tidy(pins, lock, &hierarchy, Leftovers::Stay).map(drop)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fix, How};

    #[test]
    fn a_sysctl_of_an_interface_with_a_dot() {
        let fix = Fix::interface_sysctl("eth0.100", "rp_filter", 2);
        assert_eq!(fix.how, How::Command("sysctl -w net.ipv4.conf.eth0/100.rp_filter=2".to_owned()));
        let persistent = "echo 'net.ipv4.conf.eth0/100.rp_filter = 2' > /etc/sysctl.d/90-steer-eth0.100.conf";
        assert_eq!(fix.persistent.as_deref(), Some(persistent));
        assert!(fix.is_safe());
    }

    #[test]
    fn a_name_with_shell_syntax_is_quoted() {
        let fix = Fix::interface_sysctl("$(reboot)", "rp_filter", 2);
        assert_eq!(fix.how, How::Command("sysctl -w 'net.ipv4.conf.$(reboot).rp_filter'=2".to_owned()));
    }
}
