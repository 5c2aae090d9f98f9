//! The benchmark's own instance of steer.
//!
//! **Invariant:** its pin directory contains the benchmark's PID in its name, and `steer off` removes it on drop.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use steer_common::ABI_VERSION;

use crate::mount;

/// Switched off on drop.
pub(crate) struct Steering {
    steer: PathBuf,
    pins: PathBuf,
}

impl Steering {
    pub(crate) fn new(steer: &Path) -> Self {
        let bpffs = mount::point("bpf").unwrap_or_else(|_| "/sys/fs/bpf".into());
        Self { steer: steer.to_owned(), pins: mount::own_name(&bpffs) }
    }

    pub(crate) fn steer(&self) -> &Path {
        &self.steer
    }

    pub(crate) fn pins(&self) -> &Path {
        &self.pins
    }

    /// The pin of a kernel program.
    pub(crate) fn program_pin(&self, program: &str) -> PathBuf {
        self.pins.join(format!("abi{ABI_VERSION}/programs/{program}"))
    }

    /// Steers a cgroup to an interface of the calling thread's network namespace. `more` are options of `steer attach`.
    pub(crate) fn attach(&self, cgroup: &Path, interface: &str, enforce: &str, more: &[&str]) -> Result<()> {
        let mut command = self.command();
        command.arg("attach").arg(cgroup).args(["--interface", interface, "--enforce", enforce]).args(more);
        let status = command.status().with_context(|| format!("start {}", self.steer.display()))?;
        ensure!(status.success(), "`steer attach {}` failed: {status}", cgroup.display());
        Ok(())
    }

    /// Switches it off. It can be used again.
    pub(crate) fn off(&self) -> Result<()> {
        let status = self
            .command()
            .args(["off", "--forget"])
            .status()
            .with_context(|| format!("start {}", self.steer.display()))?;
        ensure!(status.success(), "`steer --bpffs {} off` failed: {status}", self.pins.display());
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.steer);
        command.arg("--bpffs").arg(&self.pins).stdout(Stdio::null()).process_group(0);
        command
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        if let Err(error) = self.off() {
            eprintln!("steer-bench: {error:#}");
        }
    }
}
