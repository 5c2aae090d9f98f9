//! This host: a steered socket does not reach it. By the uplink its payload would leave, so calls fail at once.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Attempt, Capture, Direction, Family, Server, Step, Vector, client_v4, client_v6, gateway_v6};
use steer_tests::{Bed, NotHere, Outcome, Scene, Spy, Try, USERS, User, linux_is_at_least, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("refused_at_once", refused_at_once),
    ("refused_to_an_older_socket", refused_to_an_older_socket),
    ("the_resolver_of_this_host_has_a_hint", the_resolver_of_this_host_has_a_hint),
    ("addresses_of_links", addresses_of_links),
    ("a_forged_source_is_stopped", a_forged_source_is_stopped),
    ("an_address_that_has_gone", an_address_that_has_gone),
    ("raw_packets_to_loopback_are_stopped", raw_packets_to_loopback_are_stopped),
    ("bound_to_a_loopback_address", bound_to_a_loopback_address),
];

const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

fn steered_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    Ok(bed)
}

/// Runs a vector against another server than the lab's.
fn attempt(bed: &Bed, vector: Vector, user: User, server: IpAddr, port: u16) -> anyhow::Result<Attempt> {
    let this =
        Try { vector, user, family: Family::of(server), scene: Scene::Steered, timeout: Duration::from_millis(400) };
    let mut command = bed.escape_program(this, &bed.cgroup)?;
    let ran = output(command.args(["--server", &server.to_string(), "--port", &port.to_string()]))?;
    let line = ran.stdout.lines().last().with_context(|| format!("{ran:?}"))?;
    Ok(Attempt::parse(line)?)
}

