//! Queries to a name server, as the resolvers of C libraries and language runtimes send them.
//!
//! **Invariant:** an answer is accepted only from the queried address, as far as the kernel shows it to a program.

use crate::probe::{Outcome, Probe, Proto, Stage, errno_name, local};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, TYPE, rdata::RData};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const PORT: u16 = 53;

/// Queries the address of a name.
///
/// The probe's transport selects the method. `Udp` connects its socket, as glibc, c-ares and Go do. `UdpUnconnected`
/// does not, like musl. Both repeat the query over TCP if the answer was truncated. `Tcp` uses TCP at once.
#[derive(Clone, Debug)]
pub struct Resolve {
    /// The server and the transport; the port is that of name servers.
    pub probe: Probe,
    /// The name to query.
    pub name: String,
    /// Use an IPv6 socket for an IPv4 server.
    pub mapped: bool,
}

impl Resolve {
    /// Sends the query on the calling thread, and so in its network namespace. The answer is in [`Outcome::saw`].
    pub fn run(&self) -> Outcome {
        let mut outcome = Outcome {
            proto: self.probe.proto,
            family: self.probe.family(),
            target: self.probe.target,
            local: None,
            saw: None,
            bound_ifindex: -1,
            stage: Stage::Socket,
            error: None,
        };
        let asked = self.ask(self.probe.proto, &mut outcome).and_then(|answer| match answer {
            Some(address) => Ok(address),
            None => self.ask(Proto::Tcp, &mut outcome)?.ok_or_else(|| io::Error::other("truncated answer over TCP")),
        });
        match asked {
            Ok(address) => outcome.saw = Some(address.to_string()),
            Err(error) => outcome.error = Some(errno_name(&error)),
        }
        outcome
    }

    fn server(&self) -> SocketAddr {
        match self.probe.target {
            IpAddr::V4(target) if self.mapped => (target.to_ipv6_mapped(), PORT).into(),
            target => (target, PORT).into(),
        }
    }

    /// The address; `None` if the answer was truncated.
    fn ask(&self, proto: Proto, outcome: &mut Outcome) -> io::Result<Option<IpAddr>> {
        let (server, mut buffer) = (self.server(), vec![0; 4096]);
        outcome.stage = Stage::Socket;
        let kind = if proto == Proto::Tcp { Type::STREAM } else { Type::DGRAM };
        let mut socket = Socket::new(Domain::for_address(server), kind, None)?;
        let timeout = Duration::from_millis(self.probe.timeout_ms.max(1));
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let query = self.query()?;
        if proto == Proto::UdpUnconnected {
            outcome.stage = Stage::Send;
            socket.send_to(&query, &server.into())?;
        } else {
            outcome.stage = Stage::Connect;
            socket.connect(&server.into())?;
            same(&socket.peer_addr()?, server)?;
            outcome.stage = Stage::Send;
            if proto == Proto::Tcp {
                let length = u16::try_from(query.len()).map_err(io::Error::other)?;
                socket.write_all(&[&length.to_be_bytes(), &query[..]].concat())?;
            } else {
                socket.write_all(&query)?;
            }
        }
        outcome.stage = Stage::Receive;
        let length = if proto == Proto::Tcp {
            let mut length = [0; 2];
            socket.read_exact(&mut length)?;
            let length = usize::from(u16::from_be_bytes(length));
            socket.read_exact(buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?)?;
            length
        } else {
            let (length, from) = std::net::UdpSocket::from(socket.try_clone()?).recv_from(&mut buffer)?;
            same(&from.into(), server)?;
            length
        };
        outcome.local = local(&socket);
        let reply = Packet::parse(&buffer[..length]).map_err(io::Error::other)?;
        if reply.has_flags(PacketFlag::TRUNCATION) {
            return Ok(None);
        }
        let address = reply.answers.iter().find_map(|record| match &record.rdata {
            RData::A(address) => Some(IpAddr::V4(address.address.into())),
            RData::AAAA(address) => Some(IpAddr::V6(address.address.into())),
            _ => None,
        });
        address.map(Some).ok_or_else(|| io::Error::other("no address in the answer"))
    }

    fn query(&self) -> io::Result<Vec<u8>> {
        let mut query = Packet::new_query(0x5354);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(&self.name).map_err(io::Error::other)?;
        query.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), CLASS::IN.into(), false));
        query.build_bytes_vec().map_err(io::Error::other)
    }
}

/// Checks, as a resolver does, that the answer is from the queried server.
fn same(peer: &SockAddr, server: SocketAddr) -> io::Result<()> {
    match peer.as_socket() {
        Some(peer) if (peer.ip(), peer.port()) == (server.ip(), server.port()) => Ok(()),
        other => Err(io::Error::other(format!("queried {server}, but the answer is from {other:?}"))),
    }
}
