//! `steer uplinks`: the groups of uplinks in force, and the health of their members.

use std::process::ExitCode;

use comfy_table::{Table, presets};

use super::{
    block_on,
    output::{Unwritten, say},
};
use crate::{
    host::capability::require_privilege,
    model::{
        quote::shown,
        uplink::{Family, health::State},
    },
    observe::uplinks::{self, HealthStatus, MemberStatus, UplinkStatus},
    run::{api::client::Client, instance::Instance},
};

/// Arguments of `steer uplinks`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let groups: Vec<UplinkStatus> = block_on(async {
        if let Some(daemon) = Client::find(&instance.socket).await {
            return anyhow::Ok(daemon.get("/v1/uplinks").await?);
        }
        require_privilege("uplinks")?;
        Ok(instance.pins.to_look()?.map_or_else(|| Ok(Vec::new()), |pins| uplinks::read(&pins, &[]))?)
    })??;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&groups)?)?;
    } else if groups.is_empty() {
        say!("no policy in force uses a group of uplinks; [[uplink]] in steer.toml makes one")?;
    } else {
        print(&groups)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(groups: &[UplinkStatus]) -> Result<(), Unwritten> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["UPLINK", "MEMBER", "IPV4", "IPV6", "SHARE", "SINCE", "LATENCY", "LOST"]);
    for group in groups {
        for member in &group.members {
            let [v4, v6] = Family::ALL.map(|family| member.health(family));
            let best = if v4.probes.is_some() || v4.since_s <= v6.since_s { v4 } else { v6 };
            table.add_row([
                shown(&group.name).to_string(),
                shown(&member.interface).to_string(),
                v4.state.clone(),
                v6.state.clone(),
                share(v4, v6),
                duration(best.since_s),
                latency(v4, v6),
                lost(v4, v6),
            ]);
        }
    }
    say!("{table}")?;
    for group in groups {
        for member in &group.members {
            for line in remarks(member) {
                say!("{}: {line}", shown(&group.name))?;
            }
        }
        if group.members.iter().all(|member| Family::ALL.iter().all(|family| member.health(*family).share == 0.0)) {
            say!("{}: closed, because no member works", shown(&group.name))?;
        }
    }
    Ok(())
}

fn share(v4: &HealthStatus, v6: &HealthStatus) -> String {
    let one = |health: &HealthStatus| format!("{:.0}%", health.share);
    if one(v4) == one(v6) { one(v4) } else { format!("{}/{}", one(v4), one(v6)) }
}

fn latency(v4: &HealthStatus, v6: &HealthStatus) -> String {
    let one = |health: &HealthStatus| health.probes.as_ref()?.latency_ms.map(|ms| format!("{ms:.1} ms"));
    [v4, v6].into_iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

fn lost(v4: &HealthStatus, v6: &HealthStatus) -> String {
    let one = |health: &HealthStatus| {
        health.probes.as_ref().filter(|probes| probes.rounds > 0).map(|it| format!("{}/{}", it.lost, it.rounds))
    };
    [v4, v6].into_iter().filter_map(one).collect::<Vec<_>>().join(", ")
}

/// What is to be said of a member that is not simply up.
fn remarks(member: &MemberStatus) -> Vec<String> {
    let mut remarks = Vec::new();
    let is_up = |health: &HealthStatus| health.state == State::Up.to_string() && health.lingers_for_s.is_none();
    for family in Family::ALL {
        let health = member.health(family);
        let is_twice =
            family == Family::V6 && (&health.state, &health.reason) == (&member.ipv4.state, &member.ipv4.reason);
        if is_up(health) && member.hand == "auto" || is_twice {
            continue;
        }
        let both = (&member.ipv4.state, &member.ipv4.reason) == (&member.ipv6.state, &member.ipv6.reason);
        let of = if both { String::new() } else { format!(" for {family}") };
        let failure = health.probes.as_ref().and_then(|probes| probes.failure.as_ref());
        let failure = failure.map_or_else(String::new, |failure| format!(" ({failure})"));
        let held = health.held_for_s.map_or_else(String::new, |left| format!("; up in {}", duration(left)));
        let lingers = health
            .lingers_for_s
            .map_or_else(String::new, |left| format!("; its connections are ended in {}", duration(left)));
        remarks.push(format!(
            "{} is {}{of}: {}{failure}{held}{lingers}",
            shown(&member.interface),
            health.state,
            health.reason
        ));
    }
    remarks
}

/// A duration in its largest unit.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}
