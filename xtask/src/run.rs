//! `cargo xtask run`: sets up, builds and starts the demonstration, or steer itself.
//!
//! **Invariant**: it ends as the program itself (exec), so signals and the exit status are the program's own.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{cargo, root::Root, setup::Setup};

/// Build steer and run it as root: the demonstration unless arguments follow `--`.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// Arguments for steer.
    #[arg(last = true)]
    args: Vec<OsString>,
}

impl Run {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let root = Root::find()?;
        Setup::default().run()?;
        // Not optimised, except for the kernel side: that halves the build time, and the demonstration mostly waits for packets.
        // One call builds both, which keeps all processors busy for longer.
        let steer = ["build", "--package", "steer", "--bin", "steer", "--package", "steer-lab", "--bin", "steer-demo"];
        let built = cargo::build(&steer)?;
        let name = if self.args.is_empty() { "steer-demo" } else { "steer" };
        let mut command = root.command(&cargo::binary(&built, name)?, &[]);
        command.args(&self.args);
        Err(command.exec()).with_context(|| format!("start {}", cargo::display(&command)))
    }
}
