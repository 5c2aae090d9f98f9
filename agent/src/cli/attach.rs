//! `steer attach`: steer a cgroup until `steer detach` or until it is removed.

use std::process::ExitCode;

use anyhow::bail;

use super::target::{By, How, Resolved};
use crate::{
    apply::takeover,
    host::{
        capability::require_privilege,
        cgroup::{Cgroup, Hierarchy},
    },
    kernel::{self, Datapath, Lock, Pins},
    run::instance::PinDirectory,
};

/// Arguments of `steer attach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the cgroup from the root of the cgroup2 hierarchy, or its directory
    #[arg(required_unless_present = "unit")]
    cgroup: Option<String>,
    /// The cgroup of this systemd unit, for a command of the unit itself; `steer unit` writes such
    #[arg(long, value_name = "NAME", conflicts_with = "cgroup")]
    unit: Option<String>,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    how: How,
    /// Steer the root cgroup: every process of the machine that no other policy holds
    #[arg(long)]
    yes_the_root: bool,
}

pub(super) fn run(args: &Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    require_privilege("attach")?;
    let hierarchy = Hierarchy::find()?;
    let path = match &args.unit {
        Some(unit) => hierarchy.own_unit(unit)?,
        None => hierarchy.parse(args.cgroup.as_deref().unwrap_or_default())?,
    };
    let cgroup = hierarchy.open(&path)?;
    if cgroup.path.is_root() && !args.yes_the_root {
        bail!(
            "refusing to attach to the root cgroup: it would steer every process of the machine, this shell included; say \
             --yes-the-root if that is what you want"
        );
    }
    let by = args.by.resolve(&args.how)?;
    let pins = pins.to_change()?;
    let lock = pins.create_and_lock()?;
    let attached = attach(&pins, &lock, &hierarchy, &cgroup, &by);
    // What is attached is so, whatever fails afterwards.
    let told = if attached.is_ok() { pins.tell_daemon(&lock) } else { Ok(()) };
    if let Err(error) = told.and_then(|()| kernel::tidy(&pins, lock, &hierarchy)) {
        log::warn!("{error}");
    }
    attached?;
    Ok(ExitCode::SUCCESS)
}

fn attach(pins: &Pins, lock: &Lock, hierarchy: &Hierarchy, cgroup: &Cgroup, by: &Resolved) -> anyhow::Result<()> {
    let mut datapath = Datapath::open_or_load(pins, lock)?;
    datapath.sweep(lock, hierarchy)?;
    let configured = datapath.attachment(cgroup.id)?.filter(|existing| !existing.is_manual());
    if let Some(existing) = &configured
        && !by.is_policy_in(&datapath, existing.record.policy)?
    {
        bail!("{} is steered by the daemon's configuration; change it there", cgroup.path);
    }
    let netns_cookie = kernel::netns_cookie()?;
    let slot = by.slot(&mut datapath, lock)?;
    // What the configuration says, too, stays the configuration's.
    datapath.attach(lock, hierarchy, cgroup, slot, configured.is_none())?;
    for done in takeover::take_over(lock, &datapath, hierarchy, netns_cookie, &[cgroup.id].into()) {
        println!("{done}");
    }
    Ok(())
}
