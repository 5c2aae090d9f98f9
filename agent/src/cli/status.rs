//! `steer status`: the state in force.

use std::process::ExitCode;

use comfy_table::{Table, presets};

use super::{
    block_on,
    output::{Unwritten, say},
};
use crate::{
    host::{capability::require_privilege, cgroup::Hierarchy},
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
        say!("{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        print(&status)?;
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
    Ok(match instance.pins.to_look()? {
        Some(pins) => status::read(&pins, &Hierarchy::find()?)?,
        None => Status::default(),
    })
}

fn print(status: &Status) -> Result<(), Unwritten> {
    if status.policies.is_empty() && status.other_versions.is_empty() {
        say!("nothing is steered")?;
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
                policy.name.clone(),
                policy.uplink(),
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
        say!("{table}")?;
    }
    for cgroup in &status.other_versions {
        let path = cgroup.path.as_ref().map_or_else(|| cgroup.id.to_string(), ToString::to_string);
        say!("{path} is steered by another version of steer")?;
    }
    for what in &status.not_covered {
        say!("not covered: {what}")?;
    }
    for warning in &status.warnings {
        say!("warning: {warning}")?;
    }
    say!("daemon: {}", if status.daemon { "running" } else { "not running" })
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
