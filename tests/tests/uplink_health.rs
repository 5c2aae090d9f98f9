//! Groups of uplinks: members that fail behind a live link, lose what their link needs, are taken out of use by hand, and return.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use steer_lab::{Capture, SERVER_V4, SERVER_V6, client_v4, client_v6, leaks, wait_until};
use steer_tests::{Bed, Held, Outcome, PATIENCE, Spy, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_dead_line_is_left", a_dead_line_is_left),
    ("a_link_that_lacks_something_is_left", a_link_that_lacks_something_is_left),
    ("one_family_is_left", one_family_is_left),
    ("by_hand", by_hand),
    ("changes_are_events", changes_are_events),
    ("the_next_daemon_decides_the_same", the_next_daemon_decides_the_same),
    ("nobody_is_probed_for_nobody", nobody_is_probed_for_nobody),
];

const METHODS: [&str; 2] = ["[]", "[\"host\"]"];
const PROBE: &str = "probe = { targets = [\"gateway\"], interval = \"100ms\", rise = 2 }\nhold = \"1s\"";

/// A group whose first choice is a1.
pub(crate) fn config(settings: &str, local: &str) -> String {
    format!(
        "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", {{ interface = \"a0\", tier = 2 }}]\n{settings}\n\
         [[policy]]\nname = \"p\"\nuplink = \"lines\"\nlocal = {local}\ncgroups = [\"@\"]\n"
    )
}

/// A member as `steer uplinks` shows it.
pub(crate) fn member(bed: &Bed, interface: &str) -> anyhow::Result<Value> {
    let groups: Value = serde_json::from_str(&bed.succeed(&["uplinks", "--json"])?)?;
    let members = groups[0]["members"].as_array().context("no members")?;
    members.iter().find(|member| member["interface"] == interface).cloned().context("no such member")
}

/// Waits until new sockets of both families get a member.
pub(crate) fn wait_for(bed: &Bed, interface: &str) -> Outcome {
    wait_for_families(bed, interface, &["ipv4", "ipv6"])
}

pub(crate) fn wait_for_families(bed: &Bed, interface: &str, families: &[&str]) -> Outcome {
    let has_all = |member: Value| {
        families.iter().all(|family| member[*family]["share"].as_f64().is_some_and(|share| share > 99.0))
    };
    wait_until(&format!("{families:?} sockets to get {interface}"), PATIENCE, || {
        member(bed, interface).is_ok_and(has_all)
    })
    .with_context(|| bed.succeed(&["uplinks", "--json"]).unwrap_or_default())?;
    Ok(())
}

/// Checks that every kind of socket reaches the server by an uplink. Probes leave by the other one meanwhile.
pub(crate) fn check_by(bed: &Bed, uplink: u8) -> Outcome {
    check_outcomes(&bed.probe(Some(&bed.cgroup), User::Nobody)?, User::Nobody, uplink)
}

/// Lets the server drop all answers to an uplink, or not.
fn black_hole(bed: &Bed, uplink: u8, is_on: bool) -> Outcome {
    let change = if is_on { "add" } else { "del" };
    for (family, client) in [("-4", client_v4(uplink).to_string()), ("-6", client_v6(uplink).to_string())] {
        bed.ip_of_server(&format!("{family} rule {change} pref 0 to {client} blackhole"))?;
    }
    Ok(())
}

/// A client in the bed's cgroup that keeps TCP and UDP sockets of both families.
pub(crate) fn held(bed: &Bed) -> anyhow::Result<Held> {
    let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
    client.args(["--json", "--timeout-ms", "1000", "--port", &bed.server.port().to_string()]);
    client.args(["--proto", "tcp", "--proto", "udp"]);
    client.args(["--target", &SERVER_V4.to_string(), "--target", &SERVER_V6.to_string()]);
    Held::start(&mut client)
}

/// Whether the held sockets of each family go by these uplinks.
pub(crate) fn go_by(held: &mut Held, v4: u8, v6: u8) -> anyhow::Result<bool> {
    let by = [client_v4(v4).to_string(), client_v6(v6).to_string()];
    let outcomes = held.round()?;
    Ok(outcomes.iter().all(|outcome| outcome.saw.as_ref().is_some_and(|saw| by.contains(saw))))
}

fn a_dead_line_is_left() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("health-dead")?;
        let _daemon = bed.daemon(&config(PROBE, local))?;
        wait_for(&bed, "a1")?;
        let mut held = held(&bed)?;
        ensure!(go_by(&mut held, 1, 1)?);
        let mut spy = Spy::on(&bed, &["a0", "a1"])?;
        black_hole(&bed, 1, true)?;
        wait_for(&bed, "a0").with_context(|| format!("local = {local}"))?;
        let dead = member(&bed, "a1")?;
        ensure!(dead["ipv4"]["state"] == "down" && dead["ipv4"]["reason"] == "probes are not answered", "{dead}");
        ensure!(dead["ipv6"]["probes"]["failure"] == "no answer in time", "{dead}");
        wait_until("sockets on the other member", PATIENCE, || go_by(&mut held, 0, 0).unwrap_or_default())?;
        check_by(&bed, 0)?;
        black_hole(&bed, 1, false)?;
        wait_for(&bed, "a1").with_context(|| format!("the return, local = {local}"))?;
        // Only new sockets get the better one.
        ensure!(go_by(&mut held, 0, 0)?);
        check_by(&bed, 1)?;
        spy.saw_nothing().with_context(|| format!("local = {local}"))?;
    }
    Ok(())
}

