//! A client that stays where it was started, and sends in several ways each time it is asked, as root and as a user without
//! privileges: from new sockets, and from sockets that it kept.
//!
//! **Invariant:** every datagram and every connection goes to a port of its own, or has a length of its own where the port is that of
//! name servers, so a capture tells which attempt a packet belongs to; and no socket is bound to an interface, an address or a mark.

use crate::{
    probe::{Family, errno_name},
    sys,
    uplinks::{SERVER_V4, SERVER_V6, client_v4, client_v6, gateway_v4, gateway_v6},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

/// The port that policies may send to another server.
pub const DNS_PORT: u16 = 53;
/// Uid and gid of the user without privileges.
const NOBODY: libc::c_int = 65534;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lengths of datagrams that fit into any packet.
const LENGTHS: u16 = 1_000;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Addresses that nobody has, beside the server's: in 198.51.100.0/24, and in fd00:ffff::/64.
pub const BESIDE_SERVER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 7), Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 7));
/// Addresses in a network that a link can get besides its first: 10.9.0.0/24, and fd09::/64.
pub const FURTHER: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 9, 0, 1), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));

/// A way to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Way {
    /// A new TCP socket connects.
    Tcp,
    /// A new UDP socket that is not connected sends.
    Udp,
    /// A new MPTCP socket connects.
    Mptcp,
    /// A new UDP socket connects, takes that back, which also takes its binding, and sends.
    Disconnected,
    /// A new UDP socket sends to the port of name servers.
    Dns,
    /// The same, to the gateway on the first link.
    DnsNear,
    /// The same, to the loopback address.
    DnsHost,
    /// The UDP socket that was kept sends.
    Kept,
    /// The connection that was accepted sends.
    Accepted,
    /// A new UDP socket sends to an address beside the server's.
    Beside,
    /// A new UDP socket sends to the loopback address.
    Host,
    /// A new TCP socket connects to the loopback address.
    HostTcp,
    /// A new UDP socket sends to this host's own address on the first link.
    Own,
    /// A new UDP socket sends to the gateway on the first link, which is in the link's network.
    NearFirst,
    /// The same on the second link.
    NearSecond,
    /// A new UDP socket sends into the network that a link can get besides.
    Further,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Tcp,
        Self::Udp,
        Self::Mptcp,
        Self::Disconnected,
        Self::Dns,
        Self::DnsNear,
        Self::DnsHost,
        Self::Kept,
        Self::Accepted,
        Self::Beside,
        Self::Host,
        Self::HostTcp,
        Self::Own,
        Self::NearFirst,
        Self::NearSecond,
        Self::Further,
    ];

    fn destination(self, family: Family) -> IpAddr {
        let (v4, v6) = match self {
            Self::Host | Self::HostTcp | Self::DnsHost => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            Self::Own => (client_v4(0), client_v6(0)),
            Self::NearFirst | Self::DnsNear => (gateway_v4(0), gateway_v6(0)),
            Self::NearSecond => (gateway_v4(1), gateway_v6(1)),
            Self::Further => FURTHER,
            Self::Beside => BESIDE_SERVER,
            _ => (SERVER_V4, SERVER_V6),
        };
        if family == Family::V4 { v4.into() } else { v6.into() }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Who {
    /// Root.
    Root,
    /// A user without privileges.
    Nobody,
}

/// What the client is asked to do, one line of JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Send in every way; the first port to use.
    Send(u16),
    /// As `Send`, from kept sockets and accepted connections only.
    SendKept(u16),
    /// Make the sockets that are kept, where there is none.
    Keep,
    /// Listen for one connection of each family; the answer has the ports as sources.
    Listen,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The user who sends.
    pub user: Who,
    /// How.
    pub way: Way,
    /// With which family.
    pub family: Family,
    /// To which port.
    pub port: u16,
    /// From which port; two sockets that are bound to different links can have the same one.
    pub source: u16,
    /// How many bytes a datagram has.
    pub length: u16,
    /// The error, by its name; the attempt may have sent something all the same.
    pub error: Option<String>,
}

/// How many ports one `Send` takes.
pub const PORTS: u16 = 2 * 2 * 16;

/// Sockets that outlive a request.
#[derive(Default)]
struct Sockets {
    kept: BTreeMap<Family, Socket>,
    listening: BTreeMap<Family, Socket>,
    accepted: BTreeMap<Family, Socket>,
}

/// Does what each line of standard input asks, and prints a line with a list of attempts for each.
pub(crate) fn serve(out: &mut impl Write) -> io::Result<()> {
    let (ask, asked) = channel();
    let (answer, answers) = channel();
    thread::spawn(move || as_nobody(&asked, &answer));
    let mut sockets = Sockets::default();
    for line in io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        ask.send(request).map_err(io::Error::other)?;
        let mut sent = carry_out(request, Who::Root, &mut sockets);
        sent.extend(answers.recv().map_err(io::Error::other)?);
        writeln!(out, "{}", serde_json::to_string(&sent)?)?;
        out.flush()?;
    }
    Ok(())
}

