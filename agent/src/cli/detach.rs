//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use anyhow::Context as _;

use super::output::say;
use crate::{
    apply::{manual, released},
    host::{capability::require_privilege, cgroup::Hierarchy},
    run::instance::Instance,
};

/// Arguments of `steer detach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the cgroup from the root of the cgroup2 hierarchy, or its directory
    cgroup: String,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("detach")?;
    let hierarchy = Hierarchy::find()?;
    let cgroup = hierarchy.open(&hierarchy.parse(&args.cgroup)?)?;
    if let Some(pins) = instance.pins.to_look()? {
        for taken in manual::detach(&pins, &hierarchy, &cgroup)? {
            say!("{taken}")?;
        }
    }
    released::forget(&instance.released, cgroup.id)
        .with_context(|| format!("change {}", instance.released.display()))?;
    Ok(ExitCode::SUCCESS)
}
