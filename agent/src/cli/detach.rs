//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use anyhow::Context as _;

use steer_common::{Owner, PolicyRecord, policy_flags};

use super::output::say;
use crate::{
    apply::{manual, released},
    host::{
        capability::require_privilege,
        cgroup::{Hierarchy, scope},
        meant,
    },
    kernel::{self, Datapath, Pins},
    model::{cgroup_path::CgroupPath, quote::shown},
    run::instance::Instance,
};

/// Arguments of `steer detach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A process that `attach --only` has moved stays in its cgroup, which is removed with its last process. Exit status: 0 also \
                  if the cgroup was not attached, so that the command can be repeated; 1 if it stays steered or there is no such target."
)]
pub(super) struct Args {
    #[arg(value_name = "TARGET", help = meant::HELP)]
    target: String,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("detach")?;
    let hierarchy = Hierarchy::find()?;
    let cgroup = hierarchy.open(&meant::find(&hierarchy, &args.target)?.path)?;
    let path = &cgroup.path;
    let pins = instance.pins.to_look()?;
    let was = pins.as_ref().map_or(Ok(None), |pins| policy(pins, cgroup.id))?;
    let taken_over = pins.as_ref().map_or_else(|| Ok(Vec::new()), |pins| manual::detach(pins, &hierarchy, &cgroup))?;
    let is_forgotten = released::forget(&instance.released, cgroup.id)
        .with_context(|| format!("change {}", instance.released.display()))?;
    let (now, outer) = match &pins {
        Some(pins) => (policy(pins, cgroup.id)?, around(pins, &hierarchy, path)?),
        None => (None, None),
    };
    let now = match (now, outer) {
        (Some(policy), _) => format!("{policy} of the configuration holds it now"),
        (None, Some(outer)) => format!("{outer} around it holds it now"),
        (None, None) => "its new sockets follow the routing table".to_owned(),
    };
    match was {
        Some(was) => say!("detached {path} from {was}; {now}")?,
        None if is_forgotten => {
            say!(
                "{path} was not attached; the next daemon does not attach it again, as it would have done after `steer off`"
            )?;
        }
        None => say!("{path} was not attached; {now}")?,
    }
    for taken in taken_over {
        say!("{taken}")?;
    }
    if scope::is_scope(path) && !hierarchy.processes(path).is_empty() {
        say!("its processes stay in {path}, which is removed when the last of them ends")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy that a cgroup is attached to, in words.
pub(super) fn policy(pins: &Pins, cgroup_id: u64) -> Result<Option<String>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    // An attachment that has gone leaves an empty record.
    if datapath.attachment(cgroup_id)?.is_none() {
        return Ok(None);
    }
    Ok(datapath.policy_of(cgroup_id)?.as_ref().map(in_words))
}

/// A policy of the configuration by its name, and one that was made for an attachment by its uplink.
pub(super) fn in_words(policy: &PolicyRecord) -> String {
    let name = kernel::text(&policy.name);
    let is_of_uplink = policy.owner == Owner::Manual as u32 && name == kernel::text(&policy.interface);
    let kind = match is_of_uplink {
        true if policy.flags & policy_flags::GROUP == 0 => "interface",
        true => "uplink",
        false => "policy",
    };
    format!("{kind} {}", shown(&name))
}

/// The policy of the nearest attached cgroup above, in words.
fn around(pins: &Pins, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<String>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    let outer = datapath.around(hierarchy, path)?;
    outer.map_or(Ok(None), |outer| policy(pins, outer))
}
