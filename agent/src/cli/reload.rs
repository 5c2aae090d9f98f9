//! `steer reload`, hidden: what systemd runs for `systemctl reload steer`.
//!
//! The service counts as reloading from before the daemon gets its signal until the daemon says that it is done, so that
//! systemctl waits for that. (Type=notify-reload does the same, from systemd 253 on.)

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::daemon;

/// Arguments of `steer reload`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = super::daemon::CONFIG)]
    config: PathBuf,
    /// The daemon's process, as systemd tells it
    #[arg(env = "MAINPID")]
    daemon: i32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // What the daemon would not carry out must fail here: it has no way to answer.
    let config = daemon::read_config(&args.config)?;
    ensure!(!config.policies.is_empty(), "{} has no policy; the daemon keeps what it has", args.config.display());
    daemon::announce_reload(true).context("tell the service manager of a reload")?;
    let signalled = kill(Pid::from_raw(args.daemon), Signal::SIGHUP);
    if signalled.is_err() {
        daemon::announce_reload(false).context("tell the service manager that there is no reload")?;
    }
    signalled.with_context(|| format!("signal the daemon, process {}", args.daemon))?;
    Ok(ExitCode::SUCCESS)
}
