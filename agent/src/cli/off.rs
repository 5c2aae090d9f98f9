//! `steer off`: end all steering.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use super::output::{note, say};
use serde::Serialize;

use crate::{
    apply::{
        released::{self, Released},
        routes,
    },
    host::{
        capability::require_privilege,
        cgroup::{Hierarchy, scope},
        netns,
    },
    kernel::{self, Datapath, Pins, Removed},
    model::quote::shown,
    run::instance::Instance,
};

/// Arguments of `steer off`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print what was removed as JSON
    #[arg(long)]
    json: bool,
    /// Forget what `attach`, `exec` and containers have asked for; otherwise the next daemon steers it again
    #[arg(long)]
    forget: bool,
}

/// The output of `--json`. The field names are stable.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    removed: &'a Removed,
    /// What the next daemon steers again.
    released: &'a [Released],
    /// Removed cgroups of which sockets were open. Nothing can steer these again.
    removed_cgroups: &'a BTreeSet<u64>,
    /// Units of systemd that steer again when they start, such as at the next boot.
    enabled_units: &'a [&'static str],
}

/// The packaged units.
const UNITS: [&str; 2] = ["steer.service", "steer-nri.service"];
/// How many cgroups are listed.
const MOST: usize = 10;
/// How long the daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("off")?;
    let hierarchy = Hierarchy::find();
    let name = |id: u64| {
        let path = hierarchy.as_ref().ok().and_then(|hierarchy| hierarchy.path_of(id));
        path.map_or_else(|| format!("cgroup {id} (removed)"), |path| path.to_string())
    };
    let pins = instance.pins.to_look()?;
    let released = match (&pins, &hierarchy) {
        (Some(pins), Ok(hierarchy)) if !args.forget => released::in_force(pins, hierarchy),
        _ => Ok(Vec::new()),
    };
    let lingering = match (&pins, &hierarchy) {
        (Some(pins), Ok(hierarchy)) => released::lingering(pins, hierarchy).unwrap_or_default(),
        _ => BTreeSet::new(),
    };
    let policies = pins.as_ref().map_or_else(|| Ok(BTreeMap::new()), policies).unwrap_or_default();
    let now = released.as_ref().map_or(0, Vec::len);
    // Perhaps the daemon is the last process in its namespace.
    let namespaces = netns::others();
    let mut removed = pins.as_ref().map_or_else(|| Ok(Removed::default()), remove_pins)?;
    if let Some(pins) = &pins {
        let (_, errors) = routes::remove(pins, namespaces);
        removed.errors.extend(errors);
    }
    let released = released.map_err(|error| error.to_string()).and_then(|new| {
        let kept = if args.forget { Ok(new) } else { keep(&instance.released, new, hierarchy.as_ref().ok()) };
        kept.and_then(|kept| released::write(&instance.released, &kept).map(|()| kept))
            .map_err(|error| format!("{}: {error}", instance.released.display()))
    });
    let released = released.unwrap_or_else(|error| {
        removed.errors.push(format!("what is released now will not be restored: {error}"));
        Vec::new()
    });
    let units = if instance.is_default() { enabled_units() } else { Vec::new() };
    instance.remove_files(&mut removed.errors);
    if let Ok(hierarchy) = &hierarchy {
        for id in &removed.cgroups {
            let Some(path) = hierarchy.path_of(*id).filter(scope::is_scope) else { continue };
            scope::remove_abandoned(hierarchy, &path)?;
        }
    }
    if args.json {
        say!(
            "{}",
            serde_json::to_string_pretty(&Output {
                removed: &removed,
                released: &released,
                removed_cgroups: &lingering,
                enabled_units: &units
            })?
        )?;
    } else if removed == Removed::default() {
        say!("steer is off; nothing was steered")?;
    } else {
        let listed = if removed.cgroups.is_empty() { " nothing" } else { "" };
        say!("steer is off; no longer steered:{listed}")?;
        let is_there = |id: &&u64| !lingering.contains(id);
        for id in removed.cgroups.iter().filter(is_there).take(MOST) {
            let policy = policies.get(id).map(|(policy, _)| format!(" ({})", shown(policy))).unwrap_or_default();
            say!("  {}{policy}", name(*id))?;
        }
        let more = removed.cgroups.iter().filter(is_there).count().saturating_sub(MOST);
        if more > 0 {
            say!("  and {more} more (`--json` lists all)")?;
        }
        if !lingering.is_empty() {
            say!("  sockets of {} removed cgroups", lingering.len())?;
        }
    }
    if !args.json {
        let by_config = policies.iter().filter(|(id, (_, manual))| !manual && !lingering.contains(id)).count();
        if by_config > 0 {
            say!("The next daemon steers {by_config} of them again, because its configuration names them")?;
        }
        let command = instance.command();
        if now > 0 && !released.is_empty() {
            say!(
                "The next daemon steers {now} of them again, attached manually: `{command} off --forget` prevents that"
            )?;
        }
        let earlier = released.len().saturating_sub(now);
        if earlier > 0 {
            say!(
                "The next daemon steers {earlier} again that an earlier `off` has released: `{command} off --forget` prevents that"
            )?;
        }
        for unit in &units {
            say!("{unit} is enabled and steers again at the next boot: `systemctl disable {unit}` prevents that")?;
        }
    }
    for error in &removed.errors {
        note(error);
    }
    Ok(if removed.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The name of the policy of each attached cgroup, and whether it was attached manually.
fn policies(pins: &Pins) -> Result<BTreeMap<u64, (String, bool)>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(BTreeMap::new()) };
    let policies = datapath.policies()?;
    let attached = datapath.attachments()?.into_iter().filter_map(|attachment| {
        let policy = policies.iter().find(|entry| entry.slot == attachment.record.policy)?;
        Some((attachment.cgroup_id, (policy.name(), attachment.is_manual())))
    });
    Ok(attached.collect())
}

/// What was released before and now, of cgroups that exist.
fn keep(file: &Path, new: Vec<Released>, hierarchy: Option<&Hierarchy>) -> io::Result<Vec<Released>> {
    let is_new = |old: &Released| new.iter().any(|new| new.cgroup == old.cgroup);
    let exists = |old: &Released| hierarchy.is_none_or(|hierarchy| !hierarchy.is_gone(old.cgroup));
    let mut kept = released::read(file)?;
    kept.retain(|old| exists(old) && !is_new(old));
    kept.extend(new);
    Ok(kept)
}

/// Removes the pins, and waits until the daemon has ended: a service manager would not start another one before.
fn remove_pins(pins: &Pins) -> Result<Removed, kernel::Error> {
    let daemon = pins.running_daemon()?;
    let mut removed = kernel::off(pins)?;
    if let Some(daemon) = daemon
        && !daemon.ends_within(PATIENCE)?
    {
        let pid = daemon.pid().map(|pid| format!(" (PID {pid})")).unwrap_or_default();
        let seconds = PATIENCE.as_secs();
        removed
            .errors
            .push(format!("the daemon{pid} was switched off, but did not end within {seconds} s: end it first"));
    }
    Ok(removed)
}

/// The packaged units that are enabled, where there is systemd.
fn enabled_units() -> Vec<&'static str> {
    let is_enabled = |unit: &&str| {
        let asked = Command::new("systemctl").args(["--quiet", "is-enabled", unit]).stdin(Stdio::null()).output();
        asked.is_ok_and(|asked| asked.status.success())
    };
    UNITS.into_iter().filter(is_enabled).collect()
}