/// Calls with addresses of this host.
const CALLS: [(Vector, IpAddr); 15] = [
    (Vector::Tcp, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::Tcp, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    (Vector::Udp, STUB),
    (Vector::UdpUnconnected, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::UdpUnconnected, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    (Vector::Sendmmsg, STUB),
    (Vector::TcpFastOpen, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::Uring, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::MappedTcp, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::MappedUdp, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (Vector::Tcp, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    (Vector::Tcp, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    (Vector::Udp, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    (Vector::UdpUnconnected, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    (Vector::UdpUnconnected, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
];

fn refused_at_once() -> Outcome {
    let bed = steered_bed("local-refused")?;
    let server = Server::start(&bed.net.client)?;
    let mut spy = Spy::on(&bed, &[])?;
    let mut refused = 0;
    for user in USERS {
        for (vector, target) in CALLS {
            let attempt = attempt(&bed, vector, user, target, server.port())?;
            if !attempt.is_applicable() {
                continue;
            }
            refused += 1;
            let expected = attempt.outcome == "EPERM" && matches!(attempt.step, Some(Step::Connect | Step::Send));
            ensure!(expected, "{target} as {user:?}: {attempt:?}");
        }
    }
    spy.saw_nothing()?;
    ensure!(bed.sockets("a1", "stopped_local")? == refused);
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(bed.sockets("a1", "stopped_local")? == refused, "other traffic was refused");
    Ok(())
}

/// A socket without a binding would reach this host, and through a resolver here any network.
fn refused_to_an_older_socket() -> Outcome {
    for target in [STUB, Ipv6Addr::LOCALHOST.into()] {
        let bed = Bed::new("local-older")?;
        let scene = Scene::SteeredAfter(Step::Socket);
        let (vector, user, timeout) = (Vector::UdpUnconnected, User::Nobody, Duration::from_millis(400));
        let this = Try { vector, user, family: Family::of(target), scene, timeout };
        let mut program = bed.escape_program(this, &bed.cgroup)?;
        program.args(["--server", &target.to_string()]);
        let attach = || bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"]).map(drop);
        let seen = bed.watch_attempt(this, program, &[], attach)?;
        ensure!(seen.attempt.outcome == "EPERM" && seen.leaked.is_empty(), "{seen:?}");
        ensure!(bed.sockets("a1", "stopped_local")? == 1);
    }
    Ok(())
}

fn the_resolver_of_this_host_has_a_hint() -> Outcome {
    let bed = steered_bed("local-resolver")?;
    attempt(&bed, Vector::Udp, User::Nobody, STUB, 53)?;
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(events.contains("stopped_local") && events.contains("peer=127.0.0.53:53"), "{events}");
    ensure!(events.contains("hint=") && events.contains("`dns`"), "{events}");
    Ok(())
}

/// Connections to the addresses of links are refused. A limit: a datagram of an unconnected socket reaches the uplink's address, and to
/// others it leaves by the uplink only.
fn addresses_of_links() -> Outcome {
    let bed = steered_bed("local-own")?;
    let server = Server::start(&bed.net.client)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    for user in USERS {
        for (target, reached) in [
            (client_v4(0).into(), false),
            (client_v6(0).into(), false),
            (client_v4(1).into(), true),
            (client_v6(1).into(), true),
        ] {
            for vector in [Vector::Tcp, Vector::Udp] {
                let attempt = attempt(&bed, vector, user, target, server.port())?;
                let is_refused = attempt.outcome == "EPERM" && attempt.step == Some(Step::Connect);
                ensure!(is_refused || !attempt.is_applicable(), "{target} as {user:?}: {attempt:?}");
            }
            let datagram = attempt(&bed, Vector::UdpUnconnected, user, target, server.port())?;
            ensure!(datagram.is_ok() == reached, "{target} as {user:?}: {datagram:?}");
        }
    }
    spy.saw_nothing()
}

/// The kernel would answer by the routing table what comes from an address that this host had when the socket was bound to it.
fn an_address_that_has_gone() -> Outcome {
    let gone = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1);
    for (enforce, answers) in [("steer", true), ("strict", false)] {
        for user in USERS {
            let bed = Bed::new("local-gone")?;
            bed.ip(&format!("-6 addr add {gone}/128 dev a0 nodad"))?;
            let _daemon = bed.daemon(&format!(
                "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\"]\nenforce = \"{enforce}\"\ncgroups = [\"@\"]\n"
            ))?;
            let scene = Scene::SteeredAfter(Step::Bind);
            let timeout = Duration::from_millis(200);
            let this = Try { vector: Vector::BindOtherUdp, user, family: Family::V6, scene, timeout };
            let mut program = bed.escape_program(this, &bed.cgroup)?;
            program.args(["--server", &client_v6(1).to_string(), "--source", &gone.to_string()]);
            let mut capture = Capture::start_except(&bed.net.client, &["lo", "a1"])?;
            let remove = || {
                bed.ip(&format!("-6 addr del {gone}/128 dev a0"))?;
                bed.succeed(&["reload"]).map(drop)
            };
            let seen = bed.watch_attempt(this, program, &[], remove)?;
            let packets = capture.take()?;
            let answer = packets.iter().find(|it| it.dst == Some(gone.into()) && it.direction == Direction::Out);
            ensure!(answer.is_some() == answers, "{enforce}, {user:?}: {answer:?}: {seen:?}");
            ensure!(answers || seen.attempt.outcome == "EPERM", "{user:?}: {seen:?}");
        }
    }
    Ok(())
}

/// Their calls run no program, so the packet is stopped on the uplink.
fn raw_packets_to_loopback_are_stopped() -> Outcome {
    let bed = steered_bed("local-raw")?;
    let mut spy = Spy::on(&bed, &[])?;
    for user in USERS {
        for target in [STUB, Ipv6Addr::LOCALHOST.into()] {
            for vector in [Vector::Raw, Vector::Ping, Vector::UdpLite] {
                let attempt = attempt(&bed, vector, user, target, 9)?;
                let stopped = attempt.outcome == "EPERM" && matches!(attempt.step, Some(Step::Connect | Step::Send));
                // `connect` of a ping socket may run a program (Linux 6.1), which lets a process with the privilege reach this host.
                let reaches = user == User::Root && vector == Vector::Ping && attempt.is_ok();
                ensure!(stopped || reaches || !attempt.is_applicable(), "{target} as {user:?}: {attempt:?}");
            }
        }
    }
    spy.saw_nothing()?;
    ensure!(bed.sockets("a1", "stopped_local")? > 0 && bed.sockets("a1", "stopped_egress")? == 0);
    Ok(())
}

/// The kernel would answer the host whose address it is. Which ways there are is shown by the escape suite.
fn a_forged_source_is_stopped() -> Outcome {
    let bed = steered_bed("local-forged")?;
    bed.furnish_for_escapes()?;
    for family in [Family::V4, Family::V6] {
        let timeout = Duration::from_millis(400);
        let this = Try { vector: Vector::ForgedHeader, user: User::Root, family, scene: Scene::Steered, timeout };
        let ran = output(&mut bed.escape_program(this, &bed.cgroup)?)?;
        let line = ran.stdout.lines().last().with_context(|| format!("{ran:?}"))?;
        // By the uplink it may send what it likes.
        ensure!(Attempt::parse(line)?.is_ok(), "{line}");
    }
    ensure!(bed.sockets("a1", "stopped_egress")? > 0);
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(
        events.contains("stopped_egress") && events.contains("interface=\"lo\"") && events.contains("hint="),
        "{events}"
    );
    let refused = attempt(&bed, Vector::ForgedFreebind, User::Nobody, gateway_v6(1).into(), 0)?;
    ensure!(refused.outcome == "EPERM" && refused.step == Some(Step::Option), "{refused:?}");
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(events.contains("option=IPV6_FREEBIND"), "{events}");
    for target in [client_v4(1).into(), client_v6(1).into()] {
        let own = attempt(&bed, Vector::Raw, User::Root, target, 0)?;
        ensure!(own.is_ok(), "{own:?}");
    }
    Ok(())
}

/// Most programs stop if they cannot bind there, so it succeeds, with an event. The kernel refuses ::1 to a socket that is bound to a
/// link. Nothing leaves, not even by the uplink.
fn bound_to_a_loopback_address() -> Outcome {
    if !linux_is_at_least(5, 12) {
        return Err(NotHere("before Linux 5.12 the programs of bind let every call pass".to_owned()).into());
    }
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), STUB, Ipv6Addr::LOCALHOST.into()];
    let chosen = |error: &'static str| if linux_is_at_least(6, 1) { error } else { "EPERM" };
    for (local, reached, stopped) in [("", 12, 16), ("lan", 0, 25)] {
        let bed = Bed::new("local-bound")?;
        let options: &[&str] = if local.is_empty() { &[] } else { &["--local", local] };
        bed.succeed(&[&["attach", bed.cgroup.path(), "-i", "a1"], options].concat())?;
        let mut spy = Spy::on(&bed, &[])?;
        for user in USERS {
            for vector in [Vector::BindOther, Vector::BindOtherUdp, Vector::BindOtherRaw] {
                for source in loopback {
                    let timeout = Duration::from_millis(400);
                    let this = Try { vector, user, family: Family::of(source), scene: Scene::Steered, timeout };
                    let mut command = bed.escape_program(this, &bed.cgroup)?;
                    let ran = output(command.args(["--source", &source.to_string()]))?;
                    let attempt = Attempt::parse(ran.stdout.trim())?;
                    let is_bound_v6 = source.is_ipv6() && local.is_empty();
                    let (error, step) = match vector {
                        // No program sees the calls of a raw socket.
                        Vector::BindOtherRaw if is_bound_v6 => ("EADDRNOTAVAIL", Step::Bind),
                        Vector::BindOtherRaw if source.is_ipv6() => ("EPERM", Step::Send),
                        Vector::BindOtherRaw => ("EINVAL", Step::Send),
                        _ if is_bound_v6 => (chosen("EADDRNOTAVAIL"), Step::Bind),
                        Vector::BindOther => (chosen("EINVAL"), Step::Connect),
                        _ => (chosen("EINVAL"), Step::Send),
                    };
                    let is_expected = attempt.outcome == error && attempt.step == Some(step);
                    ensure!(is_expected || !attempt.is_applicable(), "{local} {source}, {user:?}: {attempt:?}");
                }
            }
        }
        spy.saw_nothing()?;
        let counted = (bed.sockets("a1", "unreachable_bind")?, bed.sockets("a1", "stopped_local")?);
        ensure!(counted == (reached, stopped), "{local}: {counted:?}");
        let events = bed.succeed(&["events", "--once"])?;
        ensure!(reached == 0 || events.contains("unreachable_bind") && events.contains("peer=127.0.0.1"), "{events}");
    }
    Ok(())
}
