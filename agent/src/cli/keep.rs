//! `steer keep`, hidden: the keeper of a running `steer exec`.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    model::cgroup_path::CgroupPath,
    run::{instance::PinDirectory, keeper},
};

/// Arguments of the keeper. It is started by `steer exec` only.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    cgroup: CgroupPath,
    /// Descriptor that closes when the wrapper has become its command, or has ended
    wrapper_fd: i32,
    /// Descriptor with the lock of the cgroup's directory
    lock_fd: i32,
    /// The path by which the user knows the pin directory
    name: PathBuf,
    /// Descriptor of the terminal on which to say at the end what was stopped
    #[arg(long)]
    terminal_fd: Option<i32>,
}

pub(super) fn run(args: &Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    let keep = || {
        let pins = pins.to_change()?.with_name(args.name.clone());
        super::block_on(keeper::keep(&args.cgroup, args.wrapper_fd, args.lock_fd, args.terminal_fd, &pins))?
    };
    // It has no standard error.
    let kept = keep();
    if let Err(error) = &kept {
        log::error!("{}: {error:#}", args.cgroup);
    }
    kept.map(|()| ExitCode::SUCCESS)
}
