//! Tests of the limits in docs/guarantees.md. When a test fails, steer has become better and the document is wrong.

use std::{
    io::{BufRead as _, BufReader, Lines},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Family, Kind, SERVER_V4, SERVER_V6, Step, Vector, client_v4, forge, leaks, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, Scene, Try, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sockets_of_others_keep_what_they_had", sockets_of_others_keep_what_they_had),
    ("the_uplink_needs_a_route", the_uplink_needs_a_route),
    ("a_strict_reverse_path_filter_drops_replies", a_strict_reverse_path_filter_drops_replies),
    ("an_older_membership_is_reported_until_it_ends", an_older_membership_is_reported_until_it_ends),
    ("fragments_come_in_by_another_link", fragments_come_in_by_another_link),
    ("quoted_data_comes_in_by_another_link", quoted_data_comes_in_by_another_link),
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

/// The change is refused, but the kernel reports the end of the membership, with what was chosen before.
fn an_older_membership_is_reported_until_it_ends() -> Outcome {
    let bed = Bed::new("limit-membership")?;
    let (vector, scene) = (Vector::FilterByIndex, Scene::SteeredAfter(Step::Option));
    let this = Try { vector, user: User::Nobody, family: Family::V4, scene, timeout: Duration::from_millis(400) };
    let program = bed.escape_program(this, &bed.cgroup)?;
    let mut other = None;
    let seen = bed.watch_attempt(this, program, &["a1"], || {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--existing", "destroy"])?;
        other = Some(Capture::start(&bed.net.client, "a0")?);
        Ok(())
    })?;
    ensure!(seen.attempt.outcome == "EPERM" && seen.leaked.is_empty(), "{seen:?}");
    let packets = other.context("not steered")?.take()?;
    ensure!(leaks(&packets).iter().any(|packet| packet.kind == Kind::Igmp && packet.sources == 0), "{packets:?}");
    Ok(())
}

/// Starts a UDP listener in the bed's cgroup. Returns it, its lines, and its address on the uplink.
fn listener(bed: &Bed) -> anyhow::Result<(Child, Lines<BufReader<ChildStdout>>, SocketAddrV4)> {
    let mut child = bed.client(Some(&bed.cgroup), User::Nobody)?.arg("--listen").stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
    let port = lines.next().context("no port")??.parse()?;
    Ok((child, lines, SocketAddrV4::new(client_v4(1), port)))
}

fn ingress_by_the_uplink(bed: &Bed) -> Outcome {
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--ingress", "uplink"]).map(drop)
}

/// A datagram counts as received by the link of its first fragment, and passes the guard by the link of the one that came
/// last.
fn fragments_come_in_by_another_link() -> Outcome {
    let bed = Bed::new("limit-fragments")?;
    ingress_by_the_uplink(&bed)?;
    let (mut child, mut lines, to) = listener(&bed)?;
    let mut other = Capture::start(&bed.net.client, "a0")?;
    let [first, last] = forge::fragments(SocketAddrV4::new(SERVER_V4, 7), to, b"the first eight, and more");
    forge::send(&bed.net.server, &bed.net.server_link(0), &last, *to.ip())?;
    wait_until("the last fragment, by the other link", PATIENCE, || {
        other.take().is_ok_and(|packets| {
            packets.iter().any(|packet| packet.dst == Some((*to.ip()).into()) && packet.kind == Kind::Udp)
        })
    })?;
    forge::send(&bed.net.server, &bed.net.server_link(1), &first, *to.ip())?;
    ensure!(lines.next().context("nothing heard")?? == "heard 25");
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// No program sees what is put into a socket's error queue. A socket that is bound to the uplink gets no errors of other links.
fn quoted_data_comes_in_by_another_link() -> Outcome {
    for older in [true, false] {
        let bed = Bed::new("limit-quoted")?;
        let listening = if older { Some(listener(&bed)?) } else { None };
        ingress_by_the_uplink(&bed)?;
        let (mut child, mut lines, from) = listening.map_or_else(|| listener(&bed), Ok)?;
        let mut other = Capture::start(&bed.net.client, "a0")?;
        let error = forge::port_unreachable(from, SocketAddrV4::new(SERVER_V4, 7), b"by another link");
        forge::send_icmp(&bed.net.server, &bed.net.server_link(0), &error, *from.ip())?;
        wait_until("the error, by the other link", PATIENCE, || {
            other.take().is_ok_and(|packets| packets.iter().any(|packet| packet.kind == Kind::Icmp4))
        })?;
        bed.net.server.run(|| UdpSocket::bind((SERVER_V4, 0))?.send_to(b"by the uplink", from))??;
        let heard = lines.next().context("nothing heard")??;
        ensure!(heard == if older { "quoted 15" } else { "heard 13" }, "{heard}, older: {older}");
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}
