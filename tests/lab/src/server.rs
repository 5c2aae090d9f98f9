//! A TCP and UDP server that answers every request with one line, the source address that it sees, and records it.
//!
//! **Invariant:** a request is recorded before it is answered, so the record exists once a client has its answer. A
//! datagram is answered from the address that it was sent to.

use crate::{
    error::{Doing, Result},
    netns::Netns,
    service::Service,
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

/// The transport by which the server was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP, or MPTCP that fell back to it.
    Tcp,
    /// UDP.
    Udp,
}

/// One record of something that reached the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The transport.
    pub transport: Transport,
    /// The source.
    pub peer: SocketAddr,
    /// The data: the datagram, or a part of the stream. It is empty in the record of an accepted connection.
    pub payload: Vec<u8>,
}

/// A running server. It stops on drop.
#[derive(Debug)]
pub struct Server {
    port: u16,
    log: Log,
    _service: Service,
}

impl Server {
    /// Listens on every address of the namespace, for both families, TCP and UDP, on one port that the kernel chooses.
    pub fn start(netns: &Netns) -> Result<Self> {
        Self::start_on(netns, 0)
    }

    /// As [`Self::start`], on this port of the namespace.
    pub fn start_on(netns: &Netns, port: u16) -> Result<Self> {
        let sockets = netns.run(|| Sockets::bind(port, None))?.doing(|| format!("listen in {netns}"))?;
        let (port, log) = (sockets.port, Log::default());
        let service = Service::start(netns, {
            let log = log.clone();
            move || sockets.serve(&log)
        })?;
        Ok(Self { port, log, _service: service })
    }

    /// The port of all four sockets.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What reached the server since the start or the last [`Server::take_seen`], in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().clone()
    }

    /// Like [`Server::seen`], and clears the records.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.log.lock())
    }
}

/// Serves in the calling thread's namespace until the process ends, also MPTCP if it is asked for and the machine can. It
/// first calls `ready` with the port.
pub(crate) fn serve_here(
    mptcp: bool,
    ready: impl FnOnce(u16) -> io::Result<()>,
) -> io::Result<std::convert::Infallible> {
    let protocol = mptcp.then_some(Protocol::MPTCP);
    let sockets =
        Sockets::bind(0, protocol).or_else(|error| if mptcp { Sockets::bind(0, None) } else { Err(error) })?;
    ready(sockets.port)?;
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        sockets.serve(&Log::default())?;
        std::future::pending().await
    })
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, transport: Transport, peer: SocketAddr, payload: &[u8]) {
        self.lock().push(Seen { transport, peer, payload: payload.to_vec() });
    }
}

fn answer(peer: SocketAddr) -> String {
    format!("{}\n", peer.ip())
}

/// A listener and a datagram socket for each family.
struct Sockets {
    port: u16,
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Sockets {
    /// The listeners are of this protocol, or of TCP. Port 0: the kernel chooses.
    fn bind(port: u16, protocol: Option<Protocol>) -> io::Result<Self> {
        // A port that is free for one socket may be in use for another if the namespace has other servers.
        for _ in 0..16 {
            match Self::bind_once(port, protocol) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn bind_once(port: u16, protocol: Option<Protocol>) -> io::Result<Self> {
        let v4: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let v6: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        let first = listen(v4, port, protocol)?;
        let port = first.local_addr()?.port();
        let udp = [datagrams(v4, port)?, datagrams(v6, port)?];
        setsockopt(&udp[0], sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&udp[1], sockopt::Ipv6RecvPacketInfo, &true)?;
        Ok(Self { port, tcp: [first, listen(v6, port, protocol)?], udp })
    }

    /// Starts a task for each socket on the current runtime.
    fn serve(self, log: &Log) -> io::Result<()> {
        for listener in self.tcp {
            tokio::spawn(accept(tokio::net::TcpListener::from_std(listener)?, log.clone()));
        }
        for socket in self.udp {
            tokio::spawn(reply(tokio::net::UdpSocket::from_std(socket)?, log.clone()));
        }
        Ok(())
    }
}

pub(crate) fn bound(ip: IpAddr, port: u16, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, port)), kind.nonblocking(), protocol)?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(ip, port).into())?;
    Ok(socket)
}

fn listen(ip: IpAddr, port: u16, protocol: Option<Protocol>) -> io::Result<TcpListener> {
    let socket = bound(ip, port, Type::STREAM, protocol)?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn datagrams(ip: IpAddr, port: u16) -> io::Result<UdpSocket> {
    bound(ip, port, Type::DGRAM, None).map(Into::into)
}

async fn accept(listener: tokio::net::TcpListener, log: Log) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                log.push(Transport::Tcp, peer, &[]);
                tokio::spawn(converse(stream, peer, log.clone()));
            }
            // The peer has closed, or there are too few file descriptors until a connection ends.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Answers every part of the stream, and also its end if the stream was empty.
async fn converse(mut stream: tokio::net::TcpStream, peer: SocketAddr, log: Log) {
    let mut buffer = [0; 4096];
    let mut answered = false;
    while let Ok(len) = stream.read(&mut buffer).await {
        let ended = len == 0;
        if ended && answered {
            return;
        }
        if !ended {
            log.push(Transport::Tcp, peer, &buffer[..len]);
        }
        if stream.write_all(answer(peer).as_bytes()).await.is_err() || ended {
            return;
        }
        answered = true;
    }
}

async fn reply(socket: tokio::net::UdpSocket, log: Log) {
    // No datagram causes a socket error. If one occurs, the clients report it.
    while socket.async_io(Interest::READABLE, || reply_once(&socket, &log)).await.is_ok() {}
}

/// Reads one datagram and answers it from the address that it was sent to. It ignores a reply that cannot be sent: that
/// error would mean that there is no datagram.
fn reply_once(socket: &impl AsFd, log: &Log) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
    let from = message.address.ok_or(io::ErrorKind::InvalidData)?;
    let peer = socket_addr(&from).ok_or(io::ErrorKind::InvalidData)?;
    let to = message.cmsgs()?.next();
    log.push(Transport::Udp, peer, message.iovs().next().unwrap_or_default());

    // The source is the datagram's destination; the routes select the link.
    let (v4, v6);
    let source = match to {
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
            v6 = libc::in6_pktinfo { ipi6_ifindex: 0, ..info };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        _ => None,
    };
    sendmsg(fd, &[IoSlice::new(answer(peer).as_bytes())], source.as_slice(), MsgFlags::empty(), Some(&from)).ok();
    Ok(())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|&a| SocketAddr::V4(SocketAddrV4::from(a)));
    v4.or_else(|| address.as_sockaddr_in6().map(|&a| SocketAddr::V6(SocketAddrV6::from(a))))
}
