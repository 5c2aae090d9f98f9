//! `steer status`: the state in force.

use std::{path::Path, process::ExitCode};

use comfy_table::{Table, presets};

use super::{block_on, target::links};
use crate::{
    apply::{blind_spots::BlindSpot, resolve::Namespace},
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel,
    model::quote::shown,
    observe::status::{self, PolicyStatus, Status},
    run::{api::client::Client, instance::Instance},
};

/// Arguments of `steer status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let status = read(instance)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the pinned maps. Without the privilege for that, asks the daemon.
fn read(instance: &Instance) -> anyhow::Result<Status> {
    if let Err(unprivileged) = require_privilege("status") {
        return block_on(async {
            let daemon = Client::find(&instance.socket).await.ok_or(unprivileged)?;
            anyhow::Ok(daemon.get("/v1/status").await?)
        })?;
    }
    let status = match instance.pins.to_look() {
        Some(pins) => {
            let status = status::read(&pins, &Hierarchy::find()?)?;
            status.compared(Namespace { links: &links()?, cookie: kernel::netns_cookie()? })
        }
        None => Status::default(),
    };
    let blind_spots = if status.daemon { block_on(blind_spots(&instance.socket))? } else { Vec::new() };
    Ok(Status { blind_spots, ..status })
}

/// The blind spots of the daemon; none if it does not answer.
pub(super) async fn blind_spots(socket: &Path) -> Vec<BlindSpot> {
    let Some(daemon) = Client::find(socket).await else { return Vec::new() };
    daemon.get("/v1/status").await.map_or_else(|_unanswered| Vec::new(), |status: Status| status.blind_spots)
}

fn print(status: &Status) {
    if status.policies.is_empty() && status.other_versions.is_empty() {
        println!("nothing is steered");
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "POLICY",
            "UPLINK",
            "ENFORCE",
            "DNS",
            "BOUND",
            "CLOSED",
            "REFUSED",
            "LEFT ALONE",
            "STOPPED",
            "CGROUPS",
        ]);
        for policy in &status.policies {
            table.add_row([
                shown(&policy.name).to_string(),
                shown(&policy.uplink()).to_string(),
                format!("{:?}", policy.enforce).to_lowercase(),
                policy.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
                sum(policy, "bound").to_string(),
                sum(policy, "closed_").to_string(),
                sum(policy, "refused_").to_string(),
                sum(policy, "left_").to_string(),
                sum(policy, "stopped_").to_string(),
                cgroups(policy),
            ]);
        }
        println!("{table}");
    }
    for cgroup in &status.other_versions {
        let path = cgroup.path.as_ref().map_or_else(|| cgroup.id.to_string(), ToString::to_string);
        println!("{path} is steered by another version of steer");
    }
    for what in &status.not_covered {
        println!("not covered: {what}");
    }
    for policy in &status.policies {
        if let Some(stale) = &policy.stale {
            println!("error: policy {}: {}", shown(&policy.name), shown(stale));
        }
    }
    for spot in &status.blind_spots {
        println!("error: {spot}");
    }
    for warning in &status.warnings {
        println!("warning: {warning}");
    }
    println!("daemon: {}", if status.daemon { "running" } else { "not running" });
}

fn sum(policy: &PolicyStatus, prefix: &str) -> u64 {
    policy.counters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
}

fn cgroups(policy: &PolicyStatus) -> String {
    let line = |cgroup: &status::CgroupStatus| {
        let path = cgroup.path.as_ref().map_or_else(|| format!("{} (removed)", cgroup.id), ToString::to_string);
        let manual = if cgroup.manual { " (manual)" } else { "" };
        let broken = if cgroup.complete || cgroup.path.is_none() { "" } else { " (INCOMPLETE)" };
        format!("{path}{manual}{broken}")
    };
    policy.cgroups.iter().map(line).collect::<Vec<_>>().join("\n")
}
