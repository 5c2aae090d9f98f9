//! `steer attach`: steer a cgroup until `steer detach`, or until the cgroup is removed.

use std::process::ExitCode;

use anyhow::bail;

use super::{
    cautions, detach, only,
    output::{note, say},
    target::{By, groups, links_for, marks},
};
use crate::{
    apply::{
        manual::{self, Wanted},
        permit::Origin,
        resolve::Namespace,
        takeover,
    },
    host::{
        capability::require_privilege,
        cgroup::Hierarchy,
        meant::{self, Meant},
        process,
    },
    kernel::{self, Datapath},
    model::{cgroup_path::CgroupPath, quote::shown},
    run::instance::{CONFIG, PinDirectory},
};

/// Arguments of `steer attach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The id of a process stands for its cgroup, which other processes may be in. With --only, the process and its children are \
                  moved into a cgroup of their own first. The sockets that they have made before stay with the old cgroup: `--existing rebind` \
                  binds them to the uplink, `--existing destroy` ends them, and by default they are left alone."
)]
pub(super) struct Args {
    #[arg(value_name = "TARGET", required_unless_present = "unit", help = meant::HELP)]
    target: Option<String>,
    /// The cgroup of this systemd unit, for a command of the unit itself; `steer unit` writes such commands
    #[arg(long, value_name = "NAME", conflicts_with = "target")]
    unit: Option<String>,
    #[command(flatten)]
    by: By,
    /// Steer only this process and its children: move them into a cgroup of their own
    #[arg(long, conflicts_with = "unit")]
    only: bool,
    /// Allow the root cgroup: steer every process of the machine that no other policy holds
    #[arg(long)]
    yes_the_root: bool,
}

pub(super) fn run(args: &Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    require_privilege("attach")?;
    let hierarchy = Hierarchy::find()?;
    let meant = match &args.unit {
        Some(unit) => Meant { path: hierarchy.own_unit(unit)?, process: None },
        None => meant::find(&hierarchy, args.target.as_deref().unwrap_or_default())?,
    };
    if args.only {
        let Some(pid) = meant.process else { bail!("--only needs the id of a process") };
        only::run(&hierarchy, &meant.path, pid, &args.by, pins)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cgroup = hierarchy.open(&meant.path)?;
    if cgroup.path.is_root() && !args.yes_the_root {
        bail!(
            "refusing to attach to the root cgroup: it would steer every process of the machine, this shell included; use \
             --yes-the-root if that is what you want"
        );
    }
    let links = links_for(&args.by)?;
    let cookie = kernel::netns_cookie()?;
    let groups = groups(CONFIG.as_ref())?;
    let pins = pins.to_change()?;
    let namespace = Namespace::own(&links, cookie, marks(&pins, cookie, CONFIG.as_ref())?, &groups);
    let by = args.by.clone().with_defaults(CONFIG.as_ref())?;
    let wanted = by.wanted(namespace)?;
    by.warn(&links);
    if let Some(pid) = meant.process {
        say!(
            "process {pid} ({}) is in {}{}",
            shown(&process::name(pid)),
            cgroup.path,
            company(&hierarchy, &cgroup.path, pid)
        )?;
    }
    let was = detach::policy(&pins, cgroup.id)?;
    let announcement = manual::announce(&pins, &hierarchy, &cgroup, manual::DAEMON_PATIENCE)?;
    let taken_over = manual::change(&pins, &hierarchy, |lock| {
        // It ends before the lock does.
        let _announcement = announcement;
        let mut datapath = Datapath::open_or_load(&pins, lock)?;
        datapath.clean_up(lock, &hierarchy)?;
        manual::attach(&mut datapath, lock, &hierarchy, &cgroup, (Origin::Attach, &wanted), namespace)?;
        Ok::<_, manual::Error>(takeover::take_over(lock, &datapath, &hierarchy, cookie, &[cgroup.id].into()))
    })?;
    cautions::of_uplink(&pins, cgroup.id);
    let inside = hierarchy.processes(&cgroup.path).len();
    let now = in_words(&wanted);
    let was = was.filter(|was| *was != now).map_or_else(String::new, |was| format!(" (was: {was})"));
    say!("attached {} to {now}{was} until the cgroup is removed; processes in it: {inside}", cgroup.path)?;
    for taken in taken_over {
        say!("{taken}")?;
    }
    if meant.process.is_some() && inside > 1 {
        note("all of these are steered; `--only` steers the process and its children alone");
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy, in words.
pub(super) fn in_words(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Policy(name) => format!("policy {}", shown(name)),
        Wanted::Own(policy) => detach::in_words(&policy.record),
    }
}

/// Who else is in the cgroup of a process.
fn company(hierarchy: &Hierarchy, path: &CgroupPath, pid: u32) -> String {
    const MOST: usize = 3;
    let others: Vec<_> = hierarchy.processes(path).into_iter().filter(|other| *other != pid).collect();
    let named: Vec<_> =
        others.iter().take(MOST).map(|other| format!("{other} ({})", shown(&process::name(*other)))).collect();
    match others.len() {
        0 => ", alone".to_owned(),
        all if all <= MOST => format!(", with {}", named.join(", ")),
        all => format!(", with {} and {} more", named.join(", "), all - MOST),
    }
}