fn a_link_that_lacks_something_is_left() -> Outcome {
    let bed = Bed::new("health-link")?;
    let _daemon = bed.daemon(&config("hold = \"0s\"", "[]"))?;
    let gateway = bed.ip("-4 route show default dev a1")?;
    let link = bed.net.server_link(1);
    wait_for(&bed, "a1")?;
    bed.ip_of_server(&format!("link set {link} down"))?;
    wait_for(&bed, "a0").context("no carrier")?;
    ensure!(member(&bed, "a1")?["ipv4"]["reason"] == "its link is down or has no carrier");
    check_by(&bed, 0)?;
    bed.ip_of_server(&format!("link set {link} up"))?;
    wait_for_families(&bed, "a1", &["ipv4"]).context("the carrier is back")?;
    bed.ip(&format!("-4 route del {} dev a1", gateway.trim()))?;
    wait_for_families(&bed, "a0", &["ipv4"]).context("no route")?;
    ensure!(member(&bed, "a1")?["ipv4"]["reason"] == "no default route of this family");
    bed.ip(&format!("-4 route add {} dev a1", gateway.trim()))?;
    wait_for_families(&bed, "a1", &["ipv4"]).context("the route is back")?;
    bed.ip("-4 addr flush dev a1")?;
    wait_for_families(&bed, "a0", &["ipv4"]).context("no address")?;
    ensure!(member(&bed, "a1")?["ipv4"]["reason"] == "no address of this family");
    // A tunnel needs no gateway, so it needs no default route.
    let _tun = bed.net.client.add_tun("t0")?;
    bed.net.client.set_up("t0")?;
    bed.net.client.add_address("t0", Ipv4Addr::new(10, 0, 9, 2).into(), 24)?;
    bed.write_config(&config("hold = \"0s\"", "[]").replace("\"a1\"", "\"t0\""))?;
    bed.succeed(&["reload"])?;
    wait_for_families(&bed, "t0", &["ipv4"]).context("a tunnel")?;
    Ok(())
}

fn one_family_is_left() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("health-family")?;
        let _daemon = bed.daemon(&config(PROBE, local))?;
        wait_for(&bed, "a1")?;
        let mut held = held(&bed)?;
        ensure!(go_by(&mut held, 1, 1)?);
        bed.ip_of_server(&format!("-4 rule add pref 0 to {} blackhole", client_v4(1)))?;
        wait_for_families(&bed, "a0", &["ipv4"]).with_context(|| format!("local = {local}"))?;
        // IPv6 connections go on where they were, and IPv4 goes on by the other member.
        wait_until("IPv4 on the other member", PATIENCE, || go_by(&mut held, 0, 1).unwrap_or_default())?;
        wait_for_families(&bed, "a1", &["ipv6"])?;
    }
    Ok(())
}

