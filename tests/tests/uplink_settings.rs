//! Groups of uplinks: what their settings do, and a line that drops one port only.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use steer_lab::{SERVER_V4, Server, client_v4, parse_outcomes, wait_until};
use steer_tests::{Bed, Held, Outcome, PATIENCE, Spy, User, output};

use crate::{
    Test,
    uplink_health::{changes, check_by, config, go_by, held, member, wait_for, wait_for_families},
};

pub(crate) const TESTS: &[Test] = &[
    ("settings_of_a_group", settings_of_a_group),
    ("one_port_that_is_dropped_is_found", one_port_that_is_dropped_is_found),
    ("a_member_that_flaps_is_held_longer", a_member_that_flaps_is_held_longer),
];

/// `on_fail = "keep"`, `all_down = "close"`, and `on_return = "linger"`.
fn settings_of_a_group() -> Outcome {
    const LINGER_S: u64 = 30;
    let bed = Bed::new("health-settings")?;
    let daemon = bed.daemon(&config("hold = \"0s\"\non_fail = \"keep\"\nall_down = \"close\"", "[]"))?;
    wait_for(&bed, "a1")?;
    let mut kept = held(&bed)?;
    ensure!(go_by(&mut kept, 1, 1)?);
    bed.succeed(&["uplink", "down", "lines", "a1"])?;
    check_by(&bed, 0)?;
    ensure!(go_by(&mut kept, 1, 1)?, "sockets stay on a member that failed");
    bed.succeed(&["uplink", "down", "lines", "a0"])?;
    bed.check_closed(&bed.cgroup)?;
    let shown = bed.succeed(&["uplinks"])?;
    ensure!(shown.ends_with("lines: closed, because no member works\n"), "{shown}");
    bed.write_config(&config("hold = \"0s\"\non_return = \"linger\"", "[]"))?;
    bed.succeed(&["reload"])?;
    bed.succeed(&["uplink", "auto", "lines", "a0"])?;
    wait_for(&bed, "a0")?;
    let mut displaced = held(&bed)?;
    ensure!(go_by(&mut displaced, 0, 0)?);
    let begun = Instant::now();
    bed.succeed(&["uplink", "auto", "lines", "a1"])?;
    wait_for(&bed, "a1")?;
    ensure!(go_by(&mut displaced, 0, 0)?, "sockets stay for a while");
    let lingers = member(&bed, "a0")?["ipv4"]["lingers_for_s"].as_u64();
    ensure!(lingers.is_some_and(|left| left <= LINGER_S), "{lingers:?}");
    daemon.wait_for_log("sockets of members that are not chosen any more")?;
    ensure!(begun.elapsed() >= Duration::from_secs(LINGER_S - 1), "{:?}", begun.elapsed());
    wait_until("sockets on the better member", PATIENCE, || go_by(&mut displaced, 1, 1).unwrap_or_default())?;
    Ok(())
}

/// A line drops TCP port 443. Its probes are answered, and so are connections to port 80, by programs of the same cgroup.
fn one_port_that_is_dropped_is_found() -> Outcome {
    const BESIDE: &str = "198.51.100.2";
    let bed = Bed::new("health-port")?;
    let _servers = [Server::start_on(&bed.net.server, 443)?, Server::start_on(&bed.net.server, 80)?];
    bed.ip_of_server(&format!("-4 addr add {BESIDE}/32 dev lo"))?;
    let _daemon = bed.daemon(&config("probe = { targets = [\"gateway\"], interval = \"200ms\" }", "[]"))?;
    wait_for(&bed, "a1")?;
    let mut spy = Spy::on(&bed, &["a0", "a1"])?;
    let client = |port: u16, timeout: &str| {
        let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
        client.args(["--json", "--proto", "tcp", "--timeout-ms", timeout, "--port", &port.to_string()]);
        client.args(["--target", &SERVER_V4.to_string(), "--target", BESIDE]);
        anyhow::Ok(client)
    };
    let goes_by = |outcomes: &[steer_lab::Outcome], uplink: u8| {
        outcomes.iter().all(|outcome| outcome.saw == Some(client_v4(uplink).to_string()))
    };
    let mut dropped = Held::start(&mut client(443, "300")?)?;
    ensure!(goes_by(&dropped.round()?, 1));
    bed.ip_of_server(&format!("-4 rule add pref 0 to {} ipproto tcp sport 443 blackhole", client_v4(1)))?;
    // The connections that are there fail first, and then new ones.
    let begun = Instant::now();
    wait_until("new connections on the other member", PATIENCE, || {
        let answered = client(80, "1000").ok().and_then(|mut client| output(&mut client).ok());
        let answered = answered.and_then(|output| parse_outcomes(&output.stdout).ok()).unwrap_or_default();
        let is_answered = goes_by(&answered, 1) || goes_by(&answered, 0);
        is_answered && dropped.round().is_ok_and(|outcomes| goes_by(&outcomes, 0))
    })?;
    let took = begun.elapsed();
    // Two more alarms, 10 seconds apart.
    ensure!(took > Duration::from_secs(18) && took < Duration::from_secs(40), "{took:?}");
    wait_for_families(&bed, "a0", &["ipv4"])?;
    let left = member(&bed, "a1")?;
    ensure!(left["ipv4"]["probes"]["lost"] == 0 && left["ipv6"]["state"] == "up", "{left}");
    let is_cause = |(_, change): &(String, Value)| {
        change["member"] == "a1" && change["state"] == "down" && change["why"] == "many connections fail"
    };
    let changes = changes(&bed)?;
    ensure!(changes.iter().any(is_cause), "{changes:?}");
    spy.saw_nothing()
}

/// Each failure doubles the time for which a member that works again is not preferred.
fn a_member_that_flaps_is_held_longer() -> Outcome {
    const HOLD_S: u64 = 3;
    let bed = Bed::new("health-flap")?;
    let _daemon = bed.daemon(&config(&format!("hold = \"{HOLD_S}s\""), "[]"))?;
    let link = bed.net.server_link(1);
    for is_longer in [false, true] {
        wait_for(&bed, "a1")?;
        bed.ip_of_server(&format!("link set {link} down"))?;
        wait_for(&bed, "a0")?;
        bed.ip_of_server(&format!("link set {link} up"))?;
        let mut left = None;
        wait_until("the member to work again", PATIENCE, || {
            left = member(&bed, "a1").ok().and_then(|member| member["ipv4"]["held_for_s"].as_u64());
            left.is_some()
        })?;
        ensure!(left.is_some_and(|left| (left > HOLD_S) == is_longer), "{left:?}");
        // It is used only if no other member works.
        check_by(&bed, 0)?;
    }
    Ok(())
}
