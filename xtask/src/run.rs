//! `cargo xtask run`: sets up, builds and becomes the agent.
//!
//! **Invariant**: it ends as the agent itself (exec), so signals and the exit status are the agent's own.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{cargo, root::Root, setup::Setup};

/// Build steer and run it as root: `demo` unless arguments follow `--`.
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
        let steer = cargo::release_binary("steer", "steer")?;
        let mut command = root.command(&steer, &[]);
        if self.args.is_empty() {
            command.arg("demo");
        } else {
            command.args(&self.args);
        }
        Err(command.exec()).with_context(|| format!("start {}", cargo::display(&command)))
    }
}