fn by_hand() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("health-hand")?;
        let daemon = bed.daemon(&config("hold = \"0s\"", local))?;
        wait_for(&bed, "a1")?;
        let mut held = held(&bed)?;
        ensure!(go_by(&mut held, 1, 1)?);
        let (used, other) = (member(&bed, "a1")?, member(&bed, "a0")?);
        ensure!(used["sockets"] == 4 && other["sockets"] == 0, "local = {local}: {used} {other}");
        ensure!(used["link"]["sent_packets"].as_u64() > Some(0), "{used}");
        let shown = bed.succeed(&["uplinks"])?;
        ensure!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        let explained = bed.succeed(&["explain", bed.cgroup.path(), "--if", "a1=down"])?;
        ensure!(explained.contains("lines: a1") && explained.contains("if that were so: a0"), "{explained}");
        let said = bed.run(&["uplink", "down", "lines", "a1"])?;
        ensure!(said.stdout == "lines: a1 is down, set by hand; new sockets get a0\n", "{said:?}");
        ensure!(said.stderr.is_empty(), "{said:?}");
        let verdict = bed.status()?["verdict"].as_str().unwrap_or_default().to_owned();
        ensure!(verdict == "1 policy in force; lines: a1 is down, a0 is used", "{verdict}");
        let wrong = bed.run(&["explain", bed.cgroup.path(), "--if", "wg0=down"])?;
        ensure!(wrong.code == 1 && wrong.stderr.contains("wg0 is no member of uplink lines"), "{wrong:?}");
        // The command returns when sockets were moved.
        wait_for(&bed, "a0")?;
        ensure!(go_by(&mut held, 0, 0)? || go_by(&mut held, 0, 0)?, "local = {local}");
        ensure!(member(&bed, "a1")?["hand"] == "down");
        let findings = bed.doctor(&[])?.findings;
        let mut of_group = findings.iter().filter(|finding| finding.id == "uplink-group");
        ensure!(of_group.any(|finding| finding.text("what").contains("a1 is down")), "{findings:?}");
        check_by(&bed, 0)?;
        the_last_member(&bed)?;
        check_by(&bed, 0)?;
        ensure!(daemon.end(Signal::SIGKILL)?.is_none());
        bed.succeed(&["uplink", "auto", "lines", "a1"])?;
        wait_for(&bed, "a1").context("without a daemon")?;
        check_by(&bed, 1)?;
        bed.succeed(&["uplink", "down", "lines", "a1"])?;
        let _daemon = bed.daemon(&config("hold = \"0s\"", local))?;
        check_by(&bed, 0).context("the next daemon keeps it")?;
        bed.succeed(&["uplink", "up", "lines", "a1"])?;
        wait_for(&bed, "a1")?;
        by_the_api(&bed).with_context(|| format!("local = {local}"))?;
        let wrong = bed.run(&["uplink", "down", "lines", "a2"])?;
        ensure!(wrong.code == 1 && wrong.stderr.contains("its members are a1, a0"), "{wrong:?}");
        let wrong = bed.run(&["uplink", "down", "line", "a1"])?;
        ensure!(wrong.code == 1 && wrong.stderr.contains("`steer uplinks` lists"), "{wrong:?}");
    }
    Ok(())
}

