//! Each kind of socket, by method, family and owner of the process.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use socket2::{Protocol, Socket, Type};
use steer::apply::failover::Families;
use steer_lab::{Kind, wait_until};

use crate::bed::{
    Bed, METHODS, Method, NEW, OLD, PATIENCE, THIRD, USERS, answer, any, ask, bed, errno, left_from, own, sent, server,
};

/// All sockets of one family on the old line.
struct Kinds {
    v4: bool,
    tcp: Socket,
    mptcp: Option<Socket>,
    udp: Socket,
    lite: Option<Socket>,
    unconnected: Socket,
    /// TCP with a port and no more, where the kernel lists it.
    idle: Option<Socket>,
    listener: Socket,
    mptcp_listener: Option<Socket>,
    ping: Socket,
    raw: Socket,
    connected_raw: Socket,
}

impl Kinds {
    fn new(bed: &Bed, v4: bool) -> Self {
        let icmp = Some(if v4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 });
        let make = |kind, protocol| bed.socket(v4, kind, protocol, OLD);
        let target = server(v4, bed.server.port()).into();
        let has_mptcp = Socket::new(socket2::Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_ok();
        let mptcp = has_mptcp.then(|| make(Type::STREAM, Some(Protocol::MPTCP)));
        let has_lite = Socket::new(socket2::Domain::IPV4, Type::DGRAM, Some(UDP_LITE)).is_ok();
        let lite = has_lite.then(|| make(Type::DGRAM, Some(UDP_LITE)));
        for connected in mptcp.iter().chain(&lite) {
            connected.connect(&target).expect("connected");
        }
        let listen = |protocol| {
            let listener = make(Type::STREAM, protocol);
            listener.bind(&any(v4).into()).expect("a port");
            listener.listen(16).expect("listens");
            listener
        };
        let unconnected = make(Type::DGRAM, None);
        unconnected.bind(&any(v4).into()).expect("a port");
        let idle = lists_idle().then(|| make(Type::STREAM, None));
        if let Some(idle) = &idle {
            idle.bind(&any(v4).into()).expect("a port");
        }
        let connected_raw = make(Type::RAW, icmp);
        connected_raw.connect(&server(v4, 0).into()).expect("connected");
        Self {
            v4,
            tcp: bed.tcp(v4, OLD),
            mptcp,
            udp: bed.udp(v4, OLD),
            lite,
            unconnected,
            idle,
            listener: listen(None),
            mptcp_listener: has_mptcp.then(|| listen(Some(Protocol::MPTCP))),
            ping: make(Type::DGRAM, icmp),
            raw: make(Type::RAW, icmp),
            connected_raw,
        }
    }

    fn all(&self) -> Vec<&Socket> {
        let always =
            [&self.tcp, &self.udp, &self.unconnected, &self.listener, &self.ping, &self.raw, &self.connected_raw];
        always.into_iter().chain(&self.mptcp).chain(&self.lite).chain(&self.mptcp_listener).chain(&self.idle).collect()
    }

    fn echo(&self, socket: &Socket) {
        let mut request = [0_u8; 64];
        request[0] = if self.v4 { 8 } else { 128 };
        if self.v4 {
            request[2..4].copy_from_slice(&(!0x0800_u16).to_be_bytes());
        }
        socket.send_to(&request, &server(self.v4, 0).into()).expect("sent");
    }
}

/// Since Linux 6.8.
fn lists_idle() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version: (u32, u32)| version >= (6, 8))
}

const UDP_LITE: Protocol = Protocol::UDPLITE;

#[test]
fn each_leaves_by_the_new_line() {
    for method in METHODS {
        for uid in USERS {
            each_kind(method, uid);
        }
    }
}

