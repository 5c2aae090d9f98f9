//! Tests of the lab itself. They need root; without it every test shows as ignored.

use libtest_mimic::{Arguments, Trial};
use std::{
    error::Error,
    io::Write,
    net::{IpAddr, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};
use steer_lab::{
    Capture, Direction, Kind, LoadReport, Netns, Packet, Probe, Proto, SERVER_V4, SERVER_V6, Server, Stage, Transport,
    Uplinks, client_v4, client_v6, gateway_v4, leaks, parse_outcomes, wait_until,
};

type Test = (&'static str, fn() -> Outcome);
type Outcome = Result<(), Box<dyn Error>>;

const PROBE: &str = env!("CARGO_BIN_EXE_steer-probe");
const LONG: Duration = Duration::from_secs(10);

fn main() {
    let root = nix::unistd::geteuid().is_root();
    let tests: [Test; 14] = [
        ("unsteered_traffic_takes_the_first_uplink", unsteered_traffic_takes_the_first_uplink),
        ("probe_binary_inside_a_namespace", probe_binary_inside_a_namespace),
        ("probe_as_nobody", probe_as_nobody),
        ("probe_reports_errors", probe_reports_errors),
        ("recreated_uplink_has_a_new_index", recreated_uplink_has_a_new_index),
        ("renamed_uplink_keeps_its_index_and_routes", renamed_uplink_keeps_its_index_and_routes),
        ("capture_survives_the_interface", capture_survives_the_interface),
        ("capture_except_follows_new_interfaces", capture_except_follows_new_interfaces),
        ("capture_reports_what_it_lost", capture_reports_what_it_lost),
        ("an_idle_lab_is_silent", an_idle_lab_is_silent),
        ("labs_are_separate", labs_are_separate),
        ("load_runs_until_stdin_closes", load_runs_until_stdin_closes),
        ("tun_and_routes", tun_and_routes),
        ("host_is_unchanged", host_is_unchanged),
    ];
    let trials = tests.map(|(name, test)| {
        Trial::test(name, move || test().map_err(|error| chain(error.as_ref()).into())).with_ignored_flag(!root)
    });
    if !root {
        eprintln!("the lab's tests need root: ignored");
    }
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn sent(packets: &[Packet], kind: Kind) -> usize {
    packets.iter().filter(|packet| packet.direction == Direction::Out && packet.kind == kind).count()
}

/// The server's addresses, each with the client's address on the uplink that is used without steering.
fn clients() -> [(IpAddr, IpAddr); 2] {
    [(SERVER_V4.into(), client_v4(0).into()), (SERVER_V6.into(), client_v6(0).into())]
}

fn unsteered_traffic_takes_the_first_uplink() -> Outcome {
    let lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    let (mut used, mut other) = (Capture::start(&lab.client, "a0")?, Capture::start(&lab.client, "a1")?);
    let (index, other_index) = (lab.ifindex(0)?, lab.ifindex(1)?);

    let all = [Proto::Tcp, Proto::Udp, Proto::Ping, Proto::Raw, Proto::UdpUnconnected, Proto::Mptcp];
    for (target, client) in clients() {
        for proto in all {
            let probe = Probe { count: 2, ..Probe::new(proto, target, server.port()) };
            let outcome = lab.client.run(|| probe.run())?;
            assert_eq!((&outcome.error, outcome.stage), (&None, Stage::Receive), "{outcome:?}");
            assert_eq!(outcome.saw, Some(client.to_string()), "{outcome:?}");
            assert_eq!(outcome.local, (proto != Proto::UdpUnconnected).then_some(client), "{outcome:?}");
            assert_eq!(outcome.bound_ifindex, 0, "{outcome:?}");
        }
        let packets = used.take()?;
        let (echo, resolve) = if target.is_ipv4() { (Kind::Icmp4, Kind::Arp) } else { (Kind::Icmp6, Kind::Ndp) };
        assert_eq!((sent(&packets, Kind::Udp), sent(&packets, echo)), (4, 4), "{packets:#?}");
        assert!(sent(&packets, Kind::Tcp) >= 8 && sent(&packets, resolve) == 1, "{packets:#?}");
        assert!(packets.iter().all(|packet| packet.ifindex == index));
        let request = packets.iter().find(|packet| packet.direction == Direction::Out && packet.kind == Kind::Udp);
        let request = request.ok_or("no datagram captured")?;
        assert_eq!((request.src, request.dst), (Some(client), Some(target)));
        assert_eq!((request.dst_port, request.payload_len), (Some(server.port()), "steer-probe\n".len()));

        let silence = other.take()?;
        assert!(leaks(&silence).is_empty(), "{silence:#?}");

        let seen = server.take_seen();
        assert!(seen.iter().all(|seen| seen.peer.ip() == client), "{seen:?}");
        let of = |transport, payload: &[u8]| {
            seen.iter().filter(|seen| seen.transport == transport && seen.payload == payload).count()
        };
        assert_eq!((of(Transport::Tcp, b""), of(Transport::Tcp, b"steer-probe\n")), (2, 4), "{seen:?}");
        assert_eq!(of(Transport::Udp, b"steer-probe\n"), 4, "{seen:?}");
    }

    // Without the first uplink all traffic uses the second. So the silence above was real, and the capture works.
    lab.remove_uplink(0)?;
    let outcome = lab.client.run(|| Probe::new(Proto::Udp, SERVER_V4, server.port()).run())?;
    assert_eq!(outcome.saw, Some(client_v4(1).to_string()), "{outcome:?}");
    let packets = other.take()?;
    assert_eq!((leaks(&packets).len(), sent(&packets, Kind::Udp), sent(&packets, Kind::Arp)), (2, 1, 1));
    assert!(leaks(&packets).iter().all(|packet| packet.ifindex == other_index));
    Ok(())
}

fn probe_binary_inside_a_namespace() -> Outcome {
    let lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    let mut command = Command::new(PROBE);
    command.args(["--json", "--all", "--port", &server.port().to_string()]);
    let output = lab.client.enter(&mut command).output()?;
    let outcomes = parse_outcomes(std::str::from_utf8(&output.stdout)?)?;
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(outcomes.len(), 8, "{outcomes:?}");
    for (target, client) in clients() {
        for outcome in outcomes.iter().filter(|outcome| outcome.target == target) {
            assert_eq!(outcome.saw, Some(client.to_string()), "{outcome:?}");
        }
    }
    Ok(())
}

fn probe_as_nobody() -> Outcome {
    let lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    // User nobody may be unable to reach the binary's directory.
    let directory = std::env::temp_dir().join(format!("steer-lab-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let program = directory.join("steer-probe");
    std::fs::copy(PROBE, &program)?;
    let mut command = Command::new(&program);
    command.args(["--json", "--all", "--family", "v4", "--port", &server.port().to_string()]).current_dir("/");
    let output = lab.client.enter_as(&mut command, 65534, 65534).output();
    std::fs::remove_dir_all(&directory)?;
    let output = output?;
    let outcomes = parse_outcomes(std::str::from_utf8(&output.stdout)?)?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for outcome in outcomes {
        // Ping needs no privilege; a raw socket does.
        let expected = (outcome.proto == Proto::Raw).then_some("EPERM");
        assert_eq!(outcome.error.as_deref(), expected, "{outcome:?}");
        if outcome.proto == Proto::Raw {
            assert_eq!((outcome.stage, outcome.bound_ifindex), (Stage::Socket, -1), "{outcome:?}");
        }
    }
    Ok(())
}

fn probe_reports_errors() -> Outcome {
    let lab = Uplinks::new()?;
    let probe = |target: IpAddr| Probe { timeout_ms: 50, ..Probe::new(Proto::Tcp, target, 9) };
    let run = |target: IpAddr| lab.client.run(|| probe(target).run());

    let refused = run(SERVER_V4.into())?;
    assert_eq!((refused.error.as_deref(), refused.stage), (Some("ECONNREFUSED"), Stage::Connect));
    // No host has that address on the link, and neighbour discovery takes longer than the probe's timeout.
    let silent = run([10, 0, 0, 77].into())?;
    assert_eq!((silent.error.as_deref(), silent.stage), (Some("ETIMEDOUT"), Stage::Connect));
    let unanswered = lab.client.run(|| Probe { proto: Proto::Udp, ..probe([10, 0, 0, 77].into()) }.run())?;
    assert_eq!((unanswered.error.as_deref(), unanswered.stage), (Some("ETIMEDOUT"), Stage::Receive));

    lab.remove_uplink(0)?;
    lab.remove_uplink(1)?;
    let unreachable = run(SERVER_V6.into())?;
    assert_eq!((unreachable.error.as_deref(), unreachable.bound_ifindex), (Some("ENETUNREACH"), 0));
    Ok(())
}

fn recreated_uplink_has_a_new_index() -> Outcome {
    let mut lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    let before = lab.ifindex(0)?;
    lab.remove_uplink(0)?;
    assert_eq!(lab.client.link_index("a0")?, None);
    assert_eq!(lab.ifindex(0).map_err(|e| e.to_string()), Err("no interface a0 in namespace client".to_owned()));
    lab.create_uplink(0)?;
    assert!(lab.ifindex(0)? > before);
    for (target, client) in clients() {
        let outcome = lab.client.run(|| Probe::new(Proto::Tcp, target, server.port()).run())?;
        assert_eq!(outcome.local, Some(client), "{outcome:?}");
    }
    Ok(())
}

fn renamed_uplink_keeps_its_index_and_routes() -> Outcome {
    let mut lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    let before = lab.ifindex(0)?;
    lab.rename_uplink(0, "wan0")?;
    assert_eq!((lab.link(0), lab.ifindex(0)?, lab.client.link_index("a0")?), ("wan0", before, None));
    lab.client.add_altname("wan0", "uplink-to-the-provider")?;
    assert_eq!(lab.client.ifindex("uplink-to-the-provider")?, before);
    assert_eq!(lab.client.link_names()?.get(&before).map(String::as_str), Some("wan0"));
    let outcome = lab.client.run(|| Probe::new(Proto::Tcp, SERVER_V6, server.port()).run())?;
    assert_eq!(outcome.local, Some(client_v6(0).into()), "{outcome:?}");
    Ok(())
}

fn capture_survives_the_interface() -> Outcome {
    let mut lab = Uplinks::new()?;
    let mut capture = Capture::start(&lab.client, "a0")?;
    let count = 100;
    lab.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..count).try_for_each(|_| socket.send_to(b"gone", (gateway_v4(0), 9)).map(drop))
    })??;
    let index = lab.ifindex(0)?;
    lab.remove_uplink(0)?;
    lab.create_uplink(0)?;
    let packets = capture.take()?;
    assert_eq!(sent(&packets, Kind::Udp), count, "{packets:#?}");
    assert!(packets.iter().all(|packet| packet.ifindex == index), "{packets:#?}");
    assert!(capture.take()?.is_empty());
    Ok(())
}

fn capture_except_follows_new_interfaces() -> Outcome {
    let mut lab = Uplinks::new()?;
    let mut capture = Capture::start_except(&lab.client, &["lo", "a0"])?;
    let send =
        |lab: &Uplinks, i| lab.client.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (gateway_v4(i), 9)).map(drop));
    send(&lab, 0)??;
    let packets = capture.take()?;
    assert!(leaks(&packets).is_empty(), "{packets:#?}");

    send(&lab, 1)??;
    let packets = capture.take()?;
    assert_eq!((sent(&packets, Kind::Udp), sent(&packets, Kind::Arp)), (1, 1), "{packets:#?}");
    assert!(packets.iter().all(|packet| Some(packet.ifindex) == lab.ifindex(1).ok()), "{packets:#?}");

    // A new interface is not allowed, whatever its name, until it is declared as allowed.
    lab.remove_uplink(0)?;
    lab.create_uplink(0)?;
    send(&lab, 0)??;
    let packets = capture.take()?;
    assert_eq!(sent(&packets, Kind::Udp), 1, "{packets:#?}");
    send(&lab, 0)??;
    capture.allow(lab.ifindex(0)?)?;
    send(&lab, 0)??;
    let packets = capture.take()?;
    assert!(leaks(&packets).is_empty(), "{packets:#?}");
    send(&lab, 1)??;
    assert_eq!(sent(&capture.take()?, Kind::Udp), 1);
    Ok(())
}

