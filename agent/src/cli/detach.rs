//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use super::output::say;
use crate::{
    apply::manual,
    host::{capability::require_privilege, cgroup::Hierarchy},
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
    let Some(pins) = pins.to_look()? else { return Ok(ExitCode::SUCCESS) };
    for taken in manual::detach(&pins, &hierarchy, &cgroup)? {
        say!("{taken}")?;
    }
    Ok(ExitCode::SUCCESS)
}
