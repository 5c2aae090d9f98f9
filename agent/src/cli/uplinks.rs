//! `steer uplinks`: the groups of uplinks in force, the health of their members, and what they hold.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use comfy_table::{ContentArrangement, Table, presets};
use humansize::{DECIMAL, format_size};

use super::{
    block_on,
    output::{PADDING, Unwritten, say},
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

/// A cell without a value.
const NONE: &str = "-";
/// The width of a terminal.
const WIDTH: u16 = 80;

/// Arguments of `steer uplinks`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "IPV4 and IPV6 are the states: up, suspect (something failed, and it is tried again), down, or held (it works again, and new \
                  sockets get it when `hold` in the [[uplink]] has passed). SHARE is the part of new sockets that get the member. SINCE is for \
                  how long it is in its state. LATENCY is that of the last answer to a probe, LOST the part of the last 32 rounds of probes \
                  that failed. OPEN counts the TCP and UDP sockets that are on the member now; SOCKETS in `steer status` counts all since the \
                  policy is in force."
)]
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
        Ok(instance.pins.to_look()?.map_or_else(|| Ok(Vec::new()), |pins| uplinks::read_with_use(&pins, &[]))?)
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

/// What a running daemon shows; nothing without one.
pub(super) async fn of_daemon(socket: &Path) -> Vec<UplinkStatus> {
    let Some(daemon) = Client::find(socket).await else { return Vec::new() };
    daemon.get("/v1/uplinks").await.unwrap_or_default()
}

fn print(groups: &[UplinkStatus]) -> Result<(), Unwritten> {
    say!("{}", members(groups).trim_fmt())?;
    if let Some(links) = links(groups) {
        say!("\ntraffic of the whole link, whoever sends:\n{}", links.trim_fmt())?;
    }
    for group in groups {
        for member in &group.members {
            for line in remarks(member, &group.families()) {
                say!("{}: {line}", shown(&group.name))?;
            }
        }
        if group.members.iter().all(|member| Family::ALL.iter().all(|family| member.health(*family).share == 0.0)) {
            say!("{}: closed, because no member works", shown(&group.name))?;
        }
    }
    Ok(())
}

/// A table that fits, whatever it holds: long cells are broken.
fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding(PADDING);
    }
    table
}

fn members(groups: &[UplinkStatus]) -> Table {
    let mut table = table(["UPLINK", "MEMBER", "IPV4", "IPV6", "SHARE", "SINCE", "LATENCY", "LOST", "OPEN"]);
    for group in groups {
        let families = group.families();
        for member in &group.members {
            let [v4, v6] = Family::ALL.map(|family| member.health(family));
            let best = if v4.probes.is_some() || v4.since_s <= v6.since_s { v4 } else { v6 };
            // A family that no member has is none.
            let state = |family| {
                if families.contains(&family) { member.health(family).state.clone() } else { NONE.to_owned() }
            };
            let latency = both(v4, v6, |health| health.probes.as_ref()?.latency_ms.map(short));
            table.add_row([
                shown(&group.name).to_string(),
                shown(&member.interface).to_string(),
                state(Family::V4),
                state(Family::V6),
                both(v4, v6, |health| Some(format!("{:.0}%", health.share))),
                duration(best.since_s),
                if latency.is_empty() { NONE.to_owned() } else { format!("{latency} ms") },
                Some(both(v4, v6, lost)).filter(|lost| !lost.is_empty()).unwrap_or_else(|| NONE.to_owned()),
                member.sockets.map_or_else(|| NONE.to_owned(), |sockets| sockets.to_string()),
            ]);
        }
    }
    table
}

/// What the links of members have carried; each link once.
fn links(groups: &[UplinkStatus]) -> Option<Table> {
    let mut table = table(["LINK", "SENT", "PACKETS", "RECEIVED", "PACKETS"]);
    let members = groups.iter().flat_map(|group| &group.members);
    let known: BTreeMap<_, _> = members.filter_map(|member| Some((member.interface.as_str(), member.link?))).collect();
    for (interface, link) in &known {
        table.add_row([
            shown(interface).to_string(),
            format_size(link.sent_bytes, DECIMAL),
            link.sent_packets.to_string(),
            format_size(link.received_bytes, DECIMAL),
            link.received_packets.to_string(),
        ]);
    }
    (!known.is_empty()).then_some(table)
}

