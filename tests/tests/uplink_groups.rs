//! Groups of uplinks: which member sockets get, by every way to steer, and that nothing leaves by a link that is no member.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::{Child, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_common::{traffic, uplink::Family};
use steer_lab::{SERVER_V4, client_v4, parse_outcomes, wait_until};
use steer_tests::{Bed, Held, Outcome, PATIENCE, PinnedMap, RingPosition, Spy, User, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sockets_get_the_best_member", sockets_get_the_best_member),
    ("connections_end_with_their_member", connections_end_with_their_member),
    ("without_a_member_it_is_closed", without_a_member_it_is_closed),
    ("shares_follow_the_weights", shares_follow_the_weights),
    ("without_a_daemon", without_a_daemon),
    ("a_changed_group_is_put_in_force", a_changed_group_is_put_in_force),
    ("a_program_may_name_a_member", a_program_may_name_a_member),
    ("failing_connections_raise_an_alarm", failing_connections_raise_an_alarm),
];

/// The methods: bind, and route.
const METHODS: [&str; 2] = ["[]", "[\"host\"]"];

fn config(members: &str, settings: &str, local: &str) -> String {
    format!(
        "[[uplink]]\nname = \"lines\"\nmembers = {members}\nhold = \"0s\"\n{settings}\n\
         [[policy]]\nname = \"p\"\nuplink = \"lines\"\nlocal = {local}\ncgroups = [\"@\"]\n"
    )
}

/// The members that new sockets get, as `steer status` tells.
fn chosen(bed: &Bed) -> anyhow::Result<Vec<String>> {
    let policy = bed.policy("p")?;
    let members = policy["members"].as_array().context("no members")?;
    let chosen = members.iter().filter(|member| member["chosen"] == true);
    Ok(chosen.filter_map(|member| member["interface"].as_str().map(str::to_owned)).collect())
}

fn wait_for(bed: &Bed, members: &[&str]) -> Outcome {
    wait_until(&format!("sockets to get {members:?}"), PATIENCE, || chosen(bed).is_ok_and(|now| now == members))?;
    Ok(())
}

fn sockets_get_the_best_member() -> Outcome {
    for local in METHODS {
        let mut bed = Bed::new("group-best")?;
        let members = "[{ interface = \"a0\", tier = 2 }, { interface = \"a1\" }]";
        let _daemon = bed.daemon(&config(members, "", local))?;
        wait_for(&bed, &["a1"])?;
        bed.check_steered(&bed.cgroup, 1).with_context(|| format!("the first tier, local = {local}"))?;
        let listed = bed.succeed(&["policy", "list"])?;
        ensure!(listed.contains(" lines "), "{listed}");
        let links = bed.succeed(&["interfaces"])?;
        let uses = |link: &str| {
            links.lines().any(|line| line.contains(&format!(" {link} ")) && line.trim_end().ends_with(" p"))
        };
        ensure!(uses("a0") && uses("a1"), "{links}");
        bed.net.remove_uplink(1)?;
        wait_for(&bed, &["a0"])?;
        bed.check_steered(&bed.cgroup, 0).with_context(|| format!("the second tier, local = {local}"))?;
        bed.net.create_uplink(1)?;
        wait_for(&bed, &["a1"])?;
        bed.check_steered(&bed.cgroup, 1).with_context(|| format!("the first tier again, local = {local}"))?;
    }
    Ok(())
}

