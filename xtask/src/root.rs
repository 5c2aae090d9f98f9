//! Starts as root the programs that need it, and no others.
//!
//! **Invariant**: builds run as the calling user; only a finished executable is started as root.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, bail, ensure};

use crate::toolchain;

/// How a program is started as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// This process is root.
    Already,
    /// Through `sudo`.
    Sudo,
}

impl Root {
    /// Finds the way, without testing it.
    pub(crate) fn find() -> Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::Already);
        }
        if toolchain::program("sudo").is_none() {
            bail!("this needs root, and there is no sudo: run the same command as root");
        }
        Ok(Self::Sudo)
    }

    /// Runs sudo once, so that it asks for a password only once, and a refusal comes before any work.
    pub(crate) fn prove(self) -> Result<Self> {
        if self == Self::Sudo {
            let status = Command::new("sudo").args(["--", "true"]).stdout(Stdio::null()).status();
            ensure!(status.is_ok_and(|status| status.success()), "this needs root, and sudo refused");
        }
        Ok(self)
    }

    /// The command that starts `program` as root with these variables. sudo would drop inherited ones.
    pub(crate) fn command(self, program: &Path, variables: &[(&str, &Path)]) -> Command {
        match self {
            Self::Already => {
                let mut command = Command::new(program);
                command.envs(variables.iter().copied());
                command
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg("--");
                if !variables.is_empty() {
                    command.arg("env");
                }
                for (name, value) in variables {
                    let mut assignment = std::ffi::OsString::from(name);
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::display;

    #[test]
    fn variables_survive_sudo() {
        let variables = [("STEER_BIN", Path::new("/t/steer"))];
        let program = Path::new("/t/test");
        assert_eq!(display(&Root::Sudo.command(program, &variables)), "sudo -- env STEER_BIN=/t/steer /t/test");
        assert_eq!(display(&Root::Sudo.command(program, &[])), "sudo -- /t/test");
        let plain = Root::Already.command(program, &variables);
        assert_eq!(plain.get_envs().count(), 1);
    }
}
