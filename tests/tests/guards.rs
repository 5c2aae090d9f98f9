//! The guards: the purpose of each, its counters, and that they are attached and detached together. Every attempt to
//! escape is a row of `escape`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use socket2::SockRef;
use steer_lab::{
    Capture, Direction, Kind as LinkPacket, LoadReport, SERVER_V4, SERVER_V6, Step, Vector, client_v4, client_v6,
    gateway_v6, wait_until,
};
use steer_tests::{Bed, Cgroup, NotHere, Outcome, PATIENCE, PinnedMap, Spy, USERS, User, exclusive_program};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("an_old_socket_is_stopped", an_old_socket_is_stopped),
    ("a_connection_ends_with_its_uplink", a_connection_ends_with_its_uplink),
    ("sockets_past_ip_are_refused", sockets_past_ip_are_refused),
    ("sockets_past_ip_by_the_most_specific_policy", sockets_past_ip_by_the_most_specific_policy),
    ("a_group_is_joined_on_the_uplink", a_group_is_joined_on_the_uplink),
    ("levels_have_their_programs", levels_have_their_programs),
    ("levels_change_by_reload", levels_change_by_reload),
    ("an_inner_policy_is_not_stopped_by_the_outer_guard", an_inner_policy_is_not_stopped_by_the_outer_guard),
    ("the_outer_guard_after_the_inner_is_removed", the_outer_guard_after_the_inner_is_removed),
    ("a_failed_inner_attachment_decides_nothing", a_failed_inner_attachment_decides_nothing),
    ("a_failed_outer_attachment_leaves_no_trace", a_failed_outer_attachment_leaves_no_trace),
    ("ingress_by_the_uplink_only", ingress_by_the_uplink_only),
    ("the_last_acknowledgement_of_a_closed_connection", the_last_acknowledgement_of_a_closed_connection),
    ("the_last_acknowledgement_of_a_former_policy", the_last_acknowledgement_of_a_former_policy),
];

const STEER: [&str; 5] = ["connect4", "connect6", "bind4", "bind6", "sock_create"];
const STRICT: [&str; 5] = ["egress", "setsockopt", "sock_ops", "sendmsg4", "sendmsg6"];

const SECURITY: [&str; 3] = ["family", "compat_option", "compat_ring"];

/// The programs of a level. Those on security hooks are among them where steer reports it, and `sock_ops` where the kernel accepts it.
fn programs_of(bed: &Bed, level: &str) -> anyhow::Result<Vec<&'static str>> {
    let mut programs = match level {
        "steer" => STEER.to_vec(),
        _ if bed.not_covered()?.is_some() => [&STRICT[..], &STEER].concat(),
        _ => [&SECURITY[..], &STRICT, &STEER].concat(),
    };
    programs.retain(|program| *program != "sock_ops" || bed.abi().join("programs/sock_ops").exists());
    Ok(programs)
}

fn is_local_to(report: &LoadReport, uplink: u8) -> bool {
    report.locals.keys().all(|local| *local == client_v4(uplink) || *local == client_v6(uplink))
}

/// The kernel acknowledges the peer's FIN of a connection that the program closed first, without its socket. Over IPv6 a binding is
/// then only a preference.
pub(crate) fn the_last_acknowledgement_of_a_closed_connection() -> Outcome {
    let bed = Bed::new("guard-time-wait")?;
    // The acknowledgement has the address of the uplink, so it could not look for the gateway of the other link.
    bed.ip(&format!("neigh add {} lladdr 02:00:00:00:00:01 dev a0 nud permanent", gateway_v6(0)))?;
    let methods: [(&[&str], bool); 4] = [
        (&["--enforce", "steer"], true),
        (&[], false),
        (&["--local", "host"], false),
        (&["--local", "lan", "--enforce", "steer"], false),
    ];
    for (number, (method, leaks)) in methods.into_iter().enumerate() {
        let cgroup = bed.cgroup.child(&number.to_string())?;
        bed.succeed(&[&["attach", cgroup.path(), "-i", "a1"], method].concat())?;
        for user in USERS {
            for server in [IpAddr::V4(SERVER_V4), SERVER_V6.into()] {
                // Another test that starts a process at this moment keeps the connection open a little longer, in the child.
                let mut leaked = false;
                for _ in 0..10 {
                    let mut other = Capture::start_except(&bed.net.client, &["a1", "lo"])?;
                    close_first(&bed, &cgroup, user, server)?;
                    leaked |= !steer_lab::leaks(&other.take()?).is_empty();
                    if leaked {
                        break;
                    }
                }
                ensure!(leaked == (leaks && server.is_ipv6()), "{method:?}, {user:?}, {server}: {leaked}");
            }
        }
    }
    Ok(())
}