fn connections_end_with_their_member() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("group-ends")?;
        let members = "[{ interface = \"a0\", tier = 2 }, { interface = \"a1\" }]";
        let _daemon = bed.daemon(&config(members, "", local))?;
        wait_for(&bed, &["a1"])?;
        let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
        client.args(["--json", "--timeout-ms", "1000", "--port", &bed.server.port().to_string()]);
        client.args(["--proto", "tcp", "--proto", "udp", "--target", &SERVER_V4.to_string()]);
        let mut held = Held::start(&mut client)?;
        let source = |uplink: u8| Some(client_v4(uplink).to_string());
        let first = held.round()?;
        ensure!(first.iter().all(|outcome| outcome.saw == source(1)), "{first:?}");
        // The link goes on, and is no member any more.
        bed.ip("link set a1 name b1")?;
        wait_for(&bed, &["a0"])?;
        let mut spy = Spy::on(&bed, &["a0"])?;
        wait_until("sockets on the other member", PATIENCE, || {
            held.round().is_ok_and(|outcomes| outcomes.iter().all(|outcome| outcome.saw == source(0)))
        })?;
        spy.saw_nothing().with_context(|| format!("local = {local}"))?;
        // When the better one returns, it gets the new sockets only.
        bed.ip("link set b1 name a1")?;
        wait_for(&bed, &["a1"])?;
        let later = held.round()?;
        ensure!(later.iter().all(|outcome| outcome.saw == source(0)), "local = {local}: {later:?}");
        bed.check_steered(&bed.cgroup, 1)?;
    }
    Ok(())
}

fn without_a_member_it_is_closed() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("group-closed")?;
        let _daemon = bed.daemon(&config("[\"a8\", \"a9\"]", "", local))?;
        let mut spy = Spy::on(&bed, &[])?;
        bed.check_closed(&bed.cgroup).with_context(|| format!("local = {local}"))?;
        spy.saw_nothing()?;
        ensure!(bed.succeed(&["status"])?.starts_with("1 policy is closed: lines is missing\n"));
    }
    Ok(())
}

pub(crate) fn shares_follow_the_weights() -> Outcome {
    const SOCKETS: usize = 400;
    for local in METHODS {
        let bed = Bed::new("group-shares")?;
        let members = "[{ interface = \"a0\", weight = 3 }, { interface = \"a1\" }]";
        let _daemon = bed.daemon(&config(members, "balance = \"socket\"", local))?;
        wait_for(&bed, &["a0", "a1"])?;
        let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
        client.args(["--json", "--proto", "tcp", "--port", &bed.server.port().to_string()]);
        // One socket for each.
        for _ in 0..SOCKETS {
            client.args(["--target", &SERVER_V4.to_string()]);
        }
        let output = output(&mut client)?;
        let outcomes = parse_outcomes(&output.stdout).with_context(|| format!("{output:?}"))?;
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for outcome in outcomes {
            *shares.entry(outcome.saw.unwrap_or_default()).or_default() += 1;
        }
        let first = shares.get(&client_v4(0).to_string()).copied().unwrap_or_default();
        // Three standard deviations of 400 random choices with 3:1 are 26.
        ensure!(shares.len() == 2 && first.abs_diff(300) <= 30, "local = {local}: {shares:?}");
    }
    Ok(())
}

fn without_a_daemon() -> Outcome {
    let bed = Bed::new("group-alone")?;
    let daemon = bed.daemon(&config("[\"a1\", { interface = \"a0\", tier = 2 }]", "", "[]"))?;
    wait_for(&bed, &["a1"])?;
    ensure!(daemon.end(Signal::SIGKILL)?.is_none());
    let other = bed.cgroup.child("other")?;
    bed.succeed(&["attach", other.path(), "--policy", "p"])?;
    bed.check_steered(&other, 1)?;
    // Nobody follows the change. A member that is not there any more is closed, until a command looks.
    bed.net.remove_uplink(1)?;
    bed.check_closed(&bed.cgroup)?;
    bed.succeed(&["attach", other.path(), "--policy", "p"])?;
    bed.check_steered(&bed.cgroup, 0)?;
    bed.check_steered(&other, 0)?;
    bed.succeed(&["detach", other.path()])?;
    let wrong = bed.run(&["exec", "--uplink", "line", "--", "true"])?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("there is no [[uplink]] \"line\""), "{wrong:?}");
    Ok(())
}

fn a_changed_group_is_put_in_force() -> Outcome {
    for local in METHODS {
        let bed = Bed::new("group-changed")?;
        let daemon = bed.daemon(&config("[\"a1\"]", "", local))?;
        bed.check_steered(&bed.cgroup, 1)?;
        bed.write_config(&config("[\"a0\"]", "", local))?;
        bed.succeed(&["reload"])?;
        bed.check_steered(&bed.cgroup, 0).with_context(|| format!("local = {local}"))?;
        drop(daemon);
        bed.check_steered(&bed.cgroup, 0).with_context(|| format!("without the daemon, local = {local}"))?;
    }
    Ok(())
}

