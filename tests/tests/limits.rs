//! Tests of the limits in the README. When a test fails, steer has become better and the README is wrong.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Kind, SERVER_V4, SERVER_V6, Stage, client_v4, leaks, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, User, check_outcomes, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sockets_of_others_keep_what_they_had", sockets_of_others_keep_what_they_had),
    ("this_host_is_unreachable", this_host_is_unreachable),
    ("listening_on_loopback_needs_a_privilege", listening_on_loopback_needs_a_privilege),
    ("the_uplink_needs_a_route", the_uplink_needs_a_route),
    ("a_strict_reverse_path_filter_drops_replies", a_strict_reverse_path_filter_drops_replies),
    ("the_kernels_own_answers_follow_the_routes", the_kernels_own_answers_follow_the_routes),
];

/// The test process stays outside the steered cgroup; `bed` starts a client in it.
fn steered_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    Ok(bed)
}

fn sockets_of_others_keep_what_they_had() -> Outcome {
    let bed = Bed::new("limit-kept")?;
    // Made outside the steered cgroup: a socket keeps the cgroup of its maker, whoever uses it.
    let socket = bed.net.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let mut default = Capture::start(&bed.net.client, "a0")?;
    socket.send_to(b"made elsewhere", (SERVER_V4, bed.server.port()))?;
    ensure!(leaks(&default.take()?).iter().any(|packet| packet.kind == Kind::Udp));
    Ok(())
}

/// The step that a TCP connection to `address` reaches in the steered cgroup.
fn connect_locally(bed: &Bed, address: Ipv4Addr, port: u16, user: User) -> anyhow::Result<steer_lab::Outcome> {
    let arguments = ["--json", "--proto", "tcp", "--timeout-ms", "300"].map(str::to_owned);
    let rest = ["--target".to_owned(), address.to_string(), "--port".to_owned(), port.to_string()];
    let mut command = bed.client(Some(&bed.cgroup), user)?;
    let ran = output(command.args(arguments).args(rest))?;
    steer_lab::parse_outcomes(&ran.stdout)?.pop().context("no outcome")
}

fn this_host_is_unreachable() -> Outcome {
    let bed = steered_bed("limit-local")?;
    let listener = bed.net.client.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let port = listener.local_addr()?.port();
    let cases = [
        (Ipv4Addr::LOCALHOST, User::Root, true),
        (Ipv4Addr::LOCALHOST, User::Nobody, false),
        (client_v4(0), User::Root, false),
        (client_v4(0), User::Nobody, false),
    ];
    for (address, user, reached) in cases {
        let outcome = connect_locally(&bed, address, port, user)?;
        ensure!((outcome.stage != Stage::Connect) == reached, "{address} as {user:?}: {outcome:?}");
        // The address itself is reachable.
        let address = SocketAddr::new(address.into(), port);
        bed.net.client.run(|| TcpStream::connect_timeout(&address, PATIENCE))??;
    }
    Ok(())
}

/// A socket bound to the uplink receives nothing on 127.0.0.1. A process with the privilege can unbind it.
fn listening_on_loopback_needs_a_privilege() -> Outcome {
    let bed = steered_bed("limit-listen")?;
    for (user, reached) in [(User::Root, true), (User::Nobody, false)] {
        let mut command = bed.client(Some(&bed.cgroup), user)?;
        let mut listener = command.args(["--listen", "127.0.0.1"]).stdout(Stdio::piped()).spawn()?;
        let mut heard = BufReader::new(listener.stdout.take().context("no pipe")?).lines();
        let port = heard.next().context("no port")??.parse::<u16>()?;
        let answer = bed.net.client.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect((Ipv4Addr::LOCALHOST, port))?;
            socket.send(b"hello")?;
            // A refusal arrives before `send` returns.
            socket.take_error()
        })??;
        ensure!(answer.is_none() == reached, "{user:?}: {answer:?}");
        if reached {
            ensure!(heard.next().context("nothing heard")?? == "heard 5");
        }
        listener.kill()?;
        listener.wait()?;
    }
    Ok(())
}

fn the_uplink_needs_a_route() -> Outcome {
    let bed = Bed::new("limit-route")?;
    // A third link to the same server, without any route.
    steer_lab::create_veth(&bed.net.client, "a2", &bed.net.server, "b2")?;
    bed.net.client.add_address("a2", Ipv4Addr::new(10, 0, 2, 2).into(), 24)?;
    for (netns, link) in [(&bed.net.client, "a2"), (&bed.net.server, "b2")] {
        netns.set_up(link)?;
    }
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a2"])?;
    let mut uplink = Capture::start(&bed.net.client, "a2")?;
    let outcomes = bed.probe(Some(&bed.cgroup), User::Root)?;
    let asked = uplink.take()?.iter().any(|packet| packet.kind == Kind::Arp && packet.dst == Some(SERVER_V4.into()));
    ensure!(asked, "the server was not taken for a neighbour: {outcomes:?}");
    let unreachable = outcomes.iter().filter(|outcome| outcome.target == std::net::IpAddr::from(SERVER_V6));
    for outcome in unreachable {
        ensure!(outcome.error.as_deref() == Some("ENETUNREACH"), "{outcome:?}");
    }
    Ok(())
}

fn a_strict_reverse_path_filter_drops_replies() -> Outcome {
    let bed = steered_bed("limit-filter")?;
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1")?;
    let outcomes = bed.probe(Some(&bed.cgroup), User::Root)?;
    for outcome in &outcomes {
        ensure!(outcome.is_ok() == outcome.target.is_ipv6(), "{outcome:?}");
    }
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "2")?;
    check_outcomes(&bed.probe(Some(&bed.cgroup), User::Root)?, User::Root, 1)
}

/// The kernel answers a packet that no socket claims, and no socket's binding selects the link.
fn the_kernels_own_answers_follow_the_routes() -> Outcome {
    let bed = steered_bed("limit-answers")?;
    let mut default = Capture::start(&bed.net.client, "a0")?;
    let closed = SocketAddr::from((client_v4(1), 9));
    bed.net.server.run(|| {
        let socket = UdpSocket::bind((SERVER_V4, 0))?;
        socket.send_to(b"nobody is there", closed).map(drop)
    })??;
    wait_until("the port to be reported closed, by the default route", PATIENCE, || {
        default.take().is_ok_and(|packets| {
            leaks(&packets).iter().any(|packet| packet.kind == Kind::Icmp4 && packet.is_kernel_answer())
        })
    })?;
    Ok(())
}