/// The rule of a former policy stays while the kernel answers for connections of it, and goes afterwards.
fn the_last_acknowledgement_of_a_former_policy() -> Outcome {
    let bed = Bed::new("guard-former")?;
    bed.ip(&format!("neigh add {} lladdr 02:00:00:00:00:01 dev a0 nud permanent", gateway_v6(0)))?;
    let (bound, marked) = ("interface = \"a1\"", "interface = \"a1\"\nlocal = [\"host\"]");
    let (elsewhere, marked_elsewhere) = ("interface = \"a0\"", "interface = \"a0\"\nlocal = [\"host\"]");
    let config = |policy: &str| format!("[[policy]]\nname = \"p\"\n{policy}\ncgroups = [\"@\"]\n");
    let daemon = bed.daemon(&config(bound))?;
    let changes = [(bound, elsewhere), (bound, marked), (marked, bound), (marked, marked_elsewhere)];
    for (before, after) in changes {
        bed.write_config(&config(before))?;
        bed.succeed(&["reload"])?;
        let client = || bed.client(Some(&bed.cgroup), User::Nobody);
        let open =
            SERVERS.map(|server| Closing::by(&bed, client()?, server)).into_iter().collect::<Result<Vec<_>, _>>()?;
        bed.write_config(&config(after))?;
        bed.succeed(&["reload"])?;
        let mut other = Capture::start_except(&bed.net.client, &["a1", "lo"])?;
        Closing::end(open, &bed)?;
        let seen = other.take()?;
        let leaks = steer_lab::leaks(&seen);
        ensure!(leaks.is_empty(), "{before} -> {after}: {leaks:?}");
    }
    // While the uplink has no default route, the answer does not go by another one.
    bed.write_config(&config(bound))?;
    bed.succeed(&["reload"])?;
    let client = bed.client(Some(&bed.cgroup), User::Nobody)?;
    let open = vec![Closing::by(&bed, client, SERVER_V6.into())?];
    bed.ip("-6 route del default dev a1")?;
    bed.succeed(&["reload"])?;
    let mut other = Capture::start_except(&bed.net.client, &["a1", "lo"])?;
    drop(open);
    // The peer gets no answer, so only the client's side tells that its end has come in.
    wait_until("the connection to be in TIME_WAIT", PATIENCE, || {
        let table = bed.net.client.run(|| fs::read_to_string("/proc/thread-self/net/tcp6"));
        table.is_ok_and(|table| table.is_ok_and(|table| !is_ending(&table) && table.contains(TIME_WAIT_FIELD)))
    })?;
    let seen = other.take()?;
    ensure!(steer_lab::leaks(&seen).is_empty(), "without a default route: {seen:?}");
    bed.net.restore_client(1)?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    bed.succeed(&["off"])?;
    // The keeper of a command stays for its connections.
    for method in [&[][..], &["--local", "host"]] {
        let client = || {
            let mut command = bed.steer(&[&["exec", "-i", "a1"], method, &["--"]].concat());
            command.arg(bed.copy_of("STEER_PROBE", "steer-probe")?);
            anyhow::Ok(command)
        };
        let open =
            SERVERS.map(|server| Closing::by(&bed, client()?, server)).into_iter().collect::<Result<Vec<_>, _>>()?;
        wait_until("the cgroups of the commands to be released", PATIENCE, || {
            bed.status().is_ok_and(|status| status["policies"].as_array().is_some_and(Vec::is_empty))
        })?;
        let mut other = Capture::start_except(&bed.net.client, &["a1", "lo"])?;
        Closing::end(open, &bed)?;
        let seen = other.take()?;
        let leaks = steer_lab::leaks(&seen);
        ensure!(leaks.is_empty(), "exec {method:?}: {leaks:?}");
        bed.end_closed_connections()?;
        wait_until("the keepers to remove what they kept", PATIENCE, || !bed.pins.exists())?;
        let rules = bed.ip("rule show")? + &bed.ip("-6 rule show")?;
        ensure!(!rules.contains("40000") && !rules.contains("oif"), "{method:?}: {rules}");
    }
    Ok(())
}

const SERVERS: [IpAddr; 2] = [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)];

/// A connection that a program of the cgroup closes first, and then the server.
fn close_first(bed: &Bed, cgroup: &Cgroup, user: User, server: IpAddr) -> Outcome {
    Closing::end(vec![Closing::by(bed, bed.client(Some(cgroup), user)?, server)?], bed)
}