/// The same by the API: sockets were moved when the answer arrives.
fn by_the_api(bed: &Bed) -> Outcome {
    let put = |path: &str, hand: &str| {
        let body = serde_json::json!({ "hand": hand }).to_string();
        bed.ask(User::Root, "PUT", &format!("/v1/uplinks/{path}"), Some(&body))
    };
    let mut held = held(bed)?;
    ensure!(go_by(&mut held, 1, 1)?);
    let down = put("lines/members/a1", "down")?;
    let seen = &down.body;
    ensure!(down.status == 200 && seen["hand"] == "down" && seen["ipv4"]["state"] == "down", "{down:?}");
    ensure!(
        seen["ipv6"]["share"] == 0.0 && seen["sockets"] == 0 && seen["remaining"] == serde_json::json!([]),
        "{seen}"
    );
    ensure!(go_by(&mut held, 0, 0)? || go_by(&mut held, 0, 0)?);
    check_by(bed, 0)?;
    ensure!(put("lines/members/a1", "up")?.body["ipv4"]["reason"] == "set by hand");
    check_by(bed, 1)?;
    let auto = put("lines/members/a1", "auto")?;
    ensure!(auto.body["hand"] == "auto" && auto.body["ipv4"]["state"] == "up", "{auto:?}");
    ensure!(bed.get("/v1/uplinks")?[0]["members"][0]["hand"] == "auto");
    for (path, hand, status, said) in [
        ("lines/members/a2", "down", 404, "its members are a1, a0"),
        ("line/members/a1", "down", 404, "no policy in force here uses an uplink"),
        ("lines/members/a1", "off", 422, "expected {\"hand\": \"down\"}"),
    ] {
        let wrong = put(path, hand)?;
        let detail = wrong.body["detail"].as_str().unwrap_or_default();
        ensure!(wrong.status == status && detail.contains(said), "{path}: {wrong:?}");
    }
    Ok(())
}

/// Traffic stays where it was, and each command says so.
fn the_last_member(bed: &Bed) -> Outcome {
    let said = bed.run(&["uplink", "down", "lines", "a0"])?;
    let expected = "steer: warning: traffic of lines still uses a0, because no member works; all_down = \"close\"";
    ensure!(said.stderr.starts_with(expected) && said.stdout == "lines: a0 is down, set by hand\n", "{said:?}");
    let status = bed.succeed(&["status"])?;
    for line in
        ["1 policy has no member that works: lines", "  a1 down (set by hand)\n", "  a0 down (set by hand), chosen\n"]
    {
        ensure!(status.contains(line), "{line} in {status}");
    }
    let policy = bed.policy("p")?;
    ensure!(policy["state"] == "failing" && policy["uplink"] == "lines", "{policy}");
    let again = bed.succeed(&["uplink", "auto", "lines", "a0"])?;
    let expected = "lines: link, probes and connections decide about a0 again; it is ";
    ensure!(again.starts_with(expected) && again.ends_with("; new sockets get a0\n"), "{again}");
    wait_for(bed, "a0")
}

/// The events of groups, with their reasons.
pub(crate) fn changes(bed: &Bed) -> anyhow::Result<Vec<(String, Value)>> {
    let text = bed.succeed(&["events", "--once", "--json"])?;
    let mut changes = Vec::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line)?;
        if event["uplink"].is_object() {
            changes.push((event["reason"].as_str().unwrap_or_default().to_owned(), event["uplink"].clone()));
        }
    }
    Ok(changes)
}

