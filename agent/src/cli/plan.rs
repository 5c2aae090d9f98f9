//! `steer plan`, and `steer reload --dry-run`: what a reload would change.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{
    block_on,
    output::{Unwritten, say},
};
use crate::{
    apply::plan::{Action, CgroupChange, Change, Plan, PolicyChange},
    host::capability::require_privilege,
    model::{quote::shown, spec::Existing},
    run::{
        instance::Instance,
        plan::{self, Running},
    },
};

/// How many processes of a cgroup are named.
const NAMED: usize = 4;

/// Arguments of `steer plan`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without FILE, the daemon's files are planned, or /etc/steer/steer.toml and policies.d if no daemon runs. FILE takes the place \
                  of the configuration file; policies.d stays. Nothing is changed.\n\n\
                  Exit status: 0 if there is a plan, also if it is empty; 1 if there is none, for example because a reload would be refused; \
                  2 if a file has mistakes."
)]
pub(super) struct Args {
    /// A configuration file, as if it were the daemon's
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("plan")?;
    let daemon = block_on(Running::find(instance))??;
    show(instance, daemon.as_ref(), args.file.as_deref(), args.json)
}

/// Prints the plan.
pub(super) fn show(
    instance: &Instance,
    daemon: Option<&Running>,
    file: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let plan = block_on(plan::make(instance, daemon, file))??;
    if json {
        say!("{}", serde_json::to_string_pretty(&plan)?)?;
    } else {
        print(&plan)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(plan: &Plan) -> Result<(), Unwritten> {
    if plan.policies.is_empty() && plan.cgroups.is_empty() {
        return say!("nothing to do");
    }
    for policy in &plan.policies {
        print_policy(policy)?;
    }
    for cgroup in &plan.cgroups {
        print_cgroup(cgroup)?;
    }
    let count = |action: Action| plan.cgroups.iter().filter(|cgroup| cgroup.action == action).count();
    let all = [Action::Attach, Action::Change, Action::Repair, Action::Detach, Action::Close];
    let counts = all.into_iter().filter(|action| count(*action) > 0);
    let counts: Vec<_> = counts.map(|action| format!("{} to {action}", count(action))).collect();
    if counts.is_empty() { say!("no cgroup is attached or detached") } else { say!("cgroups: {}", counts.join(", ")) }
}

fn print_policy(policy: &PolicyChange) -> Result<(), Unwritten> {
    let name = shown(&policy.name);
    match policy.change {
        Change::New => say!("policy {name} is new")?,
        Change::Removed => say!("policy {name} is removed")?,
        Change::Changed if policy.keys.is_empty() => say!("policy {name} changes: the members of its uplink")?,
        Change::Changed => say!("policy {name} changes")?,
    }
    for key in &policy.keys {
        say!("  {}", shown(key))?;
    }
    match &policy.missing {
        Some(missing) => say!("  {} is missing: closed until it exists", shown(missing)),
        None => Ok(()),
    }
}

fn print_cgroup(cgroup: &CgroupChange) -> Result<(), Unwritten> {
    let CgroupChange { path, action, manual, before, after, .. } = cgroup;
    let policy = |name: &Option<String>| {
        name.as_ref().map_or_else(|| "nothing".to_owned(), |name| format!("policy {}", shown(name)))
    };
    let by_hand = if *manual { ", attached by hand" } else { "" };
    say!("{action} {}{by_hand}", shown(path.as_str()))?;
    match action {
        Action::Close => {
            say!("  policy {} is removed: nothing gets out", shown(before.as_deref().unwrap_or_default()))?;
        }
        Action::Repair => say!("  programs of {} are missing", policy(after))?,
        _ if before == after => say!("  held by {}, as it changes", policy(after))?,
        _ => say!("  {} -> {}", policy(before), policy(after))?,
    }
    let [processes, sockets] = [(cgroup.processes.len(), "process", "es"), (cgroup.sockets, "socket", "s")]
        .map(|(count, one, more)| format!("{count} {one}{}", if count == 1 { "" } else { more }));
    if cgroup.processes.is_empty() && cgroup.sockets == 0 {
        return Ok(());
    }
    let names = cgroup.processes.iter().take(NAMED).map(|it| format!("{} ({})", shown(&it.name), it.pid));
    let mut names: Vec<_> = names.collect();
    if cgroup.processes.len() > NAMED {
        names.push(format!("{} more", cgroup.processes.len() - NAMED));
    }
    if names.is_empty() {
        say!("  {processes}")?;
    } else {
        say!("  {processes}: {}", names.join(", "))?;
    }
    let treated = match (cgroup.existing, cgroup.bound, cgroup.destroyed) {
        _ if cgroup.sockets == 0 => String::new(),
        (None, ..) => ", left as now".to_owned(),
        (Some(Existing::Keep), ..) => ", left on the old uplink (existing = \"keep\")".to_owned(),
        (_, Some(bound), Some(destroyed)) => format!(": {bound} to be bound, {destroyed} to be destroyed"),
        (Some(existing), ..) => format!(", treated by existing = \"{}\"", <&str>::from(existing)),
    };
    say!("  {sockets}{treated}")
}
