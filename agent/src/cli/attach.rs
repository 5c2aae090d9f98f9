//! `steer attach`: steer a cgroup until `steer detach`, or until the cgroup is removed.

use std::process::ExitCode;

use anyhow::bail;

use super::{
    output::say,
    target::{By, groups, links, marks},
};
use crate::{
    apply::{manual, permit::Origin, resolve::Namespace, takeover},
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel::{self, Datapath},
    run::instance::{CONFIG, PinDirectory},
};

/// Arguments of `steer attach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the cgroup from the root of the cgroup2 hierarchy, or its directory
    #[arg(required_unless_present = "unit")]
    cgroup: Option<String>,
    /// The cgroup of this systemd unit, for a command of the unit itself; `steer unit` writes such commands
    #[arg(long, value_name = "NAME", conflicts_with = "cgroup")]
    unit: Option<String>,
    #[command(flatten)]
    by: By,
    /// Allow the root cgroup: steer every process of the machine that no other policy holds
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
            "refusing to attach to the root cgroup: it would steer every process of the machine, this shell included; use \
             --yes-the-root if that is what you want"
        );
    }
    let links = links()?;
    let cookie = kernel::netns_cookie()?;
    let groups = groups(CONFIG.as_ref())?;
    let namespace = Namespace::own(&links, cookie, marks(CONFIG.as_ref())?, &groups);
    let wanted = args.by.clone().with_defaults(CONFIG.as_ref())?.wanted(namespace)?;
    let pins = pins.to_change()?;
    let announcement = manual::announce(&pins, &hierarchy, &cgroup, manual::DAEMON_PATIENCE)?;
    let taken_over = manual::change(&pins, &hierarchy, |lock| {
        // It ends before the lock does.
        let _announcement = announcement;
        let mut datapath = Datapath::open_or_load(&pins, lock)?;
        datapath.clean_up(lock, &hierarchy)?;
        manual::attach(&mut datapath, lock, &hierarchy, &cgroup, (Origin::Attach, &wanted), namespace)?;
        Ok::<_, manual::Error>(takeover::take_over(lock, &datapath, &hierarchy, cookie, &[cgroup.id].into()))
    })?;
    for taken in taken_over {
        say!("{taken}")?;
    }
    Ok(ExitCode::SUCCESS)
}
