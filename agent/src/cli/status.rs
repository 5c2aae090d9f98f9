//! `steer status`: the state in force.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use comfy_table::{Table, presets};

use super::{
    block_on,
    output::{Unwritten, say},
    target::links,
};
use crate::{
    apply::{blind_spots::BlindSpot, resolve::Namespace},
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel,
    model::{config::RouteConfig, quote::shown},
    observe::status::{self, PolicyStatus, Status},
    run::{
        api::client::Client,
        instance::{CONFIG, Instance},
    },
};

/// Arguments of `steer status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file, to find cgroups that it names and nothing steers [default: /etc/steer/steer.toml, if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let status = read(args, instance)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        print(&status)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the pinned maps, the processes and the files. Without the privilege for that, asks the daemon.
fn read(args: &Args, instance: &Instance) -> anyhow::Result<Status> {
    if let Err(unprivileged) = require_privilege("status") {
        return block_on(async {
            let daemon = Client::find(&instance.socket).await.ok_or(unprivileged)?;
            anyhow::Ok(daemon.get("/v1/status").await?)
        })?;
    }
    let (pins, hierarchy) = (instance.pins.to_look()?, Hierarchy::find()?);
    let mut status = match &pins {
        Some(pins) => {
            let status = status::read(pins, &hierarchy)?;
            status.compared(Namespace::own(&links()?, kernel::netns_cookie()?, RouteConfig::default().marks(), &[]))
        }
        None => Status::default(),
    };
    if status.daemon {
        status.blind_spots = block_on(blind_spots(&instance.socket))?;
    }
    let store = instance.store(args.config.as_deref().unwrap_or(CONFIG.as_ref()));
    status::add_unsteered(&mut status, pins.as_ref(), &hierarchy, &store)?;
    Ok(status)
}

/// The blind spots of the daemon; none if it does not answer.
pub(super) async fn blind_spots(socket: &Path) -> Vec<BlindSpot> {
    let Some(daemon) = Client::find(socket).await else { return Vec::new() };
    daemon.get("/v1/status").await.map_or_else(|_unanswered| Vec::new(), |status: Status| status.blind_spots)
}

fn print(status: &Status) -> Result<(), Unwritten> {
    if status.policies.is_empty() && status.other_versions.is_empty() {
        say!("nothing is steered")?;
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let has_reach = status.policies.iter().any(|policy| !reach(policy).is_empty());
        let names = ["POLICY", "UPLINK", "ENFORCE", "DNS"].into_iter().chain(has_reach.then_some("LOCAL"));
        table.set_header(names.chain(["BOUND", "CLOSED", "REFUSED", "LEFT ALONE", "STOPPED", "CGROUPS"]));
        for policy in &status.policies {
            let mut row = vec![
                shown(&policy.name).to_string(),
                shown(&policy.uplink()).to_string(),
                format!("{:?}", policy.enforce).to_lowercase(),
                policy.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            ];
            row.extend(has_reach.then(|| reach(policy)));
            row.extend(
                ["bound", "closed_", "refused_", "left_", "stopped_"].map(|prefix| sum(policy, prefix).to_string()),
            );
            row.push(cgroups(policy));
            table.add_row(row);
        }
        say!("{table}")?;
    }
    for cgroup in &status.other_versions {
        let path = cgroup.path.as_ref().map_or_else(|| cgroup.id.to_string(), ToString::to_string);
        say!("{path} is steered by another version of steer")?;
    }
    for (policy, cgroup) in status.policies.iter().flat_map(|policy| policy.cgroups.iter().map(move |it| (policy, it)))
    {
        for elsewhere in &cgroup.elsewhere {
            let path = cgroup.path.as_ref().map(ToString::to_string).unwrap_or_default();
            let severity = if elsewhere.leaves { "error: " } else { "" };
            say!("{severity}{path}, policy {}: {elsewhere}", policy.name)?;
        }
    }
    for unsteered in &status.unsteered {
        if unsteered.released {
            say!(
                "error: {} is not steered: `steer off` has released it from policy {}",
                unsteered.path,
                unsteered.policy
            )?;
        } else {
            say!("error: {} is not steered, although policy {} names it", unsteered.path, unsteered.policy)?;
        }
    }
    for what in &status.not_covered {
        say!("not covered: {what}")?;
    }
    for policy in &status.policies {
        if let Some(stale) = &policy.stale {
            say!("error: policy {}: {}", shown(&policy.name), shown(stale))?;
        }
    }
    for spot in &status.blind_spots {
        say!("error: {spot}")?;
    }
    for warning in &status.warnings {
        say!("warning: {warning}")?;
    }
    say!("daemon: {}", if status.daemon { "running" } else { "not running" })
}

/// What a policy reaches besides its uplink, in short.
fn reach(policy: &PolicyStatus) -> String {
    let local = policy.local.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let except = match policy.except.len() {
        0 => String::new(),
        1 => "1 exception".to_owned(),
        count => format!("{count} exceptions"),
    };
    [local, except].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn sum(policy: &PolicyStatus, prefix: &str) -> u64 {
    policy.counters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
}

fn cgroups(policy: &PolicyStatus) -> String {
    let line = |cgroup: &status::CgroupStatus| {
        let removed = || {
            let sockets = if cgroup.programs.is_empty() { "" } else { "; sockets of it are still open" };
            format!("{} (removed{sockets})", cgroup.id)
        };
        let path = cgroup.path.as_ref().map_or_else(removed, ToString::to_string);
        let manual = if cgroup.manual { " (manual)" } else { "" };
        let broken = if cgroup.complete || cgroup.path.is_none() { "" } else { " (INCOMPLETE)" };
        format!("{path}{manual}{broken}")
    };
    policy.cgroups.iter().map(line).collect::<Vec<_>>().join("\n")
}
