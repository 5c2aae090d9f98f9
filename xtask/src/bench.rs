//! `cargo xtask bench`: builds the agent and the benchmark, and starts the benchmark as root.
//!
//! **Invariant**: both are release builds made now, and the benchmark's exit status is ours: only an error fails it, never
//! a timing.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{apt, cargo, root::Root, setup::Setup, toolchain};

/// Measure as root what steering costs a program that makes sockets, and one that sends.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// How often each variant takes its turn.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Sockets made in one turn.
    #[arg(long, value_name = "N")]
    ops: Option<u32>,
    /// Cgroups attached to see how it scales.
    #[arg(long, value_name = "N")]
    cgroups: Option<u32>,
    /// Write the report as bench.md and bench.svg into this directory, too.
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
        let steer = cargo::release_binary("steer", "steer")?;
        let bench = cargo::release_binary("steer-bench", "steer-bench")?;
        let mut command = root.command(&bench, &[("STEER_BIN", steer.as_path())]);
        self.pass_on(command.arg("run"));
        let status = command.status().with_context(|| format!("start {}", cargo::display(&command)))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The benchmark has the defaults, so that only what was said is handed over.
    fn pass_on(&self, command: &mut Command) {
        for (option, value) in [("--rounds", self.rounds), ("--ops", self.ops), ("--cgroups", self.cgroups)] {
            if let Some(value) = value {
                command.arg(option).arg(value.to_string());
            }
        }
        if let Some(directory) = &self.report {
            command.arg("--report").arg(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
        }
        if self.json {
            command.arg("--json");
        }
    }
}

/// What steer is compared with, or measured in, is not needed for the rest: where it cannot be had, the report says so.
fn install_peers() {
    // Programs, and their packages. They are where only root's PATH leads.
    for (program, package) in [("nft", "nftables"), ("runc", "runc")] {
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
    fn only_what_was_said_is_handed_over() {
        for (bench, expected) in [
            (Bench { rounds: None, ops: None, cgroups: None, report: None, json: false }, "b"),
            (
                Bench { rounds: Some(5), ops: Some(7), cgroups: Some(20), report: None, json: true },
                "b --rounds 5 --ops 7 --cgroups 20 --json",
            ),
        ] {
            let mut command = Command::new("b");
            bench.pass_on(&mut command);
            assert_eq!(cargo::display(&command), expected);
        }
    }
}
