//! `steer events` reports the processes that were stopped, and no others.

mod follower;
mod told;

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    os::unix::process::ExitStatusExt as _,
    process::{ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use steer_lab::{Family, SERVER_V4, SERVER_V6, Vector, client_v4, gateway_v4, gateway_v6, wait_until};
use steer_tests::{Bed, Cgroup, Held, Outcome, PATIENCE, Scene, Try, User, binary, copy_program, output};

use crate::Test;
use follower::Follower;

pub(crate) const TESTS: &[Test] = &[
    ("attempts_are_reported", attempts_are_reported),
    ("what_is_near_has_a_hint", what_is_near_has_a_hint),
    ("a_missing_uplink_is_reported", a_missing_uplink_is_reported),
    ("packets_received_by_another_link_are_reported", packets_received_by_another_link_are_reported),
    ("a_flood_is_reported_in_part_and_counted", a_flood_is_reported_in_part_and_counted),
    ("nothing_of_others", nothing_of_others),
    ("followed_until_a_signal", followed_until_a_signal),
    ("followed_until_off", followed_until_off),
    ("waits_for_commands_and_shows_all_their_events", waits_for_commands_and_shows_all_their_events),
    ("one_reader", one_reader),
    ("once_beside_a_listener", told::once_beside_a_listener),
    ("stopped_traffic_is_in_the_log", told::stopped_traffic_is_in_the_log),
    ("an_address_of_another_link", told::an_address_of_another_link),
    ("exec_says_what_was_stopped", told::exec_says_what_was_stopped),
    ("reasons_are_explained", told::reasons_are_explained),
    ("a_name_that_would_break_the_line", a_name_that_would_break_the_line),
];

/// The fields of every line.
const FIELDS: [&str; 16] = [
    "cgroup",
    "cgroup_id",
    "comm",
    "count",
    "hint",
    "ifindex",
    "interface",
    "option",
    "peer",
    "pid",
    "policy",
    "port",
    "protocol",
    "reason",
    "summary",
    "time",
];

/// Lines of JSON.
fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The events since the last call.
fn backlog(bed: &Bed) -> anyhow::Result<Vec<Value>> {
    parse(&bed.succeed(&["events", "--once", "--json"])?)
}

/// Runs a program that makes an attempt, and returns its PID.
pub(crate) fn attempt(bed: &Bed, cgroup: &Cgroup, vector: Vector, user: User, family: Family) -> anyhow::Result<u32> {
    let this = Try { vector, user, family, scene: Scene::Steered, timeout: Duration::from_millis(200) };
    let mut child = bed.escape_program(this, cgroup)?.stdout(Stdio::null()).spawn()?;
    child.wait()?;
    Ok(child.id())
}

/// The hint names the words of `local` that would allow it.
fn what_is_near_has_a_hint() -> Outcome {
    let bed = Bed::new("events-near")?;
    // For IPv6, a socket that is older than the policy.
    let mut command = bed.client(Some(&bed.cgroup), User::Nobody)?;
    let (near6, port) = (gateway_v6(0).to_string(), bed.server.port().to_string());
    command.args(["--json", "--proto", "udp", "--target", &near6, "--port", &port, "--timeout-ms", "300"]);
    let mut older = Held::start(&mut command)?;
    ensure!(older.round()?.iter().all(steer_lab::Outcome::is_ok), "not reached before");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let lan = "`local = [\"lan\"]`";
    older.round()?;
    let events = backlog(&bed)?;
    let event = events.iter().find(|event| event["reason"] == "stopped_egress" && event["peer"] == near6);
    ensure!(event.is_some_and(|event| event["hint"].as_str().is_some_and(|hint| hint.starts_with(lan))), "{events:#?}");
    let near: [(IpAddr, &str); 4] = [
        (gateway_v4(0).into(), lan),
        (Ipv4Addr::new(224, 0, 0, 251).into(), "`local = [\"lan\", \"discovery\"]`"),
        (Ipv4Addr::LOCALHOST.into(), "`local = [\"host\"]`"),
        (SERVER_V4.into(), ""),
    ];
    for (to, part) in near {
        let this = Try {
            vector: if to.is_loopback() { Vector::UdpUnconnected } else { Vector::IpPktinfo },
            user: User::Nobody,
            family: Family::of(to),
            scene: Scene::Steered,
            timeout: Duration::from_millis(300),
        };
        let mut program = bed.escape_program(this, &bed.cgroup)?;
        output(program.args(["--server", &to.to_string(), "--port", &bed.server.port().to_string()]))?;
        let events = backlog(&bed)?;
        let event = events.iter().find(|event| event["peer"] == to.to_string());
        let event = event.with_context(|| format!("{to}: not among {events:#?}"))?;
        let hint = event["hint"].as_str().unwrap_or_default();
        ensure!(if part.is_empty() { hint.is_empty() } else { hint.starts_with(part) }, "{part}: {event:#}");
    }
    Ok(())
}

fn attempts_are_reported() -> Outcome {
    struct Case {
        vector: Vector,
        user: User,
        family: Family,
        reason: &'static str,
        /// The index of the other link, if the attempt names it.
        interface: Option<&'static str>,
        option: Option<&'static str>,
        has_peer: bool,
    }
    let case = |vector, user, reason| Case {
        vector,
        user,
        family: Family::V4,
        reason,
        interface: Some("a0"),
        option: None,
        has_peer: true,
    };
    let option =
        |vector, user, name| Case { option: Some(name), has_peer: false, ..case(vector, user, "stopped_setsockopt") };
    let unbound = |user, family| Case { interface: None, family, ..case(Vector::UdpAfUnspec, user, "stopped_sendmsg") };
    let cases = [
        case(Vector::IpPktinfo, User::Nobody, "stopped_egress"),
        case(Vector::IpPktinfo, User::Root, "stopped_egress"),
        unbound(User::Nobody, Family::V4),
        unbound(User::Nobody, Family::V6),
        option(Vector::Bindtodevice, User::Root, "SO_BINDTODEVICE"),
        option(Vector::Bindtoifindex, User::Root, "SO_BINDTOIFINDEX"),
        option(Vector::Join, User::Nobody, "IP_ADD_MEMBERSHIP"),
    ];
    let bed = Bed::new("events-who")?;
    // The event names the process's own cgroup, which is below the attached one.
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    for case in cases {
        let name = format!("{:?} {:?} {:?}", case.vector, case.user, case.family);
        let pid = attempt(&bed, &inner, case.vector, case.user, case.family)?;
        let events = backlog(&bed)?;
        let event = events.iter().find(|event| event["reason"] == case.reason);
        let event = event.with_context(|| format!("{name}: not among {events:#?}"))?;
        let message = format!("{name}: {event:#}");
        ensure!(event.as_object().is_some_and(|fields| fields.keys().eq(FIELDS)), "{message}");
        ensure!(event["time"].as_str().is_some_and(|time| time.len() == 27 && time.ends_with('Z')), "{message}");
        ensure!(event["policy"] == "a1" && event["count"] == 1 && event["summary"] == false, "{message}");
        ensure!(event["cgroup"] == inner.path() && event["cgroup_id"] == inner.id()?, "{message}");
        ensure!(event["interface"].as_str() == case.interface, "{message}");
        ensure!(event["option"].as_str() == case.option, "{message}");
        let by_index = case.interface.is_some() && case.option != Some("SO_BINDTODEVICE");
        ensure!(
            event["ifindex"].as_u64() == by_index.then(|| bed.net.ifindex(0).map(u64::from)).transpose()?,
            "{message}"
        );
        let server = if case.family == Family::V4 { SERVER_V4.to_string() } else { SERVER_V6.to_string() };
        if case.has_peer {
            ensure!(
                event["peer"] == server && event["port"] == bed.server.port() && event["protocol"] == "udp",
                "{message}"
            );
        }
        // Before Linux 6.12 a program that sees a packet cannot read the sender's PID, and before 7.3 not its name.
        if case.reason != "stopped_egress" {
            ensure!(event["pid"] == pid && event["comm"] == "steer-escape", "{message}");
        }
        ensure!(event["pid"].is_null() || event["pid"] == pid, "{message}");
        ensure!(event["comm"].is_null() || event["comm"] == "steer-escape", "{message}");
    }
    Ok(())
}

fn a_missing_uplink_is_reported() -> Outcome {
    let bed = Bed::new("events-missing")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"nowhere\"\ncgroups = [\"@\"]\n")?;
    let pid = attempt(&bed, &bed.cgroup, Vector::Tcp, User::Nobody, Family::V4)?;
    let events = backlog(&bed)?;
    ensure!(events.len() == 1, "{events:#?}");
    let event = &events[0];
    ensure!(event["reason"] == "closed_missing" && event["policy"] == "p" && event["protocol"] == "tcp", "{event:#}");
    ensure!(event["pid"] == pid && event["comm"] == "steer-escape" && event["ifindex"].is_null(), "{event:#}");
    Ok(())
}

