//! `steer off`: end all steering.

use std::process::ExitCode;

use super::output::{note, say};
use crate::{
    host::{
        capability::require_privilege,
        cgroup::{Hierarchy, scope},
    },
    kernel::{self, Removed},
    run::instance::Instance,
};

/// Arguments of `steer off`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print what was removed as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("off")?;
    let hierarchy = Hierarchy::find();
    let name = |id: u64| {
        let path = hierarchy.as_ref().ok().and_then(|hierarchy| hierarchy.path_of(id));
        path.map_or_else(|| format!("cgroup {id} (removed)"), |path| path.to_string())
    };
    let mut removed = match instance.pins.to_look()? {
        Some(pins) => kernel::off(&pins)?,
        None => Removed::default(),
    };
    instance.remove_files(&mut removed.errors);
    if let Ok(hierarchy) = &hierarchy {
        for id in &removed.cgroups {
            let Some(path) = hierarchy.path_of(*id).filter(scope::is_scope) else { continue };
            scope::remove_abandoned(hierarchy, &path)?;
        }
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&removed)?)?;
    } else if removed == Removed::default() {
        say!("steer is off: there was nothing to remove")?;
    } else {
        for id in &removed.cgroups {
            say!("detached {}", name(*id))?;
        }
        for pin in &removed.pins {
            say!("removed {pin}")?;
        }
        say!("steer is off: {} cgroups detached, {} pins removed", removed.cgroups.len(), removed.pins.len())?;
    }
    for error in &removed.errors {
        note(error);
    }
    Ok(if removed.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
