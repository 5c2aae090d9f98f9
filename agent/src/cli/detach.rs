//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use anyhow::bail;

use crate::{
    apply::takeover,
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel::{self, Datapath},
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
    if let Some(mut datapath) = Datapath::open(&pins)? {
        if let Some(attachment) = datapath.attachment(cgroup.id)?
            && !attachment.is_manual()
            && pins.daemon_runs()?
        {
            bail!(
                "{} is steered by the daemon's configuration, which would attach it again; change it there",
                cgroup.path
            );
        }
        datapath.detach(&lock, &hierarchy, cgroup.id)?;
        if let Some(outer) = datapath.around(&hierarchy, &cgroup.path)? {
            let netns_cookie = kernel::netns_cookie()?;
            for done in takeover::take_over(&lock, &datapath, &hierarchy, netns_cookie, &[outer].into()) {
                println!("{done}");
            }
        }
    }
    kernel::detach_other_versions(&pins, &lock, cgroup.id)?;
    // The configuration may name it, too.
    pins.tell_daemon(&lock)?;
    kernel::tidy(&pins, lock, &hierarchy)?;
    Ok(ExitCode::SUCCESS)
}