fn each_kind(method: Method, uid: u32) {
    let Some(mut bed) = bed(method) else { return };
    let families = [true, false].map(|v4| Kinds::new(&bed, v4));
    let sockets: Vec<&Socket> = families.iter().flat_map(Kinds::all).collect();
    for kinds in &families {
        kinds.echo(&kinds.ping);
        kinds.echo(&kinds.raw);
    }
    bed.hold(uid, &sockets);
    // Of other members, and of another cgroup.
    let strangers: Vec<(Socket, u8)> = [true, false]
        .into_iter()
        .flat_map(|v4| {
            let other = |kind| {
                let socket = bed.socket_of(&bed.other, v4, kind, None, OLD);
                socket.connect(&server(v4, bed.server.port()).into()).expect("connected");
                (socket, OLD)
            };
            let of_members = [THIRD, NEW].into_iter().flat_map(|i| [(bed.tcp(v4, i), i), (bed.udp(v4, i), i)]);
            of_members.chain([other(Type::STREAM), other(Type::DGRAM)]).collect::<Vec<_>>()
        })
        .collect();
    let mut third = bed.capture(THIRD);

    let waiting: Vec<Socket> =
        families.iter().flat_map(|kinds| &kinds.mptcp).map(|mptcp| mptcp.try_clone().expect("a copy")).collect();
    let connections = waiting.len();
    let moved = thread::scope(|scope| {
        let readers: Vec<_> = waiting.iter().map(|mut mptcp| scope.spawn(move || mptcp.read(&mut [0; 8]))).collect();
        let moved = bed.leave(&[bed.change(Families::Both)]);
        for reader in readers {
            // The program that waits notices at once.
            let read = reader.join().expect("a reader");
            assert!(
                read.as_ref().map_or_else(|error| error.raw_os_error() != Some(libc::EAGAIN), |&len| len == 0),
                "{read:?}"
            );
        }
        moved
    });
    let lites = families.iter().flat_map(|kinds| &kinds.lite).count();
    let idle = families.iter().flat_map(|kinds| &kinds.idle).count();
    let what = format!("{method:?}, {uid}: {moved:?}");
    assert!(moved.remaining.is_empty() && moved.errors.is_empty(), "{what}");
    assert_eq!((moved.tcp_ended, moved.mptcp_ended, moved.raw_ended), (2, connections, 2), "{what}");
    assert_eq!((moved.udp_reconnected, moved.rebound), (2 + lites, 8 + connections + idle), "{what}");

    assert_eq!(sent(&mut third), []);
    let (mut old, mut new) = (bed.capture(OLD), bed.capture(NEW));
    for kinds in &families {
        let (v4, source) = (kinds.v4, own(kinds.v4, NEW));
        assert_eq!(errno(ask(&kinds.tcp)), libc::ECONNABORTED, "{what}");
        assert!(kinds.mptcp.iter().all(|mptcp| ask(mptcp).is_err()));
        assert_eq!(ask(&kinds.udp).expect("answered"), source, "{what}");
        if let Some(lite) = &kinds.lite {
            lite.send(b"request").expect("sent");
        }
        kinds.unconnected.send_to(b"request\n", &server(v4, bed.server.port()).into()).expect("sent");
        assert_eq!(answer(&kinds.unconnected).expect("answered"), source, "{what}");
        if let Some(idle) = &kinds.idle {
            idle.connect(&server(v4, bed.server.port()).into()).expect("connected");
            assert_eq!(ask(idle).expect("answered"), source, "{what}");
        }
        kinds.echo(&kinds.ping);
        kinds.echo(&kinds.raw);
        assert_eq!(errno(kinds.connected_raw.send(&[8; 8])), libc::EDESTADDRREQ, "{what}");
        for listener in [&kinds.listener].into_iter().chain(&kinds.mptcp_listener) {
            let to = SocketAddr::new(source, port(listener));
            bed.net.server.run(|| TcpStream::connect(to)).expect("the namespace").expect("accepted");
        }
        // Each of the listeners, ping and raw sockets was seen on the new line.
        let packets = sent(&mut new);
        let icmp = if v4 { Kind::Icmp4 } else { Kind::Icmp6 };
        assert!(left_from(&packets, icmp, source) && left_from(&packets, Kind::Tcp, source), "{what} {packets:#?}");
        assert_eq!(packets.iter().filter(|packet| packet.kind == icmp).count(), 2, "{what}");
        let lite = Kind::Other { ethertype: if v4 { 0x0800 } else { 0x86dd }, protocol: 136 };
        assert!(kinds.lite.is_none() || left_from(&packets, lite, source), "{what}");
    }
    assert_eq!(sent(&mut old), [], "{what}");
    assert_eq!(sent(&mut third), [], "{what}");
    for (stranger, i) in &strangers {
        let is_v4 = stranger.local_addr().expect("an address").is_ipv4();
        assert_eq!(ask(stranger).expect("undisturbed"), own(is_v4, *i), "{what}");
    }
    // A second time there is nothing to do.
    let again = bed.leave(&[bed.change(Families::Both)]);
    assert_eq!(
        (again.tcp_ended, again.udp_reconnected, again.rebound, again.remaining.len()),
        (0, 0, 0, 0),
        "{again:?}"
    );
}

fn port(socket: &Socket) -> u16 {
    socket.local_addr().ok().and_then(|address| address.as_socket()).expect("a port").port()
}

/// IPv4 is dead, IPv6 is alive: no IPv6 socket is touched. An IPv6 socket that uses IPv4 is an IPv4 socket.
#[test]
fn one_family_leaves() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let [four, six] = [true, false].map(|v4| (bed.tcp(v4, OLD), bed.udp(v4, OLD)));
        let IpAddr::V4(v4) = server(true, 0).ip() else { unreachable!("IPv4") };
        let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), bed.server.port());
        let [stream, datagram] = [Type::STREAM, Type::DGRAM].map(|kind| bed.socket(false, kind, None, OLD));
        for socket in [&stream, &datagram] {
            socket.connect(&mapped.into()).expect("connected");
            assert_eq!(ask(socket).expect("answered"), own(true, OLD));
        }
        let listener = bed.socket(false, Type::STREAM, None, OLD);
        listener.bind(&any(false).into()).expect("a port");
        listener.listen(1).expect("listens");
        bed.hold(0, &[&four.1, &six.1, &datagram, &listener]);
        let moved = bed.leave(&[bed.change(Families::V4)]);
        assert_eq!((moved.tcp_ended, moved.udp_reconnected, moved.rebound), (2, 2, 0), "{moved:?}");
        assert_eq!(ask(&six.0).expect("undisturbed"), own(false, OLD));
        assert_eq!(ask(&six.1).expect("undisturbed"), own(false, OLD));
        assert_eq!(ask(&datagram).expect("answered"), own(true, NEW));
        assert_eq!(errno(ask(&stream)), libc::ECONNABORTED);
        assert_eq!(errno(ask(&four.0)), libc::ECONNABORTED);
        assert_eq!(ask(&four.1).expect("answered"), own(true, NEW));
        let to = SocketAddr::new(own(false, OLD), port(&listener));
        bed.net.server.run(|| TcpStream::connect(to)).expect("the namespace").expect("accepted");
        wait_until("the connection", PATIENCE, || listener.accept().is_ok()).expect("accepted");
    }
}