/// The same on a thread that has given up its privileges, which a thread may do alone.
fn as_nobody(asked: &Receiver<Request>, answer: &Sender<Vec<Sent>>) {
    // SAFETY: no pointers; by the bare system calls, which change the calling thread only.
    let code = unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) };
    // SAFETY: likewise.
    let code = code + unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    let mut sockets = Sockets::default();
    while let (0, Ok(request)) = (code, asked.recv()) {
        if answer.send(carry_out(request, Who::Nobody, &mut sockets)).is_err() {
            return;
        }
    }
}

fn carry_out(request: Request, user: Who, sockets: &mut Sockets) -> Vec<Sent> {
    let (first, only) = match request {
        Request::Send(first) => (first, &Way::ALL[..]),
        Request::SendKept(first) => (first, &[Way::Kept, Way::Accepted][..]),
        Request::Keep => {
            for family in FAMILIES {
                if let Ok(socket) = socket(family, Type::DGRAM, None) {
                    sockets.kept.entry(family).or_insert(socket);
                }
            }
            return Vec::new();
        }
        Request::Listen => {
            return FAMILIES.into_iter().filter_map(|family| sockets.listen(family, user).ok()).collect();
        }
    };
    sockets.accept();
    let mut port = first + if user == Who::Root { 0 } else { PORTS / 2 };
    let mut sent = Vec::new();
    for family in FAMILIES {
        for way in Way::ALL {
            port += 1;
            let own = match way {
                Way::Kept => sockets.kept.get(&family),
                Way::Accepted => sockets.accepted.get(&family),
                _ => None,
            };
            if !only.contains(&way) || own.is_none() && matches!(way, Way::Kept | Way::Accepted) {
                continue;
            }
            let (to, length) = match (way, own) {
                (Way::Dns | Way::DnsNear | Way::DnsHost, _) => (DNS_PORT, 1 + port % LENGTHS),
                (Way::Accepted, Some(own)) => (port_of(own.peer_addr()), 1),
                _ => (port - 1, 1),
            };
            let (source, error) = match send(way, family, to, &vec![0; length.into()], own) {
                Ok(source) => (source, None),
                Err((source, error)) => (source, Some(errno_name(&error))),
            };
            sent.push(Sent { user, way, family, port: to, source, length, error });
        }
    }
    sent
}

fn socket(family: Family, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, protocol)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends. Gives the port that it was sent from, 0 where there was no socket, also with an error.
fn send(way: Way, family: Family, port: u16, payload: &[u8], own: Option<&Socket>) -> Result<u16, (u16, io::Error)> {
    let to = SockAddr::from(SocketAddr::new(way.destination(family), port));
    let made = match (way, own) {
        (Way::Kept, Some(own)) => return finish(own, own.send_to(payload, &to).map(drop)),
        (Way::Accepted, Some(own)) => return finish(own, own.send(payload).map(drop)),
        (Way::Tcp | Way::HostTcp, _) => socket(family, Type::STREAM, None),
        (Way::Mptcp, _) => socket(family, Type::STREAM, Some(Protocol::MPTCP)),
        _ => socket(family, Type::DGRAM, None),
    };
    let socket = made.map_err(|error| (0, error))?;
    let done = match way {
        Way::Tcp | Way::HostTcp | Way::Mptcp => match socket.connect(&to) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            // The server's refusal may be there before the call returns.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            done => done,
        },
        Way::Disconnected => {
            let connected = socket.connect(&to);
            drop(socket.connect(&sys::unspecified()));
            // The first may be refused, and the socket bound all the same.
            let first = socket.send_to(payload, &to);
            let second = socket.send_to(payload, &to);
            connected.and(first).and(second).map(drop)
        }
        _ => socket.send_to(payload, &to).map(drop),
    };
    finish(&socket, done)
}

fn finish(socket: &Socket, done: io::Result<()>) -> Result<u16, (u16, io::Error)> {
    let source = port_of(socket.local_addr());
    done.map(|()| source).map_err(|error| (source, error))
}

fn port_of(address: io::Result<SockAddr>) -> u16 {
    address.ok().and_then(|address| address.as_socket()).map_or(0, |address| address.port())
}

impl Sockets {
    fn listen(&mut self, family: Family, user: Who) -> io::Result<Sent> {
        let any: IpAddr =
            if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let listener = socket(family, Type::STREAM, None)?;
        listener.bind(&SocketAddr::new(any, 0).into())?;
        listener.listen(1)?;
        let source = port_of(listener.local_addr());
        self.listening.insert(family, listener);
        Ok(Sent { user, way: Way::Accepted, family, port: 0, source, length: 0, error: None })
    }

    /// Accepts what has connected; nobody else connects then.
    fn accept(&mut self) {
        let accepted = &mut self.accepted;
        self.listening.retain(|family, listener| match listener.accept() {
            Ok((connection, _)) => {
                drop(connection.set_nonblocking(true));
                accepted.insert(*family, connection);
                false
            }
            Err(_) => true,
        });
    }
}

/// Calls a client that listens, from this address; waits until it is connected.
pub fn call(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}
