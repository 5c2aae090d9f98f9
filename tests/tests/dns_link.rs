//! `dns = "link"`: queries go to the resolvers that systemd-resolved has for the uplink, as they change, and nowhere without one.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use anyhow::ensure;
use steer_lab::{SERVER_V4, SERVER_V6, parse_outcomes, wait_until};
use steer_tests::{Bus, Daemon, Outcome, PATIENCE, RealResolved, Resolved, Spy, USERS, output, replace_file};

use crate::{
    Test,
    dns::{Names, OTHER_RESOLVER, OTHER_RESOLVER_V6, RESOLVER_V4, RESOLVER_V6, STUB},
};

pub(crate) const TESTS: &[Test] = &[
    ("follows_the_link", follows_the_link),
    ("without_a_daemon", without_a_daemon),
    ("a_real_resolved", a_real_resolved),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ndns = \"link\"\ncgroups = [\"@\"]\n";

/// No query is answered, and none leaves or reaches this host's own resolver.
fn check_stopped(names: &Names) -> Outcome {
    let mut spy = Spy::on(&names.bed, &[])?;
    for (user, mapped) in [(USERS[0], &[][..]), (USERS[1], &["--mapped"][..])] {
        let mut command = names.bed.client(Some(&names.bed.cgroup), user)?;
        command.args(["--json", "--timeout-ms", "500", "--resolve", "short.example"]).args(mapped);
        command.args(["--proto", "udp", "--proto", "udp-unconnected", "--proto", "tcp"]);
        let servers: [IpAddr; 4] = [STUB.into(), SERVER_V4.into(), Ipv6Addr::LOCALHOST.into(), SERVER_V6.into()];
        for server in servers.iter().filter(|server| mapped.is_empty() || server.is_ipv4()) {
            command.args(["--target", &server.to_string()]);
        }
        let outcomes = parse_outcomes(&output(&mut command)?.stdout)?;
        let answered = outcomes.iter().find(|outcome| outcome.is_ok());
        ensure!(!outcomes.is_empty() && answered.is_none(), "{user:?}: {answered:?}");
    }
    spy.saw_nothing()?;
    ensure!(names.far.take().is_empty() && names.stub.take().is_empty());
    // Everything else goes on.
    names.bed.check_steered(&names.bed.cgroup, 1)
}

fn follows_the_link() -> Outcome {
    let names = Names::new("dns-link")?;
    let bed = &names.bed;
    let (bus, [a0, a1]) = (Bus::start(&bed.directory)?, [bed.net.ifindex(0)?, bed.net.ifindex(1)?]);
    let of =
        |link: u32, v4: IpAddr, v6: IpAddr| [(0, SERVER_V4.into()), (a0, SERVER_V4.into()), (link, v4), (link, v6)];
    bed.write_config(CONFIG)?;
    let start = || {
        let mut command = bed.steer(&["daemon", "--config"]);
        command.arg(bed.config_file()).env("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
        Daemon::spawn(bed, command)
    };
    let daemon = start()?;
    // Nothing answers on the bus yet.
    check_stopped(&names)?;
    let status = bed.succeed(&["status"])?;
    ensure!(status.contains("warning: p: DNS queries are stopped, because "), "{status}");
    let finding = bed.only_finding("link-resolver")?;
    ensure!(finding.text("what").contains("policy p has dns = \"link\""), "{finding:?}");
    let resolved = Resolved::start(&bus, &of(a1, RESOLVER_V4.into(), RESOLVER_V6.into()))?;
    daemon.wait_for_log(&format!("policy p: the resolvers of a1 are {RESOLVER_V4}, {RESOLVER_V6}"))?;
    names.check(&bed.cgroup, RESOLVER_V4)?;
    ensure!(bed.policy("p")?["dns"] == serde_json::json!([RESOLVER_V4, RESOLVER_V6]));
    let slot = bed.policy("p")?["slot"].clone();
    resolved.set(&of(a1, OTHER_RESOLVER.into(), OTHER_RESOLVER_V6.into()))?;
    daemon.wait_for_log(&format!("policy p: the resolvers of a1 are {OTHER_RESOLVER}, {OTHER_RESOLVER_V6}"))?;
    names.check_by(&bed.cgroup, 1, OTHER_RESOLVER, OTHER_RESOLVER_V6)?;
    // A reload, and the start of another daemon, change nothing.
    bed.succeed(&["reload"])?;
    ensure!(bed.succeed(&["plan"])? == "nothing to do\n");
    drop(daemon);
    let daemon = start()?;
    names.check_by(&bed.cgroup, 1, OTHER_RESOLVER, OTHER_RESOLVER_V6)?;
    ensure!(bed.policy("p")?["slot"] == slot, "it keeps its slot");
    // A link without resolvers, and a service that ends, stop the queries.
    let before = daemon.log().len();
    resolved.set(&[(a0, SERVER_V4.into())])?;
    let stopped = "policy p: systemd-resolved has no resolver for a1; DNS queries are stopped";
    wait_until("the resolvers to go", PATIENCE, || daemon.log()[before..].contains(stopped))?;
    check_stopped(&names)?;
    let before = daemon.log().len();
    resolved.set(&of(a1, RESOLVER_V4.into(), RESOLVER_V6.into()))?;
    let again = format!("policy p: the resolvers of a1 are {RESOLVER_V4}, {RESOLVER_V6}");
    wait_until("the resolvers to be back", PATIENCE, || daemon.log()[before..].contains(&again))?;
    let before = daemon.log().len();
    resolved.stop()?;
    wait_until("the service to be gone", PATIENCE, || daemon.log()[before..].contains(stopped))?;
    check_stopped(&names)
}

fn without_a_daemon() -> Outcome {
    let names = Names::new("dns-link-alone")?;
    let bed = &names.bed;
    let (bus, a1) = (Bus::start(&bed.directory)?, bed.net.ifindex(1)?);
    let resolved = Resolved::start(&bus, &[(a1, RESOLVER_V4.into()), (a1, RESOLVER_V6.into())])?;
    exec_asks_the_link(&names, &bus, &resolved, a1)?;
    resolved.set(&[(a1, RESOLVER_V4.into()), (a1, RESOLVER_V6.into())])?;
    let mut attach = bed.steer(&["attach", bed.cgroup.path(), "-i", "a1", "--dns", "link"]);
    let attached = steer_tests::output(attach.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address()))?;
    ensure!(attached.code == 0, "{attached:?}");
    names.check(&bed.cgroup, RESOLVER_V4)?;
    // A group has no link of its own.
    bed.write_config(&CONFIG.replace("interface = \"a1\"", "interface = [\"a0\", \"a1\"]"))?;
    let refused = bed.run(&["check", &bed.config_file().to_string_lossy()])?;
    ensure!(refused.code == 2 && refused.stderr.contains("a group of uplinks has no link of its own"), "{refused:?}");
    bed.write_config(&CONFIG.replace("dns =", "enforce = \"steer\"\ndns ="))?;
    let refused = bed.run(&["check", &bed.config_file().to_string_lossy()])?;
    ensure!(refused.code == 2 && refused.stderr.contains("needs enforce = \"strict\""), "{refused:?}");
    Ok(())
}

/// Where resolv.conf points to this host. While the command runs, its keeper follows the resolvers.
fn exec_asks_the_link(names: &Names, bus: &Bus, resolved: &Resolved, a1: u32) -> Outcome {
    let bed = &names.bed;
    let exec = |resolv_conf: &str, more: &[&str], program: &[&str]| -> anyhow::Result<std::process::Command> {
        let file = bed.directory.join(format!("resolv.conf.{}", resolv_conf.len()));
        std::fs::write(&file, resolv_conf)?;
        let mut command = bed.steer_here(&[&["exec", "-i", "a1"], more, &["--"], program].concat());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
        replace_file(&mut command, Path::new("/etc/resolv.conf"), &file);
        bed.cgroup.enter(&mut command);
        bed.net.client.enter(&mut command);
        Ok(command)
    };
    let stub = format!("nameserver {STUB}\n");
    let mut command = exec(&stub, &[], &["sleep", "1000"])?.spawn()?;
    let dns = || bed.policy("a1").map(|policy| policy["dns"].clone()).unwrap_or_default();
    let shows =
        |what: &str, v4: IpAddr, v6: IpAddr| wait_until(what, PATIENCE, || dns() == serde_json::json!([v4, v6]));
    shows("the resolvers of the link", RESOLVER_V4.into(), RESOLVER_V6.into())?;
    resolved.set(&[(a1, OTHER_RESOLVER.into()), (a1, OTHER_RESOLVER_V6.into())])?;
    shows("the other resolvers", OTHER_RESOLVER.into(), OTHER_RESOLVER_V6.into())?;
    resolved.set(&[(a1, RESOLVER_V4.into()), (a1, RESOLVER_V6.into())])?;
    shows("the first resolvers", RESOLVER_V4.into(), RESOLVER_V6.into())?;
    command.kill()?;
    command.wait()?;
    wait_until("the keeper to clean up", PATIENCE, || bed.cgroup.children().is_empty())?;
    // An option, or another server in resolv.conf, says something else; and a link may have no resolver.
    let quiet = output(&mut exec(&stub, &[], &["true"])?)?;
    ensure!(quiet.code == 0 && quiet.stderr.is_empty(), "{quiet:?}");
    resolved.set(&[])?;
    let warned = output(&mut exec(&stub, &[], &["true"])?)?;
    ensure!(warned.code == 0 && warned.stderr.contains("names 127.0.0.53"), "{warned:?}");
    let quiet = output(&mut exec("nameserver 203.0.113.53\n", &[], &["true"])?)?;
    ensure!(quiet.code == 0 && quiet.stderr.is_empty(), "{quiet:?}");
    wait_until("the keepers to clean up", PATIENCE, || bed.cgroup.children().is_empty())?;
    Ok(())
}

/// The same with systemd-resolved itself, as `resolvectl dns` changes it.
fn a_real_resolved() -> Outcome {
    let names = Names::new("dns-link-real")?;
    let bed = &names.bed;
    let (bus, a1) = (Bus::start(&bed.directory)?, bed.net.ifindex(1)?);
    let resolved = RealResolved::start(bed, &bus)?;
    resolved.set(a1, &[RESOLVER_V4.into(), RESOLVER_V6.into()])?;
    bed.write_config(CONFIG)?;
    let mut command = bed.steer(&["daemon", "--config"]);
    command.arg(bed.config_file()).env("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
    let daemon = Daemon::spawn(bed, command)?;
    daemon.wait_for_log(&format!("policy p: the resolvers of a1 are {RESOLVER_V4}, {RESOLVER_V6}"))?;
    names.check(&bed.cgroup, RESOLVER_V4)?;
    resolved.set(a1, &[OTHER_RESOLVER.into(), OTHER_RESOLVER_V6.into()])?;
    daemon.wait_for_log(&format!("policy p: the resolvers of a1 are {OTHER_RESOLVER}, {OTHER_RESOLVER_V6}"))?;
    names.check_by(&bed.cgroup, 1, OTHER_RESOLVER, OTHER_RESOLVER_V6)?;
    let before = daemon.log().len();
    resolved.set(a1, &[])?;
    let stopped = "policy p: systemd-resolved has no resolver for a1; DNS queries are stopped";
    wait_until("the resolvers to go", PATIENCE, || daemon.log()[before..].contains(stopped))?;
    check_stopped(&names)
}