/// Whoever makes the change, the daemon or a command.
fn changes_are_events() -> Outcome {
    let bed = Bed::new("health-events")?;
    let daemon = bed.daemon(&config("hold = \"0s\"", "[]"))?;
    wait_for(&bed, "a1")?;
    let first = changes(&bed)?;
    let chosen = first.iter().find(|(reason, _)| reason == "uplink_switch").context("no first choice")?;
    ensure!(
        chosen.1["group"] == "lines" && chosen.1["ipv4"]["from"].as_array().is_some_and(Vec::is_empty),
        "{first:?}"
    );
    let mut held = held(&bed)?;
    ensure!(go_by(&mut held, 1, 1)?);
    bed.succeed(&["uplink", "down", "lines", "a1"])?;
    let now = changes(&bed)?;
    let state = &now.iter().rfind(|(reason, _)| reason == "uplink_state").context("no state")?.1;
    ensure!(state["member"] == "a1" && state["state"] == "down" && state["why"] == "set by hand", "{now:?}");
    let switch = &now.iter().rfind(|(reason, _)| reason == "uplink_switch").context("no switch")?.1;
    for family in ["ipv4", "ipv6"] {
        ensure!(switch[family]["from"][0] == "a1" && switch[family]["to"][0] == "a0", "{switch}");
    }
    ensure!(switch["why"] == "a1 is down: set by hand" && switch["left"][0] == "a1", "{switch}");
    ensure!(switch["ended"].as_u64() >= Some(2) && switch["moved"].as_u64() >= Some(2), "{switch}");
    let text = bed.succeed(&["events", "--once"])?;
    ensure!(text.contains(" uplink_switch uplink=\"lines\" ipv4=\"a1 -> a0\" ipv6=\"a1 -> a0\" why="), "{text}");
    let metrics = bed.ask(User::Root, "GET", "/metrics", None)?.text;
    let ended = switch["ended"].as_u64().unwrap_or_default();
    for line in [
        "steer_uplink_switches_total{family=\"ipv4\",uplink=\"lines\"} 1".to_owned(),
        "steer_uplink_switches_total{family=\"ipv6\",uplink=\"lines\"} 1".to_owned(),
        format!("steer_uplink_sockets_ended_total{{interface=\"a1\",uplink=\"lines\"}} {ended}"),
    ] {
        ensure!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    if let Some(checked) = crate::api::check_with_promtool(&metrics)? {
        ensure!(checked.code == 0 && checked.stdout.is_empty(), "{checked:?}");
    }
    // The daemon's own changes, and then those without a daemon.
    bed.succeed(&["uplink", "auto", "lines", "a1"])?;
    wait_for(&bed, "a1")?;
    bed.ip("link set a1 down")?;
    wait_for(&bed, "a0")?;
    let now = changes(&bed)?;
    let down = |(_, change): &(String, Value)| {
        change["state"] == "down" && change["why"] == "its link is down or has no carrier"
    };
    ensure!(now.iter().any(down), "{now:?}");
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    bed.succeed(&["uplink", "down", "lines", "a0"])?;
    let now = changes(&bed)?;
    ensure!(now.iter().any(|(_, change)| change["member"] == "a0" && change["why"] == "set by hand"), "{now:?}");
    Ok(())
}

fn the_next_daemon_decides_the_same() -> Outcome {
    let bed = Bed::new("health-next")?;
    let daemon = bed.daemon(&config(PROBE, "[]"))?;
    wait_for(&bed, "a1")?;
    black_hole(&bed, 1, true)?;
    wait_for(&bed, "a0")?;
    ensure!(daemon.end(Signal::SIGKILL)?.is_none());
    check_by(&bed, 0).context("without a daemon")?;
    let _daemon = bed.daemon(&config(PROBE, "[]"))?;
    ensure!(member(&bed, "a1")?["ipv4"]["state"] == "down");
    check_by(&bed, 0)?;
    black_hole(&bed, 1, false)?;
    wait_for(&bed, "a1")?;
    Ok(())
}

fn nobody_is_probed_for_nobody() -> Outcome {
    let bed = Bed::new("health-idle")?;
    let unused = config(PROBE, "[]").replace("[\"@\"]", "[\"/steer-test-none\"]");
    let mut capture = Capture::start(&bed.net.client, "a1")?;
    let daemon = bed.daemon(&unused)?;
    let state = member(&bed, "a1")?;
    ensure!(
        state["ipv4"]["state"] == "suspect"
            && state["ipv4"]["probes"]["rounds"].as_u64().is_none_or(|rounds| rounds == 0),
        "{state}"
    );
    bed.succeed(&["reload"])?;
    let packets = capture.take()?;
    ensure!(leaks(&packets).is_empty(), "{packets:?}");
    drop(daemon);
    let daemon = bed.daemon(&unused.replace("rise = 2", "rise = 2, idle = true"))?;
    wait_until("probes", PATIENCE, || capture.take().is_ok_and(|packets| !leaks(&packets).is_empty()))?;
    drop(daemon);
    // The same with a cgroup is probed.
    let _daemon = bed.daemon(&config(PROBE, "[]"))?;
    wait_until("probes", PATIENCE, || {
        member(&bed, "a1")
            .is_ok_and(|member| member["ipv4"]["state"] == "up" && member["ipv4"]["probes"]["rounds"] != 0)
    })?;
    ensure!(!leaks(&capture.take()?).is_empty(), "the capture sees probes");
    Ok(())
}
