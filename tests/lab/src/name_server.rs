//! A name server. All names have the same address, and long answers need TCP. A datagram that is no message of DNS gets the address of
//! its sender, as from [`Server`](crate::Server).
//!
//! **Invariant:** a query is recorded before it is answered.

use crate::{
    error::{Doing, Result},
    netns::Netns,
    server::{Transport, bound},
    service::Service,
};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE, rdata::RData};
use socket2::Type;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// The IPv4 address of every name.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// The IPv6 address of every name.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80);
/// The prefix of names whose answer is too long for a datagram.
pub const LONG: &str = "long";

const PORT: u16 = 53;

/// One query that reached the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The transport.
    pub transport: Transport,
    /// The client.
    pub peer: SocketAddr,
    /// The server's address that received it.
    pub server: IpAddr,
    /// The name in the query; empty if it was no message of DNS.
    pub name: String,
}

/// A running name server. It stops on drop.
#[derive(Debug)]
pub struct NameServer {
    log: Log,
    _service: Service,
}

impl NameServer {
    /// Listens on port 53 of these addresses of the namespace, over UDP and TCP.
    pub fn start(netns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let bind = |ip: IpAddr| {
            let (datagrams, listener) = (bound(ip, PORT, Type::DGRAM, None)?, bound(ip, PORT, Type::STREAM, None)?);
            listener.listen(64)?;
            io::Result::Ok((ip, datagrams, listener))
        };
        let sockets = netns
            .run(|| addresses.iter().map(|&ip| bind(ip)).collect::<io::Result<Vec<_>>>())?
            .doing(|| format!("listen on port {PORT} in {netns}"))?;
        let log = Log::default();
        let service = Service::start(netns, {
            let log = log.clone();
            move || {
                for (ip, datagrams, listener) in sockets {
                    tokio::spawn(by_datagram(UdpSocket::from_std(datagrams.into())?, ip, log.clone()));
                    tokio::spawn(by_stream(TcpListener::from_std(listener.into())?, ip, log.clone()));
                }
                Ok(())
            }
        })?;
        Ok(Self { log, _service: service })
    }

    /// The queries since the start or the last call, in order.
    pub fn take(&self) -> Vec<Question> {
        std::mem::take(&mut self.log.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Question>>>);

impl Log {
    /// Records a query and returns the answer, or nothing if the request was not a query.
    fn answer(&self, transport: Transport, peer: SocketAddr, server: IpAddr, request: &[u8]) -> Option<Vec<u8>> {
        let record = |name: String| {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Question { transport, peer, server, name });
        };
        let Some((query, question)) =
            Packet::parse(request).ok().and_then(|query| Some((query.clone(), query.questions.first()?.clone())))
        else {
            record(String::new());
            return (transport == Transport::Udp).then(|| format!("{}\n", peer.ip().to_canonical()).into_bytes());
        };
        let name = question.qname.to_string();
        let is_long = transport == Transport::Udp && name.starts_with(LONG);
        record(name);
        let mut reply = Packet::new_reply(query.id());
        reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
        *reply.rcode_mut() = RCODE::NoError;
        let data = match question.qtype {
            _ if is_long => {
                reply.set_flags(PacketFlag::TRUNCATION);
                None
            }
            QTYPE::TYPE(TYPE::A) => Some(RData::A(ADDRESS_V4.into())),
            QTYPE::TYPE(TYPE::AAAA) => Some(RData::AAAA(ADDRESS_V6.into())),
            _ => None,
        };
        if let Some(data) = data {
            reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 60, data));
        }
        reply.questions.push(question);
        reply.build_bytes_vec().ok()
    }
}

async fn by_datagram(socket: UdpSocket, ip: IpAddr, log: Log) {
    let mut request = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut request).await {
        if let Some(answer) = log.answer(Transport::Udp, peer, ip, &request[..length]) {
            // A reply that cannot be sent is lost; the client handles that.
            socket.send_to(&answer, peer).await.ok();
        }
    }
}

async fn by_stream(listener: TcpListener, ip: IpAddr, log: Log) {
    while let Ok((stream, peer)) = listener.accept().await {
        let log = log.clone();
        tokio::spawn(async move { converse(stream, peer, ip, &log).await.ok() });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, ip: IpAddr, log: &Log) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut request = vec![0; length.into()];
        stream.read_exact(&mut request).await?;
        let Some(answer) = log.answer(Transport::Tcp, peer, ip, &request) else { return Ok(()) };
        stream.write_u16(u16::try_from(answer.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&answer).await?;
    }
}
