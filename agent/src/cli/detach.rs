//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use crate::{
    apply::manual,
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel,
    run::instance::PinDirectory,
};

/// Arguments of `steer detach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the cgroup from the root of the cgroup2 hierarchy, or its directory
    cgroup: String,
}

pub(super) fn run(args: &Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    require_privilege("detach")?;
    let hierarchy = Hierarchy::find()?;
    let cgroup = hierarchy.open(&hierarchy.parse(&args.cgroup)?)?;
    let Some(pins) = pins.to_look() else { return Ok(ExitCode::SUCCESS) };
    let Some(lock) = pins.lock()? else { return Ok(ExitCode::SUCCESS) };
    for taken in manual::detach(&pins, &lock, &hierarchy, &cgroup)? {
        println!("{taken}");
    }
    kernel::detach_other_versions(&pins, &lock, cgroup.id)?;
    // The configuration may also name the cgroup.
    pins.notify_daemon(&lock)?;
    kernel::tidy(&pins, lock, &hierarchy)?;
    Ok(ExitCode::SUCCESS)
}