fn packets_received_by_another_link_are_reported() -> Outcome {
    let bed = Bed::new("events-ingress")?;
    let mut listener = bed.client(Some(&bed.cgroup), User::Nobody)?.arg("--listen").stdout(Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(listener.stdout.take().context("no pipe")?).lines();
    let port = heard.next().context("no port")??.parse::<u16>()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "uplink"])?;
    let from = bed.net.server.run(|| {
        let socket = std::net::UdpSocket::bind((SERVER_V4, 0))?;
        socket.send_to(b"hello", (client_v4(0), port))?;
        socket.local_addr()
    })??;
    let mut events = Vec::new();
    wait_until("the packet to be reported", PATIENCE, || {
        events = backlog(&bed).unwrap_or_default();
        !events.is_empty()
    })?;
    let event = &events[0];
    ensure!(event["reason"] == "stopped_ingress" && event["interface"] == "a0", "{event:#}");
    ensure!(event["cgroup"] == bed.cgroup.path() && event["pid"].is_null(), "{event:#}");
    ensure!(event["peer"] == from.ip().to_string() && event["port"] == from.port(), "{event:#}");
    listener.kill()?;
    listener.wait()?;
    Ok(())
}

fn a_flood_is_reported_in_part_and_counted() -> Outcome {
    let bed = Bed::new("events-flood")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"nowhere\"\ncgroups = [\"@\"]\n")?;
    let load = bed.load(&bed.cgroup)?;
    wait_until("a flood", PATIENCE, || bed.sockets("p", "closed_missing").is_ok_and(|closed| closed > 2000))?;
    load.stop()?;
    let (closed, events) = (bed.sockets("p", "closed_missing")?, backlog(&bed)?);
    let sum = events.iter().filter_map(|event| event["count"].as_u64()).sum::<u64>();
    ensure!(sum == closed, "{sum} of {closed} in {events:#?}");
    let summaries = events.iter().filter(|event| event["summary"] == true).collect::<Vec<_>>();
    ensure!(!summaries.is_empty(), "all of {closed} were reported");
    for event in summaries {
        ensure!(event.as_object().is_some_and(|fields| fields.keys().eq(FIELDS)), "{event:#}");
        ensure!(event["policy"] == "p" && event["cgroup"] == bed.cgroup.path(), "{event:#}");
    }
    // A daemon keeps events.
    ensure!(backlog(&bed)? == events);
    // A flood of one kind hides no other kind. A follower receives the count of the rest when the flood is over.
    let (mut follower, mut line) = Follower::start(&bed, &["--json"])?;
    let load = bed.load(&bed.cgroup)?;
    wait_until("a flood", PATIENCE, || bed.sockets("p", "closed_missing").is_ok_and(|now| now > closed + 2000))?;
    attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
    load.stop()?;
    let all = bed.sockets("p", "closed_missing")? - closed;
    let (mut sum, mut refused) = (0, 0);
    loop {
        let event: Value = serde_json::from_str(&line)?;
        let count = event["count"].as_u64().context("no count")?;
        if event["reason"] == "closed_missing" {
            sum += count;
        } else {
            refused += count;
        }
        // One from the start of the follower, one from the flood.
        ensure!(sum <= all && refused <= 2, "{refused}, and {sum} of {all}: {line}");
        if sum == all && refused == 2 {
            return Ok(());
        }
        line = follower.next()?;
    }
}

