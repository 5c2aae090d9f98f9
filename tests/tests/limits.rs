//! The limits that the README names, each shown: when one of these fails, steer has become better, and the README is wrong.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use steer_lab::{Capture, Kind, SERVER_V4, SERVER_V6, client_v4, leaks, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, User, check_outcomes, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sockets_keep_what_they_had", sockets_keep_what_they_had),
    ("this_host_is_out_of_reach", this_host_is_out_of_reach),
    ("the_uplink_needs_a_route", the_uplink_needs_a_route),
    ("a_strict_reverse_path_filter_drops_replies", a_strict_reverse_path_filter_drops_replies),
    ("the_kernels_own_answers_follow_the_routes", the_kernels_own_answers_follow_the_routes),
    ("mptcp_leaves_by_the_default_route", mptcp_leaves_by_the_default_route),
];

/// The test process stays outside the steered cgroup; a client in it is started by `bed`.
fn steered_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    Ok(bed)
}

fn sockets_keep_what_they_had() -> Outcome {
    let bed = Bed::new("limit-kept")?;
    let load = bed.load(&bed.cgroup)?;
    let socket = bed.net.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    drop(load);
    let mut default = Capture::start(&bed.net.client, "a0")?;
    socket.send_to(b"made before", (SERVER_V4, bed.server.port()))?;
    ensure!(leaks(&default.take()?).iter().any(|packet| packet.kind == Kind::Udp));
    Ok(())
}

fn this_host_is_out_of_reach() -> Outcome {
    let bed = steered_bed("limit-local")?;
    let listener = bed.net.client.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let port = listener.local_addr()?.port().to_string();
    let probe = steer_tests::binary("STEER_PROBE", "steer-probe");
    for address in [Ipv4Addr::LOCALHOST, client_v4(0)] {
        let target = address.to_string();
        let arguments = ["--json", "--proto", "tcp", "--target", &target, "--port", &port, "--timeout-ms", "300"];
        let mut command = std::process::Command::new(&probe);
        bed.cgroup.enter(&mut command);
        let steered = output(bed.net.client.enter(&mut command).args(arguments))?;
        ensure!(steered.stdout.contains("\"stage\":\"connect\""), "{target} was reached: {steered:?}");
        // Reachable in itself.
        bed.net.client.run(|| {
            TcpStream::connect_timeout(&SocketAddr::new(address.into(), listener.local_addr()?.port()), PATIENCE)
        })??;
    }
    Ok(())
}

fn the_uplink_needs_a_route() -> Outcome {
    let bed = Bed::new("limit-route")?;
    // A third link, to the same server, without any route.
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

/// A packet that no socket claims is answered by the kernel, and no socket's binding tells it by which link.
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

fn mptcp_leaves_by_the_default_route() -> Outcome {
    let bed = steered_bed("limit-mptcp")?;
    let mut default = Capture::start(&bed.net.client, "a0")?;
    let port = bed.server.port().to_string();
    let target = SERVER_V4.to_string();
    let mut command = std::process::Command::new(steer_tests::binary("STEER_PROBE", "steer-probe"));
    command.args(["--json", "--proto", "mptcp", "--target", &target, "--port", &port, "--timeout-ms", "300"]);
    bed.cgroup.enter(&mut command);
    output(bed.net.client.enter(&mut command))?;
    wait_until("the connection to be seen on the default route", Duration::from_secs(2), || {
        default.take().is_ok_and(|packets| leaks(&packets).iter().any(|packet| packet.kind == Kind::Tcp))
    })?;
    Ok(())
}