fn capture_reports_what_it_lost() -> Outcome {
    let lab = Uplinks::with(1)?;
    let mut capture = Capture::start(&lab.client, "a0")?;
    let flood = || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..20_000).try_for_each(|_| socket.send_to(&[0; 8192], (gateway_v4(0), 9)).map(drop))
    };
    lab.client.run(flood)??;
    let error = capture.take().err().ok_or("nothing lost")?;
    assert!(matches!(error, steer_lab::Error::Lost { lost, .. } if lost > 0), "{error:?}");
    assert!(error.to_string().starts_with("capture of a0 in client lost "), "{error}");
    assert!(capture.take()?.len() > 1000);
    Ok(())
}

fn an_idle_lab_is_silent() -> Outcome {
    let lab = Netns::new("idle")?;
    let peer = Netns::new("peer")?;
    let mut capture = Capture::start_except(&lab, &["lo"])?;
    steer_lab::create_veth(&lab, "a", &peer, "b")?;
    peer.set_up("b")?;
    lab.set_up("a")?;
    lab.wait_running("a")?;
    // The groups of IPv6 addresses are reported to routers; no other packets may appear.
    lab.add_address("a", client_v6(0).into(), 64)?;
    let mut packets = Vec::new();
    wait_until("the kernel has reported the address's group", LONG, || {
        packets.extend(capture.take().unwrap_or_default());
        sent(&packets, Kind::Mld) > 0
    })?;
    assert!(packets.iter().all(Packet::is_kernel_noise), "{packets:#?}");
    Ok(())
}