fn nothing_of_others() -> Outcome {
    let bed = Bed::new("events-others")?;
    let (steered, exempt, other) =
        (bed.cgroup.child("steered")?, bed.cgroup.child("steered/exempt")?, bed.cgroup.child("o")?);
    bed.succeed(&["attach", steered.path(), "-i", "a1"])?;
    bed.succeed(&["attach", exempt.path(), "-i", "none"])?;
    for cgroup in [&exempt, &other] {
        for vector in [Vector::UdpAfUnspec, Vector::Bindtodevice, Vector::IpPktinfo] {
            attempt(&bed, cgroup, vector, User::Root, Family::V4)?;
        }
    }
    // Allowed attempts are not reported either.
    bed.check_steered(&steered, 1)?;
    let events = backlog(&bed)?;
    ensure!(events.is_empty(), "{events:#?}");
    Ok(())
}

fn followed_until_a_signal() -> Outcome {
    let bed = Bed::new("events-follow")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut follower, _) = Follower::start(&bed, &[])?;
        let meanwhile = attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
        let line = follower.next()?;
        let expected = format!(
            " stopped_setsockopt policy=\"a1\" cgroup={:?} pid={meanwhile} comm=\"steer-escape\" option=SO_BINDTODEVICE \
             interface=\"a0\"",
            bed.cgroup.path()
        );
        ensure!(line.ends_with(&expected), "{line}");
        follower.signal(signal)?;
        let (status, rest, complaint) = follower.end()?;
        ensure!(status.signal() == Some(signal as i32), "{status}");
        ensure!(rest.is_empty() && complaint.is_empty(), "{rest:?} {complaint}");
    }
    // Like under `| head -1`.
    let (mut follower, line) = Follower::start(&bed, &["--json"])?;
    parse(&line)?;
    let stdout = std::mem::replace(&mut follower.lines, BufReader::new(empty_stdout()?).lines());
    drop(stdout);
    attempt(&bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
    let (status, _, complaint) = follower.end()?;
    ensure!(status.signal() == Some(libc::SIGPIPE) && complaint.is_empty(), "{status} {complaint}");
    Ok(())
}

