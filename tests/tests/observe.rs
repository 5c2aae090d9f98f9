//! `enforce = "observe"`: what strict stops works as with `steer`, and is an event. So an operator can try strict before it stops anything.

use std::{
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use steer_lab::{
    Family::{self, V4, V6},
    SERVER_V4, Vector, client_v4, gateway_v6, wait_until,
};
use steer_tests::{
    Bed, Cgroup, Held, Level, Outcome, PATIENCE, Scene, Seen, Try,
    User::{self, Nobody, Root},
    output,
};

use crate::{Test, dns::RESOLVER_V4, escape::ROWS};

pub(crate) const TESTS: &[Test] = &[
    ("what_strict_stops_passes_and_is_reported", what_strict_stops_passes_and_is_reported),
    ("what_strict_changes_stays", what_strict_changes_stays),
    ("packets_to_and_from_elsewhere", packets_to_and_from_elsewhere),
    ("a_reload_to_strict_and_back", a_reload_to_strict_and_back),
    ("what_steer_stops_is_stopped", what_steer_stops_is_stopped),
];

/// Ways of the escape suite that leak with `steer`, some for each program of strict, and the reason for which strict stops them.
const ATTEMPTS: [(Vector, User, Family, &str); 11] = [
    (Vector::IpPktinfo, Nobody, V4, "stopped_egress"),
    (Vector::LinkLocalScope, Nobody, V6, "stopped_egress"),
    (Vector::ForgedHeader, Root, V4, "stopped_egress"),
    (Vector::UdpAfUnspec, Nobody, V4, "stopped_sendmsg"),
    (Vector::UdpAfUnspec, Nobody, V6, "stopped_sendmsg"),
    (Vector::Bindtodevice, Root, V4, "stopped_setsockopt"),
    (Vector::Join, Nobody, V4, "stopped_setsockopt"),
    (Vector::JoinGroup, Nobody, V6, "stopped_setsockopt"),
    (Vector::ForgedFreebind, Nobody, V6, "stopped_setsockopt"),
    (Vector::PacketRaw, Root, V4, "stopped_family"),
    (Vector::CompatJoin, Nobody, V4, "stopped_setsockopt"),
];

/// The events since the last call.
fn backlog(bed: &Bed) -> anyhow::Result<Vec<Value>> {
    let text = bed.succeed(&["events", "--once", "--json"])?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn count(events: &[Value]) -> u64 {
    events.iter().filter_map(|event| event["count"].as_u64()).sum()
}

fn attempt(bed: &Bed, (vector, user, family): (Vector, User, Family), scene: Scene) -> anyhow::Result<Seen> {
    bed.attempt(Try { vector, user, family, scene, timeout: Duration::from_millis(200) }, Level::Observe)
}

/// The counters are of what was observed, and none says that something was stopped.
fn counts_only(bed: &Bed, observed: u64) -> Outcome {
    let status = bed.status()?;
    let policies = status["policies"].as_array().context("no policies")?;
    ensure!(policies.iter().all(|policy| policy["enforce"] == "observe"), "{policies:#?}");
    let sum = |prefix: &str| -> u64 {
        let counters = policies.iter().filter_map(|policy| policy["counters"].as_object()).flatten();
        counters.filter(|(name, _)| name.starts_with(prefix)).filter_map(|(_, count)| count.as_u64()).sum()
    };
    ensure!((sum("observed"), sum("stopped_")) == (observed, 0), "{observed} observed: {policies:#?}");
    Ok(())
}

fn what_strict_stops_passes_and_is_reported() -> Outcome {
    let bed = Level::Observe.bed("observe-escapes")?;
    for (vector, user, family, reason) in ATTEMPTS {
        let what = format!("{vector:?} {user:?} {family:?}");
        let row = ROWS
            .iter()
            .find(|row| row.vector == vector && row.families.contains(&family) && row.scene == Scene::Steered);
        let row = row.with_context(|| what.clone())?;
        ensure!(row.expects(Level::Steer, user), "{what} does not leak with steer");
        let seen = attempt(&bed, (vector, user, family), Scene::Steered)?;
        let events = backlog(&bed)?;
        // Some need a 32 bit program, or a kernel that runs programs on its security hooks.
        if !seen.attempt.is_applicable() {
            continue;
        }
        ensure!(!seen.leaked.is_empty(), "{what} was stopped: {seen:?}, {events:#?}");
        ensure!(events.iter().all(|event| event["observed"] == true), "{what}: {events:#?}");
        let is_seen = !row.is_past_ip() || bed.abi().join("programs/family").exists();
        ensure!(!is_seen || events.iter().any(|event| event["reason"] == reason), "{what}: {events:#?}");
        // The next attachment takes the slot, and counts anew.
        counts_only(&bed, count(&events))?;
    }
    Ok(())
}

/// Strict sends these by the uplink instead of stopping them. A policy that observes changes no option, and no socket.
fn what_strict_changes_stays() -> Outcome {
    let bed = Level::Observe.bed("observe-changes")?;
    let cases = [
        (Vector::JoinByAddress, Nobody, V4, Scene::Steered),
        (Vector::JoinByRoute, Nobody, V6, Scene::Steered),
        (Vector::MptcpAcceptUnbound, Nobody, V4, Scene::CalledOn(1)),
    ];
    for (vector, user, family, scene) in cases {
        let seen = attempt(&bed, (vector, user, family), scene)?;
        ensure!(!seen.attempt.is_applicable() || !seen.leaked.is_empty(), "{vector:?}: {seen:?}");
        let events = backlog(&bed)?;
        let of_mptcp = events.iter().any(|event| event["reason"] == "stopped_mptcp" && event["observed"] == true);
        ensure!(of_mptcp == (vector == Vector::MptcpAcceptUnbound && seen.attempt.is_applicable()), "{events:#?}");
    }
    Ok(())
}

/// The programs that a policy has only if it asks for them: queries to other servers, calls to this host, and what comes in.
fn packets_to_and_from_elsewhere() -> Outcome {
    let bed = Level::Observe.bed("observe-packets")?;
    let attach = |cgroup: &Cgroup, options: &[&str]| {
        bed.succeed(&[&["attach", cgroup.path(), "-i", "a1", "--enforce", "observe"], options].concat())
    };
    let around = bed.cgroup.child("around")?;
    let mut older = {
        let mut command = bed.client(Some(&around), Nobody)?;
        let port = bed.server.port().to_string();
        command.args(["--json", "--proto", "udp", "--target", &gateway_v6(0).to_string(), "--port", &port]);
        Held::start(command.args(["--timeout-ms", "2000"]))?
    };
    ensure!(older.round()?.iter().all(steer_lab::Outcome::is_ok), "not reached before");
    attach(&around, &[])?;
    ensure!(older.round()?.iter().all(steer_lab::Outcome::is_ok), "an older socket was stopped");
    let is_observed = |reason: &str| {
        let mut events = Vec::new();
        wait_until(&format!("{reason} to be observed"), PATIENCE, || {
            events = backlog(&bed).unwrap_or_default();
            events.iter().any(|event| event["reason"] == reason && event["observed"] == true)
        })
        .with_context(|| format!("{events:#?}"))
    };
    is_observed("stopped_egress")?;

    let run = |cgroup: &Cgroup, vector, user, options: &[&str]| {
        let this = Try { vector, user, family: V4, scene: Scene::Steered, timeout: Duration::from_millis(200) };
        output(bed.escape_program(this, cgroup)?.args(options))
    };
    run(&around, Vector::UdpUnconnected, Nobody, &["--server", &Ipv4Addr::LOCALHOST.to_string()])?;
    is_observed("stopped_local")?;

    let names = bed.cgroup.child("names")?;
    attach(&names, &["--dns", &RESOLVER_V4.to_string()])?;
    run(&names, Vector::RawUdp, Root, &["--port", "53"])?;
    is_observed("stopped_dns")?;

    let calls = bed.cgroup.child("calls")?;
    let mut listener = bed.client(Some(&calls), Nobody)?.arg("--listen").stdout(Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(listener.stdout.take().context("no pipe")?).lines();
    let port = heard.next().context("no port")??.parse::<u16>()?;
    attach(&calls, &["--ingress", "uplink"])?;
    bed.net.server.run(|| std::net::UdpSocket::bind((SERVER_V4, 0))?.send_to(b"hello", (client_v4(0), port)))??;
    is_observed("stopped_ingress")?;
    listener.kill()?;
    listener.wait()?;
    Ok(())
}

fn a_reload_to_strict_and_back() -> Outcome {
    let bed = Level::Observe.bed("observe-reload")?;
    let config = |enforce: &str| {
        format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nenforce = \"{enforce}\"\ncgroups = [\"@\"]\n")
    };
    let _daemon = bed.daemon(&config("observe"))?;
    for enforce in ["observe", "strict", "observe"] {
        bed.write_config(&config(enforce))?;
        bed.succeed(&["reload"])?;
        let observes = enforce == "observe";
        // The counters go on.
        let before = bed.policy("p")?;
        let this = Try {
            vector: Vector::IpPktinfo,
            user: Nobody,
            family: V4,
            scene: Scene::Steered,
            timeout: Duration::from_millis(200),
        };
        let seen = bed.watch_attempt(this, bed.escape_program(this, &bed.cgroup)?, &["a1"], || Ok(()))?;
        ensure!(seen.leaked.is_empty() != observes, "{enforce}: {seen:?}");
        let policy = bed.policy("p")?;
        let counted = |name: &str| policy["counters"][name].as_u64() > before["counters"][name].as_u64();
        ensure!(policy["enforce"] == enforce && counted("observed") == observes, "{policy:#}");
        ensure!(counted("stopped_egress") != observes && policy["cgroups"][0]["complete"] == true, "{policy:#}");
        let verdict = bed.status()?["verdict"].as_str().unwrap_or_default().to_owned();
        let want =
            if observes { "1 policy observes (only calls to this host are refused)" } else { "1 policy in force" };
        ensure!(verdict == want, "{verdict}");
        let explained = bed.run(&["explain", bed.cgroup.path(), "--json"])?.stdout;
        ensure!(explained.contains("packets that strict would stop leave") == observes, "{explained}");
        let said = bed.run(&["explain", bed.cgroup.path(), "--to", "127.0.0.1", "--json"])?.stdout;
        ensure!(said.contains("is observed: strict would stop this") == observes, "{said}");
        let examined = bed.run(&["doctor", "--json"])?.stdout;
        ensure!(examined.contains("packets that strict would stop leave") == observes, "{examined}");
    }
    Ok(())
}

/// Also with an inner policy that only observes: the policy around does not act there, as with an inner `steer`.
fn what_steer_stops_is_stopped() -> Outcome {
    let bed = Level::Observe.bed("observe-closed")?;
    let _daemon = bed.daemon(
        "[[policy]]\nname = \"p\"\ninterface = \"nowhere\"\nenforce = \"observe\"\ncgroups = [\"@\"]\n\
         [[policy]]\nname = \"outer\"\ninterface = \"a1\"\ncgroups = [\"@/outer\"]\n\
         [[policy]]\nname = \"inner\"\ninterface = \"a1\"\nenforce = \"observe\"\ncgroups = [\"@/outer/inner\"]\n",
    )?;
    let tried = |cgroup: &Cgroup, vector| {
        let this = Try { vector, user: Nobody, family: V4, scene: Scene::Steered, timeout: Duration::from_millis(200) };
        bed.watch_attempt(this, bed.escape_program(this, cgroup)?, &["a1"], || Ok(()))
    };
    let seen = tried(&bed.cgroup, Vector::Udp)?;
    ensure!(seen.leaked.is_empty() && !seen.attempt.is_ok(), "{seen:?}");
    let events = backlog(&bed)?;
    ensure!(
        events.iter().any(|event| event["reason"] == "closed_missing" && event.get("observed").is_none()),
        "{events:#?}"
    );
    let outer = bed.cgroup.child("outer")?;
    let inner = outer.child("inner")?;
    wait_until("both to be steered", PATIENCE, || {
        ["outer", "inner"]
            .iter()
            .all(|name| bed.policy(name).is_ok_and(|policy| policy["cgroups"][0]["complete"] == true))
    })?;
    for (cgroup, leaks) in [(&outer, false), (&inner, true)] {
        let seen = tried(cgroup, Vector::IpPktinfo)?;
        ensure!(seen.leaked.is_empty() != leaks, "{}: {seen:?}", cgroup.path());
        let events = backlog(&bed)?;
        // A daemon keeps events.
        let is_its = |event: &&Value| event["reason"] == "stopped_egress" && event["cgroup"] == cgroup.path();
        let stopped: Vec<_> = events.iter().filter(is_its).collect();
        ensure!(!stopped.is_empty() && stopped.iter().all(|event| (event["observed"] == true) == leaks), "{events:#?}");
    }
    Ok(())
}
