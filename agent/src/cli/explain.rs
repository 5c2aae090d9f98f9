//! `steer explain`: which policy holds a process or a cgroup, and why.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use super::{
    block_on, config_file,
    output::{Unwritten, paragraph, say, table},
};
use crate::{
    host::{capability::require_privilege, cgroup::Hierarchy, meant},
    model::{
        quote::{quoted, shown},
        uplink::health::State,
    },
    observe::explain::{self, Attached, Cgroup, Explanation, Hop, LinkState, Members, Options, Packet, Route, Target},
    run::instance::Instance,
};

/// Arguments of `steer explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(value_name = "TARGET", help = meant::HELP)]
    target: String,
    /// Address to explain a packet to, this host and its networks included; nothing is sent there
    #[arg(long, value_name = "ADDRESS", value_parser = destination)]
    to: Option<IpAddr>,
    /// Predict which member of a group of uplinks is chosen if a member were up or down; may be repeated
    #[arg(long = "if", value_name = "MEMBER=STATE", value_parser = assumption)]
    assumed: Vec<(String, State)>,
    /// The configuration file, for the reasons [default: that of the daemon, or /etc/steer/steer.toml, if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let hierarchy = Hierarchy::find()?;
    let target = Target::find(&args.target, &hierarchy)?;
    require_privilege("explain")?;
    let options = Options {
        pin_directory: instance.pins.0.clone(),
        config_is_named: args.config.is_some(),
        store: instance.store(&config_file(args.config.as_deref(), instance)),
        to: args.to.map(|to| to.to_canonical()),
        assumed: args.assumed,
    };
    let explanation = target.inside(|| block_on(explain::explain(&options, &hierarchy, &target)))???;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&explanation)?)?;
    } else {
        print(&explanation)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads an address. A port makes a difference only for DNS, so an answer to it would be for all others.
fn destination(text: &str) -> Result<IpAddr, String> {
    if let Ok(to) = text.parse::<SocketAddr>() {
        return Err(format!(
            "expected an address without a port, as {}: only port 53 makes a difference, whose packets go to the resolver in `dns`",
            to.ip()
        ));
    }
    let bracketed = || text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).parse();
    text.parse().or_else(|_| bracketed()).map_err(|_invalid| {
        format!(
            "expected an address, as 192.0.2.1 or 2001:db8::1; `getent ahosts {}` finds those of a name",
            quoted(text)
        )
    })
}

/// Reads `eth1=down`.
fn assumption(text: &str) -> Result<(String, State), String> {
    let expected = || "expected MEMBER=up or MEMBER=down, as eth1=down".to_owned();
    match text.rsplit_once('=').ok_or_else(expected)? {
        ("", _) => Err(expected()),
        (member, "up") => Ok((member.to_owned(), State::Up)),
        (member, "down") => Ok((member.to_owned(), State::Down)),
        _ => Err(expected()),
    }
}

fn print(explanation: &Explanation) -> Result<(), Unwritten> {
    let Explanation { target, decision, sockets, .. } = explanation;
    paragraph(&shown(&explanation.conclusion).to_string(), 0)?;
    // The answer to `--to`.
    explanation.packet.iter().try_for_each(|packet| paragraph(&shown(&packet.conclusion).to_string(), 0))?;
    say!("\n{}\n", chain(&explanation.chain))?;
    let row = |what: &str, lines: Vec<String>| {
        let names = [what].into_iter().chain(std::iter::repeat(""));
        names.zip(lines).try_for_each(|(name, line)| paragraph(&format!("{name:<11}  {}", shown(&line)), 13))
    };
    if let Some(process) = &target.process {
        let own = if target.netns.own { "this one" } else { "not this one" };
        row(
            "process",
            vec![format!(
                "{} ({}), user {}, network namespace {} ({own})",
                process.pid, process.comm, process.uid, target.netns.inode
            )],
        )?;
    }
    row("cgroup", vec![target.cgroup.to_string()])?;
    row("because", explanation.reasons.clone())?;
    if let Some(decision) = decision {
        row(
            "method",
            decision
                .mark
                .map(|mark| {
                    format!(
                        "sockets are marked {mark:#x}, and rules route packets with this mark by a table of the policy"
                    )
                })
                .into_iter()
                .collect(),
        )?;
        row("local", list(&decision.local))?;
        row("except", list(&decision.except))?;
    }
    row("members", explanation.members.as_ref().map(Members::lines).unwrap_or_default())?;
    row("uplink", explanation.uplink.iter().map(uplink).collect())?;
    let is_bound = decision.as_ref().is_some_and(|decision| decision.mark.is_none());
    row("route", explanation.routes.iter().map(|one| route(one, is_bound)).collect())?;
    row("packet", explanation.packet.iter().flat_map(packet).collect())?;
    if let Some(resolver) = &explanation.resolver {
        let dns = resolver
            .dns
            .iter()
            .map(|server| format!("{server}, whichever server the program asks"))
            .collect::<Vec<_>>();
        let text = match (dns.is_empty(), resolver.stopped) {
            (false, _) => dns,
            (true, true) => vec!["none for this link: DNS queries are stopped".to_owned()],
            (true, false) => vec!["the server that the program asks, by the uplink".to_owned()],
        };
        row("resolver", text)?;
        row("warning", resolver.warnings.clone())?;
    }
    if let Some(sockets) = sockets {
        let is_marked = decision.as_ref().is_some_and(|decision| decision.mark.is_some());
        let held = if is_marked { "without the mark" } else { "not bound to the uplink" };
        let bound = format!("{} open, {} {held}", sockets.open, sockets.elsewhere.len());
        let problem = sockets.problem.as_ref().map(|problem| format!("could not be read: {problem}"));
        let first = problem.unwrap_or(bound);
        row("sockets", [first].into_iter().chain(sockets.elsewhere.iter().cloned()).collect())?;
    }
    if let Some(decision) = decision {
        row("not covered", decision.not_covered.clone())?;
        row("programs", vec![decision.attached.programs.join(", ")])?;
    }
    Ok(())
}