/// The output of a program that prints nothing.
fn empty_stdout() -> anyhow::Result<ChildStdout> {
    let mut child = std::process::Command::new("true").stdout(Stdio::piped()).spawn()?;
    child.wait()?;
    child.stdout.take().context("no pipe")
}

fn followed_until_off() -> Outcome {
    let bed = Bed::new("events-off")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let (follower, _) = Follower::start(&bed, &["--json"])?;
    bed.succeed(&["off"])?;
    let (status, rest, complaint) = follower.end()?;
    ensure!(status.success() && rest.is_empty(), "{status} {rest:?} {complaint}");
    ensure!(complaint.contains("switched off"), "{complaint}");
    ensure!(!bed.pins.exists(), "something is left");
    Ok(())
}

/// It is started before anything is steered, and commands end at once.
fn waits_for_commands_and_shows_all_their_events() -> Outcome {
    let bed = Bed::new("events-wait")?;
    let nothing = bed.run(&["events", "--once"])?;
    ensure!(nothing.code == 1 && nothing.stderr.contains("nothing is steered"), "{nothing:?}");
    let mut child = bed.steer(&["events", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
    let mut follower = Follower { child, lines };
    wait_until("the reader", PATIENCE, || bed.pins.join("events").exists())?;
    for _ in 0..2 {
        let this = Try {
            vector: Vector::Bindtodevice,
            user: User::Root,
            family: Family::V4,
            scene: Scene::Steered,
            timeout: Duration::from_millis(200),
        };
        let mut command = bed.steer(&["exec", "-i", "a1", "--"]);
        command.arg(bed.copy_of("STEER_ESCAPE", "steer-escape")?);
        bed.add_attempt(this, &mut command);
        bed.cgroup.enter(&mut command);
        let mut command = command.stdout(Stdio::null()).spawn()?;
        command.wait()?;
        wait_until("the cgroup to be removed", PATIENCE, || bed.cgroup.children().is_empty())?;
        let line = follower.next()?;
        ensure!(parse(&line)?[0]["pid"] == command.id(), "{line}");
    }
    follower.signal(Signal::SIGTERM)?;
    let (status, rest, complaint) = follower.end()?;
    ensure!(status.signal() == Some(libc::SIGTERM) && rest.is_empty(), "{status} {rest:?} {complaint}");
    // By the reader, or by the keeper of a cgroup that the kernel has not released yet.
    bed.wait_until_clean()
}

fn one_reader() -> Outcome {
    let bed = Bed::new("events-one")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let (follower, _) = Follower::start(&bed, &[])?;
    for arguments in [&["events"] as &[&str], &["events", "--once"]] {
        let refused = bed.run(arguments)?;
        ensure!(refused.code == 1 && refused.stderr.contains("another `steer events`"), "{refused:?}");
        ensure!(refused.stdout.is_empty(), "{refused:?}");
    }
    // It does not block other readers.
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a0"])?;
    ensure!(bed.policy("a0")?["cgroups"][0]["complete"] == true);
    follower.signal(Signal::SIGKILL)?;
    follower.end()?;
    bed.succeed(&["events", "--once"])?;
    Ok(())
}

fn a_name_that_would_break_the_line() -> Outcome {
    let bed = Bed::new("events-name")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p q\"\ninterface = \"nowhere\"\ncgroups = [\"@\"]\n")?;
    let program = bed.directory.join("a\" pid=1\nb");
    copy_program(&binary("STEER_PROBE", "steer-probe"), &program)?;
    let mut command = std::process::Command::new(&program);
    command.args(["--target", "192.0.2.1", "--port", "1"]);
    bed.cgroup.enter(&mut command);
    output(bed.net.client.enter(&mut command))?;
    let text = bed.succeed(&["events", "--once"])?;
    ensure!(text.lines().count() == 1 && text.contains(r#" policy="p q" "#), "{text}");
    ensure!(text.contains(r#" comm="a\" pid=1\nb" "#), "{text}");
    Ok(())
}
