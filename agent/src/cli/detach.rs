//! `steer detach`: stop steering a cgroup.

use std::process::ExitCode;

use anyhow::Context as _;

use super::output::say;
use crate::{
    apply::{manual, released},
    host::{capability::require_privilege, cgroup::Hierarchy, meant},
    kernel::{self, Datapath, Pins},
    model::{cgroup_path::CgroupPath, quote::shown},
    run::instance::Instance,
};

/// Arguments of `steer detach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(value_name = "TARGET", help = meant::HELP)]
    target: String,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("detach")?;
    let hierarchy = Hierarchy::find()?;
    let cgroup = hierarchy.open(&meant::find(&hierarchy, &args.target)?.path)?;
    let path = &cgroup.path;
    let Some(pins) = instance.pins.to_look()? else {
        released::forget(&instance.released, cgroup.id)
            .with_context(|| format!("change {}", instance.released.display()))?;
        say!("{path} was not attached")?;
        return Ok(ExitCode::SUCCESS);
    };
    let was = policy(&pins, cgroup.id)?;
    let taken_over = manual::detach(&pins, &hierarchy, &cgroup)?;
    released::forget(&instance.released, cgroup.id)
        .with_context(|| format!("change {}", instance.released.display()))?;
    let now = match (policy(&pins, cgroup.id)?, around(&pins, &hierarchy, path)?) {
        (Some(policy), _) => format!("policy {policy} of the configuration holds it now"),
        (None, Some(outer)) => format!("policy {outer} around it holds it now"),
        (None, None) => "its new sockets follow the routing table".to_owned(),
    };
    match was {
        Some(was) => say!("detached {path} from policy {was}; {now}")?,
        None => say!("{path} was not attached")?,
    }
    for taken in taken_over {
        say!("{taken}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of the policy that a cgroup is attached to.
fn policy(pins: &Pins, cgroup_id: u64) -> Result<Option<String>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    // An attachment that has gone leaves an empty record.
    if datapath.attachment(cgroup_id)?.is_none() {
        return Ok(None);
    }
    let policy = datapath.policy_of(cgroup_id)?;
    Ok(policy.map(|policy| shown(&kernel::text(&policy.name)).to_string()))
}

/// The name of the policy of the nearest attached cgroup above.
fn around(pins: &Pins, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<String>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    let outer = datapath.around(hierarchy, path)?;
    outer.map_or(Ok(None), |outer| policy(pins, outer))
}
