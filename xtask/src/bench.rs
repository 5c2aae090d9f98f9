//! `cargo xtask bench`: builds the agent and the benchmark, and starts the benchmark as root.
//!
//! **Invariant**: both are current builds, and the benchmark's exit status is that of this command: only an error makes
//! it fail, never a timing.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{apt, cargo, root::Root, setup::Setup, toolchain};

/// The programs that steer is compared with, and their Debian packages. Only root's PATH contains the programs.
pub(crate) const NEEDS: [(&str, &str); 2] = [("nft", "nftables"), ("runc", "runc")];

/// Measure as root what steering costs a program that creates sockets, and one that sends.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// Turns of each variant.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Sockets created in one turn.
    #[arg(long, value_name = "N")]
    ops: Option<u32>,
    /// Attached cgroups, to measure how the costs scale.
    #[arg(long, value_name = "N")]
    cgroups: Option<u32>,
    /// Measure only groups of uplinks.
    #[arg(long)]
    failover: bool,
    /// Measure programs that are not optimised, to see that the benchmark works.
    #[arg(long, conflicts_with = "report")]
    dev: bool,
    /// Also write the report as bench.md and bench.svg into this directory.
    #[arg(long, value_name = "DIR")]
    report: Option<std::path::PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let root = Root::find().and_then(Root::prove)?;
        Setup::default().run()?;
        install_peers();
        let targets = ["--bin", "steer", "--bin", "steer-bench"];
        let built = if self.dev { cargo::programs(&targets) } else { cargo::release(&targets) }?;
        let (steer, bench) = (cargo::binary(&built, "steer")?, cargo::binary(&built, "steer-bench")?);
        let mut command = root.command(&bench, &[("STEER_BIN", steer.as_path())]);
        self.pass_on(command.arg("run"));
        let status = command.status().with_context(|| format!("start {}", cargo::display(&command)))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Passes on the given options. The benchmark itself has the defaults.
    fn pass_on(&self, command: &mut Command) {
        for (option, value) in [("--rounds", self.rounds), ("--ops", self.ops), ("--cgroups", self.cgroups)] {
            if let Some(value) = value {
                command.arg(option).arg(value.to_string());
            }
        }
        if let Some(directory) = &self.report {
            command.arg("--report").arg(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
        }
        if self.failover {
            command.arg("--failover");
        }
        if self.json {
            command.arg("--json");
        }
    }
}

/// Installs the programs that steer is compared with. They are optional: the report names those that are missing.
fn install_peers() {
    for (program, package) in NEEDS {
        if toolchain::program(program).is_none()
            && !apt::is_installed(package)
            && let Err(reason) = apt::install(&[package])
        {
            eprintln!("bench: cannot install {package}: {reason:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_given_options_are_passed_on() {
        for (bench, expected) in [
            (
                Bench {
                    rounds: None,
                    ops: None,
                    cgroups: None,
                    failover: false,
                    dev: false,
                    report: None,
                    json: false,
                },
                "b",
            ),
            (
                Bench {
                    rounds: Some(5),
                    ops: Some(7),
                    cgroups: Some(20),
                    failover: true,
                    dev: true,
                    report: None,
                    json: true,
                },
                "b --rounds 5 --ops 7 --cgroups 20 --failover --json",
            ),
        ] {
            let mut command = Command::new("b");
            bench.pass_on(&mut command);
            assert_eq!(cargo::display(&command), expected);
        }
    }
}
