//! Listeners that have no binding when the kernel answers for them. A SYN cookie is an answer that no program sees.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Direction, Family, Kind, Packet, SERVER_V4, SERVER_V6, Step, Vector, client_v4, client_v6};
use steer_tests::{Bed, Level, Outcome, Scene, Served, Try, USERS, User};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("cookies_of_an_older_socket_leave_by_the_uplink", cookies_of_an_older_socket_leave_by_the_uplink),
    ("an_older_listener_answers_with_cookies_only", an_older_listener_answers_with_cookies_only),
];

/// A bed in which every answer to a SYN is a cookie.
fn cookie_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    // The link-local addresses let IPv6 neighbours find each other from any source address.
    bed.furnish_for_escapes()?;
    bed.net.client.write_sysctl("net/ipv4/tcp_syncookies", "2")?;
    Ok(bed)
}

/// It is bound when it begins to listen. MPTCP makes the socket that listens itself.
fn cookies_of_an_older_socket_leave_by_the_uplink() -> Outcome {
    for user in USERS {
        for family in [Family::V4, Family::V6] {
            for vector in [Vector::MptcpAcceptUnbound, Vector::MptcpAccept] {
                let (scene, timeout) = (Scene::SteeredAfter(Step::Socket), Duration::from_secs(5));
                let bed = cookie_bed("listener-cookies")?;
                let seen = bed.attempt(Try { vector, user, family, scene, timeout }, Level::Strict)?;
                let works = seen.attempt.is_ok() || !seen.attempt.is_applicable();
                ensure!(works && seen.leaked.is_empty(), "{user:?} {family:?}: {seen:?}");
            }
        }
    }
    Ok(())
}

/// A limit: what it answers with leaves by the default route until the connection has a socket. That has no data.
fn an_older_listener_answers_with_cookies_only() -> Outcome {
    for (from, to) in [(SERVER_V4.into(), IpAddr::from(client_v4(1))), (SERVER_V6.into(), client_v6(1).into())] {
        let bed = cookie_bed("listener-older")?;
        let served = Served::start(&mut bed.client(Some(&bed.cgroup), User::Nobody)?)?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        let mut other = Capture::start(&bed.net.client, "a0")?;
        let answer = bed.net.server.run(|| ask(from, SocketAddr::new(to, served.port())))?;
        let answer = answer.with_context(|| format!("{to}: {:?}", other.take()))?;
        ensure!(answer.is_none(), "{to}: answered {answer:?}");
        let packets = other.take()?;
        let sent = |packet: &&Packet| packet.direction == Direction::Out && packet.kind == Kind::Tcp;
        let sent: Vec<_> = packets.iter().filter(sent).collect();
        let empty = |packet: &&Packet| packet.payload_len == 0;
        ensure!(!sent.is_empty() && sent.iter().all(empty), "{to}: {packets:?}");
        ensure!(bed.sockets("a1", "stopped_egress")? > 0);
    }
    Ok(())
}

/// The answer to a request, if one comes.
fn ask(from: IpAddr, to: SocketAddr) -> std::io::Result<Option<String>> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_millis(700)))?;
    stream.write_all(b"who am I\n")?;
    let mut answer = [0; 64];
    match stream.read(&mut answer) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&answer[..length]).into_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}
