//! `steer keep`, hidden: the keeper of a running `steer exec`.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    model::cgroup_path::CgroupPath,
    run::{instance::Instance, keeper},
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

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let keep = || {
        let pins = instance.pins.to_change()?.with_name(args.name.clone());
        super::block_on(keeper::keep(
            &args.cgroup,
            args.wrapper_fd,
            args.lock_fd,
            (args.terminal_fd, &instance.socket),
            &pins,
        ))?
    };
    // It has no standard error.
    let kept = keep();
    if let Err(error) = &kept {
        log::error!("{}: {error:#}", args.cgroup);
    }
    kept.map(|()| ExitCode::SUCCESS)
}

/// Arguments of the process that tells a user what was stopped. It is started by `steer exec` only.
#[derive(Debug, clap::Args)]
pub(super) struct TellArgs {
    /// Descriptor that brings the id of the cgroup, and closes when the wrapper has become its command, or has ended
    wrapper: i32,
    /// Descriptor of the process that is or becomes the command
    command: i32,
    /// Descriptor of the terminal
    terminal: i32,
}

pub(super) fn tell(args: &TellArgs, instance: &Instance) -> anyhow::Result<ExitCode> {
    let TellArgs { wrapper, command, terminal } = *args;
    let told = super::block_on(keeper::tell([wrapper, command, terminal], &instance.users_socket))?;
    // The user has learnt less, and that is all.
    if let Err(error) = told {
        log::debug!("{error:#}");
    }
    Ok(ExitCode::SUCCESS)
}