/// What is known of both families: once if it is the same, else IPv4 first.
fn both(v4: &HealthStatus, v6: &HealthStatus, of: impl Fn(&HealthStatus) -> Option<String>) -> String {
    match (of(v4), of(v6)) {
        (Some(v4), Some(v6)) if v4 != v6 => format!("{v4}/{v6}"),
        (v4, v6) => v4.or(v6).unwrap_or_default(),
    }
}

/// Milliseconds with as many digits as matter.
fn short(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

fn lost(health: &HealthStatus) -> Option<String> {
    let probes = health.probes.as_ref().filter(|probes| probes.rounds > 0)?;
    Some(format!("{:.0}%", f64::from(probes.lost) * 100.0 / f64::from(probes.rounds)))
}

/// What is to be said of a member that is not simply up.
fn remarks(member: &MemberStatus, families: &[Family]) -> Vec<String> {
    let mut remarks = Vec::new();
    let is_up = |health: &HealthStatus| health.state == State::Up.to_string() && health.lingers_for_s.is_none();
    for family in families {
        let health = member.health(*family);
        let is_twice = *family == Family::V6
            && families.len() > 1
            && (&health.state, &health.reason) == (&member.ipv4.state, &member.ipv4.reason);
        if is_up(health) && member.hand == "auto" || is_twice {
            continue;
        }
        let both = (&member.ipv4.state, &member.ipv4.reason) == (&member.ipv6.state, &member.ipv6.reason);
        let of = if both || families.len() == 1 { String::new() } else { format!(" for {family}") };
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

#[cfg(test)]
mod tests {
    use super::{WIDTH, duration, links, members};
    use crate::observe::uplinks::{HealthStatus, LinkTraffic, MemberStatus, ProbeStatus, UplinkStatus};

    fn health(state: &str, share: f64, latency_ms: f64, lost: u32) -> HealthStatus {
        HealthStatus {
            state: state.to_owned(),
            reason: "it works".to_owned(),
            since_s: 3540,
            held_for_s: None,
            share,
            lingers_for_s: None,
            probes: Some(ProbeStatus {
                latency_ms: Some(latency_ms),
                lost,
                rounds: 32,
                failure: None,
                targets: Vec::new(),
            }),
        }
    }

    fn group(name: &str, interface: &str, ipv4: HealthStatus, ipv6: HealthStatus) -> UplinkStatus {
        let link = LinkTraffic {
            sent_bytes: u64::MAX,
            sent_packets: u64::MAX,
            received_bytes: u64::MAX,
            received_packets: u64::MAX,
        };
        UplinkStatus {
            name: name.to_owned(),
            slot: 1,
            balance: "cgroup".to_owned(),
            netns_cookie: 1,
            policies: vec!["p".to_owned()],
            members: vec![MemberStatus {
                interface: interface.to_owned(),
                ifindex: Some(2),
                tier: 1,
                weight: 1,
                metered: false,
                hand: "auto".to_owned(),
                ipv4,
                ipv6,
                sockets: Some(1234),
                link: Some(link),
            }],
        }
    }

    #[test]
    fn it_fits_a_terminal() {
        let usual = group("internet", "eth1", health("up", 75.0, 1.24, 0), health("up", 75.0, 1.24, 0));
        let text = members(std::slice::from_ref(&usual)).to_string();
        let row: Vec<_> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["internet", "eth1", "up", "up", "75%", "59", "min", "1.2", "ms", "0%", "1234"]);
        let worst = (health("suspect", 75.0, 12.3, 1), health("suspect", 100.0, 250.0, 32));
        let worst = group(&"a-long-name-".repeat(5), "enp0s31f6.1234x", worst.0, worst.1);
        let groups = [usual, worst];
        for table in [members(&groups), links(&groups).expect("links")] {
            let text = table.to_string();
            assert!(text.lines().all(|line| line.trim_end().chars().count() <= WIDTH.into()), "{text}");
            assert!(text.contains("1234") || text.contains("EB"), "{text}");
        }
        assert_eq!(duration(59), "59 s");
    }
}