/// A connection that the client has closed.
struct Closing {
    _server: TcpStream,
}

impl Closing {
    /// `client`: runs the client of the lab.
    fn by(bed: &Bed, mut client: Command, server: IpAddr) -> anyhow::Result<Self> {
        let listener = bed.net.server.run(|| TcpListener::bind((server, 0)))??;
        let port = listener.local_addr()?.port();
        client.args(["--json", "--proto", "tcp", "--target", &server.to_string(), "--port", &port.to_string()]);
        let client = client.stdout(Stdio::piped()).spawn()?;
        let (mut accepted, _) = listener.accept()?;
        accepted.read_exact(&mut [0])?;
        accepted.write_all(b"answer\n")?;
        client.wait_with_output()?;
        accepted.read_to_end(&mut Vec::new())?;
        // Without this the kernel would acknowledge the client's end with the server's, and the client's socket would answer.
        SockRef::from(&accepted).set_tcp_quickack(true)?;
        Ok(Self { _server: accepted })
    }

    /// Closes the server's side of all connections, and waits for the acknowledgements.
    fn end(all: Vec<Self>, bed: &Bed) -> Outcome {
        drop(all);
        wait_until("the end of the connections", PATIENCE, || {
            let tables = ["tcp", "tcp6"].map(|table| format!("/proc/thread-self/net/{table}"));
            let sockets = bed.net.server.run(|| tables.map(fs::read_to_string));
            sockets.is_ok_and(|tables| !tables.into_iter().flatten().any(|table| is_ending(&table)))
        })?;
        Ok(())
    }
}

/// The state TIME_WAIT, as a list of TCP sockets has it.
const TIME_WAIT_FIELD: &str = " 06 ";

/// Whether a list of TCP sockets has one that is neither listening nor past its end.
fn is_ending(table: &str) -> bool {
    const LISTEN: &str = "0A";
    const TIME_WAIT: &str = "06";
    table.lines().skip(1).any(|line| !matches!(line.split_whitespace().nth(3), Some(LISTEN | TIME_WAIT)))
}

/// Sockets made before the attachment get no packet out by another link.
fn an_old_socket_is_stopped() -> Outcome {
    let bed = Bed::new("guard-old")?;
    let load = bed.load(&bed.cgroup)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    wait_until("sockets on the uplink", PATIENCE, || bed.sockets("a1", "bound").is_ok_and(|bound| bound > 50))?;
    spy.saw_nothing()?;
    ensure!(load.stop()?.ok > 0);
    Ok(())
}

/// A closed policy also stops open sockets.
fn a_connection_ends_with_its_uplink() -> Outcome {
    let mut bed = Bed::new("guard-closed")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    let load = bed.load(&bed.cgroup)?;
    bed.net.rename_uplink(1, "renamed")?;
    wait_until("the daemon to miss the uplink", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["ifindex"].is_null())
    })?;
    // From here on no packet leaves by any link, including the renamed one.
    let mut closed = Spy::on(&bed, &[])?;
    let before = bed.sockets("p", "closed_missing")?;
    wait_until("more attempts", PATIENCE, || bed.sockets("p", "closed_missing").is_ok_and(|now| now > before + 50))?;
    closed.saw_nothing()?;
    drop(load);
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}

fn programs(bed: &Bed, policy: &str) -> anyhow::Result<Vec<String>> {
    let policy = bed.policy(policy)?;
    let programs = policy["cgroups"][0]["programs"].as_array().context("no programs")?;
    ensure!(policy["cgroups"][0]["complete"] == true, "{policy}");
    Ok(programs.iter().filter_map(|program| program.as_str().map(str::to_owned)).collect())
}

/// A bed whose cgroup is steered to `a1` by a policy that refuses packet sockets. Not every machine supports this.
fn guarded_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    match bed.not_covered()? {
        Some(why) => Err(NotHere(why).into()),
        None => Ok(bed),
    }
}