fn labs_are_separate() -> Outcome {
    let (one, two) = (Uplinks::new()?, Uplinks::with(3)?);
    let (server, other) = (Server::start(&one.server)?, Server::start(&two.server)?);
    let mut capture = Capture::start_except(&two.client, &["lo"])?;
    let cookies = [one.client.cookie()?, one.server.cookie()?, two.client.cookie()?, two.server.cookie()?];
    assert_eq!(std::collections::BTreeSet::from(cookies).len(), 4, "{cookies:?}");
    let outcome = one.client.run(|| Probe::new(Proto::Udp, SERVER_V4, server.port()).run())?;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!((server.seen().len(), other.seen().len()), (1, 0));
    let packets = capture.take()?;
    assert!(leaks(&packets).is_empty(), "{packets:#?}");
    assert_eq!(two.client.link_names()?.into_values().collect::<Vec<_>>(), ["lo", "a0", "a1", "a2"]);
    Ok(())
}

fn load_runs_until_stdin_closes() -> Outcome {
    let mut lab = Uplinks::new()?;
    let server = Server::start(&lab.server)?;
    let mut command = Command::new(PROBE);
    command.args(["--repeat-until-stdin-closes", "--timeout-ms", "200", "--port", &server.port().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = lab.client.enter(&mut command).spawn()?;
    wait_until("load has reached the server", LONG, || server.seen().len() > 100)?;
    lab.remove_uplink(0)?;
    let fallback = |server: &Server| server.seen().iter().any(|seen| seen.peer.ip() == client_v4(1));
    wait_until("load has moved to the second uplink", LONG, || fallback(&server))?;
    lab.create_uplink(0)?;
    server.take_seen();
    wait_until("load is back", LONG, || server.seen().iter().any(|seen| seen.peer.ip() == client_v4(0)))?;
    child.stdin.take().ok_or("no stdin")?.flush()?;
    let output = child.wait_with_output()?;
    let output = std::str::from_utf8(&output.stdout)?;
    assert!(output.starts_with("ready\n"), "{output}");
    let report = LoadReport::parse(output)?;
    assert!(report.ok > 100 && report.locals.contains_key(&client_v4(1).into()), "{report:?}");
    assert_eq!(report.bound.keys().copied().collect::<Vec<_>>(), [0], "{report:?}");
    assert_eq!(report.attempts(), report.bound.values().sum::<u64>(), "{report:?}");
    Ok(())
}

fn tun_and_routes() -> Outcome {
    let netns = Netns::new("others")?;
    let tun = netns.add_tun("tun0")?;
    assert!(netns.add_tun("a-name-of-17-byte").is_err_and(|error| error.errno() == Some(36)));
    netns.add_address("tun0", [192, 0, 2, 1].into(), 24)?;
    netns.add_address("tun0", [192, 0, 2, 1].into(), 24)?;
    netns.set_up("tun0")?;
    netns.write_sysctl("net/ipv4/conf/tun0/rp_filter", "1")?;
    let send = || netns.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "203.0.113.7:9"));
    assert!(send()?.is_err_and(|error| error.raw_os_error() == Some(101)));
    netns.add_route([203, 0, 113, 0].into(), 24, None, "tun0", 50)?;
    netns.add_route([203, 0, 113, 0].into(), 24, None, "tun0", 50)?;

    // A link without a link layer: only the datagram.
    let mut capture = Capture::start(&netns, "tun0")?;
    send()??;
    let packets = capture.take()?;
    assert_eq!((leaks(&packets).len(), sent(&packets, Kind::Udp)), (1, 1), "{packets:#?}");
    netns.set_down("tun0")?;
    assert!(send()?.is_err());
    drop(tun);
    assert_eq!(netns.link_index("tun0")?, None);
    Ok(())
}

fn host_is_unchanged() -> Outcome {
    let namespace = || std::fs::read_link("/proc/thread-self/ns/net");
    let home = namespace()?;
    let lab = Uplinks::with(1)?;
    assert_eq!(namespace()?, home);
    assert_ne!(lab.client.run(namespace)??, home);
    assert_ne!(lab.client.cookie()?, lab.server.cookie()?);
    // Names that no host has, so that interfaces that others make meanwhile do not disturb.
    let names = ["steer-lab-x", "steer-lab-y"];
    steer_lab::create_veth(&lab.client, names[0], &lab.server, names[1])?;
    let of_host = nix::net::if_::if_nameindex()?;
    assert!(of_host.iter().all(|link| names.iter().all(|name| link.name().to_str() != Ok(*name))), "{of_host:?}");
    Ok(())
}