fn chain(cgroups: &[Cgroup]) -> String {
    let mut rows = Vec::new();
    for cgroup in cgroups {
        let attached = match (&cgroup.attached, cgroup.other_version) {
            (Some(attached), _) => self::attached(attached),
            (None, true) => "by another version of steer".to_owned(),
            (None, false) => "-".to_owned(),
        };
        let matches = cgroup.matches.iter().map(|found| format!("{}: {}", found.policy, found.pattern));
        let foreign = cgroup.foreign.iter().map(|program| {
            let what = match (program.exclusive, program.last_word) {
                (true, _) => ", admits no other",
                (false, true) => ", runs after steer's",
                (false, false) => "",
            };
            format!("{} ({}){what}", program.name, program.id)
        });
        rows.push(vec![
            cgroup.path.to_string(),
            attached,
            matches.collect::<Vec<_>>().join("\n"),
            foreign.collect::<Vec<_>>().join("\n"),
        ]);
    }
    table(&["CGROUP", "ATTACHED", "MATCHED BY", "PROGRAMS OF OTHERS"], &rows)
}

fn attached(attached: &Attached) -> String {
    let Some(policy) = &attached.policy else { return "no policy: closed".to_owned() };
    let level = match (&attached.interface, attached.enforce) {
        (None, _) => "exempt".to_owned(),
        (Some(_), enforce) => enforce.map(|enforce| format!("{enforce:?}").to_lowercase()).unwrap_or_default(),
    };
    let manual = if attached.manual { ", manual" } else { "" };
    let missing = match (&attached.missing[..], attached.complete) {
        (_, true) => String::new(),
        ([], false) => format!(", superfluous: {}", attached.superfluous.join(" ")),
        (missing, false) => format!(", MISSING {}", missing.join(" ")),
    };
    format!("{policy} ({level}{manual}){missing}")
}

fn uplink(uplink: &explain::Uplink) -> String {
    // No link has an empty name.
    if uplink.interface.is_empty() {
        return "none: closed".to_owned();
    }
    let state = match uplink.state {
        LinkState::Up => "up",
        LinkState::NoCarrier => "up, without carrier",
        LinkState::Down => "down",
        LinkState::Missing => "missing: closed",
    };
    let renamed = uplink.link.as_ref().filter(|link| **link != uplink.interface);
    let renamed = renamed.map(|link| format!(", now called {link}")).unwrap_or_default();
    let index = uplink.ifindex.map(|ifindex| format!(" (index {ifindex})")).unwrap_or_default();
    format!("{}{index}{renamed}, {state}", uplink.interface)
}

fn route(route: &Route, is_bound: bool) -> String {
    let Route { destination, steered, unsteered } = route;
    let unsteered = ways(unsteered).unwrap_or_else(|| "no route".to_owned());
    let Some(steered) = steered else { return format!("to {destination}: {unsteered}") };
    let none = match destination {
        this_host if this_host.is_loopback() || this_host.is_unspecified() => "refused (EPERM)",
        IpAddr::V4(_) if is_bound => "no route: treated as a neighbour on the link",
        IpAddr::V4(_) => "no route",
        IpAddr::V6(_) => "no route (ENETUNREACH)",
    };
    let steered = ways(steered).unwrap_or_else(|| none.to_owned());
    format!("to {destination}: {steered}; without steer: {unsteered}")
}

/// Nothing, or one line.
fn list<T: ToString>(items: &[T]) -> Vec<String> {
    let line = items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if line.is_empty() { Vec::new() } else { vec![line] }
}

/// What happens, then by which rule and route, then what to set instead.
fn packet(packet: &Packet) -> Vec<String> {
    let Packet { rule, table, prefix, hint, conclusion, .. } = packet;
    let prefix = prefix.iter().zip(table).map(|(prefix, table)| match table {
        254 => format!("{prefix} in table main"),
        0..=253 | 255 => format!("{prefix} in table {table}"),
        table => format!("{prefix} in table {table:#x}"),
    });
    let way = rule.iter().map(|rule| rule.text.clone()).chain(prefix).collect::<Vec<_>>().join("; ");
    let way = Some(way).filter(|way| !way.is_empty());
    [conclusion.clone()].into_iter().chain(way).chain(hint.iter().map(|hint| format!("hint: {hint}"))).collect()
}

fn ways(hops: &[Hop]) -> Option<String> {
    let way = |hop: &Hop| match hop.gateway {
        Some(gateway) => format!("by {} via {gateway}", hop.interface),
        None => format!("by {}", hop.interface),
    };
    (!hops.is_empty()).then(|| hops.iter().map(way).collect::<Vec<_>>().join(" or "))
}