fn is_refused(bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<bool> {
    let attempt = bed.attempt_in(cgroup, Vector::PacketRaw)?;
    let refused = attempt.step == Some(Step::Socket) && attempt.outcome == "EPERM";
    ensure!(refused || attempt.is_ok(), "{attempt:?}");
    Ok(refused)
}

pub(crate) fn sockets_past_ip_are_refused() -> Outcome {
    let bed = guarded_bed("guard-past-ip")?;
    ensure!(is_refused(&bed, &bed.cgroup.child("below")?)?);
    ensure!(bed.sockets("a1", "stopped_family")? == 1);
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(events.contains("stopped_family") && events.contains("comm=\"steer-escape\""), "{events}");
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(bed.sockets("a1", "stopped_family")? == 1, "an IP socket was refused");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer"])?;
    ensure!(!is_refused(&bed, &bed.cgroup)?, "by another level");
    Ok(())
}

/// There is no socket that an inner program could mark, so the outer program must check the cgroup of the process.
fn sockets_past_ip_by_the_most_specific_policy() -> Outcome {
    let bed = guarded_bed("guard-past-ip-in")?;
    let inner = bed.cgroup.child("inner")?;
    let leaf = inner.child("leaf")?;
    for inner_policy in [&["-i", "none"][..], &["-i", "a0", "--enforce", "steer"], &["-i", "a0"]] {
        bed.succeed(&[&["attach", inner.path()][..], inner_policy].concat())?;
        let held = inner_policy == ["-i", "a0"];
        ensure!(is_refused(&bed, &leaf)? == held && is_refused(&bed, &inner)? == held, "{inner_policy:?}");
        ensure!(is_refused(&bed, &bed.cgroup)?, "the outer one's own, with {inner_policy:?} in it");
    }
    ensure!(bed.sockets("a0", "stopped_family")? == 2, "counted by the outer policy");
    // An exempt policy around both affects only its own processes. It is attached last and respects the existing
    // attachments.
    bed.succeed(&["detach", bed.cgroup.path()])?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "none"])?;
    ensure!(is_refused(&bed, &leaf)? && !is_refused(&bed, &bed.cgroup)?);
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["attach", inner.path(), "-i", "none"])?;
    ensure!(!is_refused(&bed, &leaf)? && is_refused(&bed, &bed.cgroup)?);
    bed.succeed(&["detach", inner.path()])?;
    ensure!(is_refused(&bed, &leaf)?, "the outer policy again");
    Ok(())
}

fn a_group_is_joined_on_the_uplink() -> Outcome {
    for vector in [Vector::JoinByRoute, Vector::JoinByAddress] {
        let bed = Bed::new("guard-group")?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        let mut uplink = Capture::start(&bed.net.client, "a1")?;
        let attempt = bed.attempt_in(&bed.cgroup, vector)?;
        ensure!(attempt.is_ok(), "{attempt:?}");
        wait_until("the report that the group was joined", PATIENCE, || {
            uplink.take().is_ok_and(|packets| {
                packets.iter().any(|packet| packet.kind == LinkPacket::Igmp && packet.direction == Direction::Out)
            })
        })?;
    }
    Ok(())
}

fn levels_have_their_programs() -> Outcome {
    let bed = Bed::new("guard-levels")?;
    // The level is raised and lowered: each time exactly the programs of the level are attached.
    for level in ["steer", "strict", "steer"] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", level])?;
        let want = programs_of(&bed, level)?;
        ensure!(programs(&bed, "a1")? == want, "{level}: {:?}", programs(&bed, "a1")?);
        ensure!(bed.policy("a1")?["enforce"] == level);
        bed.check_steered(&bed.cgroup, 1)?;
    }
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "uplink"])?;
    ensure!(programs(&bed, "a1")?.contains(&"ingress".to_owned()));
    let refused = bed.run(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "uplink", "--enforce", "steer"])?;
    ensure!(refused.code == 2 && refused.stderr.contains("--ingress uplink needs --enforce strict"), "{refused:?}");
    Ok(())
}

fn levels_change_by_reload() -> Outcome {
    let bed = Bed::new("guard-reload")?;
    let config = |enforce: &str| {
        format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nenforce = \"{enforce}\"\ncgroups = [\"@\"]\n")
    };
    let daemon = bed.daemon(&config("steer"))?;
    ensure!(programs(&bed, "p")? == STEER);
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&bed.cgroup)?;
    for (round, enforce) in ["strict", "steer", "strict", "steer"].into_iter().enumerate() {
        bed.write_config(&config(enforce))?;
        wait_until("the reload", PATIENCE, || daemon.log().matches("reloaded").count() == round + 1)?;
        ensure!(bed.policy("p")?["enforce"] == enforce);
        ensure!(programs(&bed, "p")? == programs_of(&bed, enforce)?);
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    ensure!(report.errors.is_empty() && is_local_to(&report, 1), "{report:?}");
    Ok(())
}