fn a_program_may_name_a_member() -> Outcome {
    let bed = Bed::new("group-named")?;
    bed.ip("link add x0 type veth peer name x1")?;
    bed.ip("link set x0 up")?;
    let _daemon = bed.daemon(&config("[\"a0\", \"a1\"]", "", "[]"))?;
    let mut spy = Spy::on(&bed, &["a0", "a1"])?;
    for (link, source) in [("a0", Some(0)), ("a1", Some(1)), ("a", None), ("a00", None), ("x0", None), ("lo", None)] {
        let mut client = bed.client(Some(&bed.cgroup), User::Root)?;
        client.args(["--json", "--timeout-ms", "1000", "--port", &bed.server.port().to_string()]);
        client.args(["--proto", "tcp", "--proto", "udp", "--target", &SERVER_V4.to_string()]);
        for outcome in Held::start(&mut client)?.round_bound_to(link)? {
            let right = match source {
                Some(uplink) => outcome.saw == Some(client_v4(uplink).to_string()),
                None => outcome.error.as_deref() == Some("EPERM"),
            };
            ensure!(right, "{link}: {outcome:?}");
        }
    }
    spy.saw_nothing()
}

/// A server that drops every packet: the other side of the lab forwards nothing.
fn dead_server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 100 + number)
}

/// Connects to each server at the same time, for longer than the first time-out of a connection.
fn connect(bed: &Bed, servers: &[Ipv4Addr]) -> anyhow::Result<Vec<Child>> {
    let start = |server: &Ipv4Addr| {
        let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
        client.args([
            "--json",
            "--proto",
            "tcp",
            "--port",
            "443",
            "--timeout-ms",
            "1500",
            "--target",
            &server.to_string(),
        ]);
        Ok(client.stdout(Stdio::null()).spawn()?)
    };
    servers.iter().map(start).collect()
}

fn failing_connections_raise_an_alarm() -> Outcome {
    const ALARM_BYTES: u64 = 8 + 16;
    for local in METHODS {
        let bed = Bed::new("group-alarm")?;
        let _daemon = bed.daemon(&config("[{ interface = \"a0\", tier = 2 }, \"a1\"]", "", local))?;
        wait_for(&bed, &["a1"])?;
        let (ring, failures) = (RingPosition::open(&bed, "ALARMS")?, PinnedMap::<160>::open(&bed, "FAILURES")?);
        let key = |member, family| traffic::key(1, member, family).to_ne_bytes();
        for mut client in connect(&bed, &[dead_server(1); 8])? {
            client.wait()?;
        }
        ensure!(ring.bytes() == 0, "local = {local}: an alarm because of one server");
        failures.get(&key(1, Family::V4)).with_context(|| format!("no failures by a1, local = {local}"))?;
        let mut clients = connect(&bed, &[2, 3, 4, 5, 6].map(dead_server))?;
        wait_until("an alarm", PATIENCE, || ring.bytes() == ALARM_BYTES)
            .with_context(|| format!("local = {local}: {} bytes in the ring", ring.bytes()))?;
        let is_suspect = || {
            let uplinks: serde_json::Value = serde_json::from_str(&bed.succeed(&["uplinks", "--json"]).ok()?).ok()?;
            let member = &uplinks[0]["members"][1]["ipv4"];
            Some(member["state"] == "suspect" && member["reason"] == "many connections fail")
        };
        wait_until("the daemon to suspect the member", PATIENCE, || is_suspect().unwrap_or_default())?;
        for client in &mut clients {
            client.wait()?;
        }
        ensure!(ring.bytes() == ALARM_BYTES, "more than one alarm");
        for (member, family) in [(0, Family::V4), (0, Family::V6), (1, Family::V6)] {
            ensure!(failures.get(&key(member, family)).is_err(), "failures of another line: {member} {family:?}");
        }
    }
    Ok(())
}