fn an_inner_policy_is_not_stopped_by_the_outer_guard() -> Outcome {
    for (interface, uplink) in [("a0", 0), ("none", 0)] {
        for outer_first in [true, false] {
            let bed = Bed::new("guard-nested")?;
            let inner = bed.cgroup.child("inner")?;
            let mut order = [(bed.cgroup.path(), "a1"), (inner.path(), interface)];
            if !outer_first {
                order.reverse();
            }
            for (path, interface) in order {
                bed.succeed(&["attach", path, "-i", interface])?;
            }
            let case = format!("{interface}, outer first: {outer_first}");
            if interface == "none" {
                bed.check_unsteered(Some(&inner)).context(case)?;
            } else {
                bed.check_steered(&inner, uplink).context(case)?;
            }
            bed.check_steered(&bed.cgroup, 1)?;
        }
    }
    Ok(())
}

/// The outer policy applies to the inner cgroup after `end` has ended its exemption.
fn outer_guard_takes_over(name: &str, end: impl Fn(&Bed, &Cgroup) -> Outcome) -> Outcome {
    let bed = Bed::new(name)?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["attach", inner.path(), "-i", "none"])?;
    // Sockets of the exempt cgroup use the default route until its exemption ends. After that, no socket does.
    let load = bed.load(&inner)?;
    end(&bed, &inner)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let before = bed.sockets("a1", "bound")?;
    wait_until("new sockets to be bound", PATIENCE, || bed.sockets("a1", "bound").is_ok_and(|now| now > before + 50))?;
    spy.saw_nothing()?;
    ensure!(load.stop()?.ok > 0);
    bed.check_steered(&inner, 1)
}

fn the_outer_guard_after_the_inner_is_removed() -> Outcome {
    outer_guard_takes_over("guard-again", |bed, inner| bed.succeed(&["detach", inner.path()]).map(drop))
}

fn ingress_by_the_uplink_only() -> Outcome {
    let bed = Bed::new("guard-ingress")?;
    // It was made before the attachment, so it is not bound; but it is in the cgroup.
    let mut listener = bed.client(Some(&bed.cgroup), User::Nobody)?.arg("--listen").stdout(Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(listener.stdout.take().context("no pipe")?).lines();
    let port = heard.next().context("no port")??.parse::<u16>()?;
    let send = |to: Ipv4Addr| {
        bed.net.server.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hello", (to, port)))
    };
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "any"])?;
    send(client_v4(0))??;
    ensure!(heard.next().context("nothing heard")?? == "heard 5");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "uplink"])?;
    send(client_v4(0))??;
    wait_until("the packet to be dropped", PATIENCE, || {
        bed.sockets("a1", "stopped_ingress").is_ok_and(|stopped| stopped > 0)
    })?;
    // The next packet that it receives came by the uplink.
    bed.net
        .server
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"by the uplink", (client_v4(1), port)))??;
    ensure!(heard.next().context("nothing heard")?? == "heard 13");
    listener.kill()?;
    listener.wait()?;
    Ok(())
}

/// The mark of an inner attachment in a socket ends with the attachment, also if it cannot be made again.
fn a_failed_inner_attachment_decides_nothing() -> Outcome {
    outer_guard_takes_over("guard-failed", |bed, inner| {
        bed.succeed(&["detach", inner.path()])?;
        exclusive_program(inner, "foreign")?;
        let refused = bed.run(&["attach", inner.path(), "-i", "none"])?;
        ensure!(refused.code == 1, "{refused:?}");
        Ok(())
    })
}

/// An outer attachment that fails leaves inner ones as they were.
fn a_failed_outer_attachment_leaves_no_trace() -> Outcome {
    let bed = Bed::new("guard-failed-outer")?;
    let outer = bed.cgroup.child("outer")?;
    let inner = outer.child("inner")?;
    bed.succeed(&["attach", inner.path(), "-i", "a1", "--enforce", "steer"])?;
    let state = || {
        let record = PinnedMap::<24>::open(&bed, "ATTACHMENTS")?.get(&inner.id()?.to_ne_bytes())?;
        let decider = PinnedMap::<4>::open(&bed, "DECIDERS")?.get(&inner.id()?.to_ne_bytes()).ok();
        Ok::<_, anyhow::Error>((record, decider, programs(&bed, "a1")?))
    };
    let before = state()?;
    exclusive_program(&outer, "foreign")?;
    let refused = bed.run(&["attach", outer.path(), "-i", "a0"])?;
    ensure!(refused.code == 1, "{refused:?}");
    ensure!(state()? == before, "{:?} and not {before:?}", state()?);
    Ok(())
}
