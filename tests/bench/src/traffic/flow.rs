//! The sockets of a worker, in pairs: one sends, the other belongs to the server, and one thread owns both.
//!
//! A packet sent through a veth is in the receiver's queue when `send` returns, because the kernel runs the receiving
//! side on the sender's CPU. So nothing waits, nothing is lost, and the figures contain no work of a second CPU.
//!
//! **Invariant:** for datagrams and connections, the timed section is the sender's system calls, including the
//! delivery. For a stream it is the calls of both ends, because the sender depends on them.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, SndBufForce},
};
use socket2::{Domain, Socket, Type};
use steer_lab::{Family, SERVER_V4, SERVER_V6};

use super::load::{BURST, BURSTS, CONNECTIONS, DATAGRAM_BYTES, Kind, STREAM_BYTES};

/// The limit for the delivery of sent data.
const PATIENCE: Duration = Duration::from_secs(5);
/// The bytes per write and per read of a stream.
const CHUNK_BYTES: usize = 128 << 10;
/// The size of the buffers: more than is in flight at any time. It is fixed because the kernel's automatic sizes differ
/// in each run.
const BUFFER_BYTES: usize = 1 << 20;

/// The server's sockets.
pub(super) struct Server {
    datagrams: UdpSocket,
    listener: TcpListener,
}

impl Server {
    /// Opens them in the calling thread's network namespace and cgroup.
    pub(super) fn open(family: Family) -> io::Result<Self> {
        let (address, domain) = match family {
            Family::V4 => (IpAddr::V4(SERVER_V4), Domain::IPV4),
            Family::V6 => (IpAddr::V6(SERVER_V6), Domain::IPV6),
        };
        let any_port = SocketAddr::new(address, 0);
        let datagrams = UdpSocket::bind(any_port)?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        setsockopt(&datagrams, RcvBufForce, &BUFFER_BYTES)?;
        let listener = Socket::new(domain, Type::STREAM, None)?;
        // Accepted connections inherit it: they are closed by a reset and leave no TIME_WAIT state.
        listener.set_linger(Some(Duration::ZERO))?;
        listener.set_read_timeout(Some(PATIENCE))?;
        // Set before it listens, because the offered window depends on it.
        setsockopt(&listener, RcvBufForce, &BUFFER_BYTES)?;
        listener.bind(&any_port.into())?;
        listener.listen(2 * CONNECTIONS.cast_signed())?;
        Ok(Self { datagrams, listener: listener.into() })
    }
}

/// The client's sockets, with those of their server.
pub(super) struct Flow {
    server: Server,
    connected: UdpSocket,
    unconnected: UdpSocket,
}

impl Flow {
    /// Opens the client's sockets in the calling thread's network namespace and cgroup.
    pub(super) fn open(server: Server) -> io::Result<Self> {
        let any: IpAddr = match server.datagrams.local_addr()? {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let connected = UdpSocket::bind((any, 0))?;
        connected.connect(server.datagrams.local_addr()?)?;
        let unconnected = UdpSocket::bind((any, 0))?;
        Ok(Self { server, connected, unconnected })
    }

    /// One turn. Returns its duration.
    pub(super) fn run(&self, kind: Kind) -> io::Result<Duration> {
        match kind {
            Kind::Connected => self.datagrams(|payload| self.connected.send(payload)),
            Kind::Unconnected => {
                let to = self.server.datagrams.local_addr()?;
                self.datagrams(|payload| self.unconnected.send_to(payload, to))
            }
            Kind::Stream => Stream::open(&self.server.listener)?.run(),
            Kind::Connections => self.connections(),
        }
    }

    fn datagrams(&self, send: impl Fn(&[u8]) -> io::Result<usize>) -> io::Result<Duration> {
        let mut payload = [0; DATAGRAM_BYTES];
        let mut elapsed = Duration::ZERO;
        for _ in 0..BURSTS {
            let start = Instant::now();
            for _ in 0..BURST {
                send(&payload)?;
            }
            elapsed += start.elapsed();
            for _ in 0..BURST {
                self.server.datagrams.recv(&mut payload)?;
            }
        }
        Ok(elapsed)
    }

    fn connections(&self) -> io::Result<Duration> {
        let to = self.server.listener.local_addr()?;
        let start = Instant::now();
        for _ in 0..CONNECTIONS {
            drop(TcpStream::connect(to)?);
        }
        let elapsed = start.elapsed();
        for _ in 0..CONNECTIONS {
            drop(self.server.listener.accept()?);
        }
        Ok(elapsed)
    }
}

/// The two ends of a connection. Each turn makes a new one, because the location of its buffers in memory makes it
/// faster or slower by some percent for its whole life.
struct Stream {
    /// Closed first, because this end resets the connection.
    far: TcpStream,
    near: TcpStream,
    buffer: Vec<u8>,
}

impl Stream {
    fn open(listener: &TcpListener) -> io::Result<Self> {
        let near = TcpStream::connect(listener.local_addr()?)?;
        setsockopt(&near, SndBufForce, &BUFFER_BYTES)?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_nonblocking(true)?;
        }
        Ok(Self { far, near, buffer: vec![0; CHUNK_BYTES] })
    }

    fn run(mut self) -> io::Result<Duration> {
        let (mut to_send, mut to_receive) = (STREAM_BYTES as usize, STREAM_BYTES as usize);
        let start = Instant::now();
        while to_receive > 0 {
            let chunk = &self.buffer[..CHUNK_BYTES.min(to_send)];
            let sent = if chunk.is_empty() { 0 } else { unless_blocked(self.near.write(chunk))? };
            let received = unless_blocked(self.far.read(&mut self.buffer))?;
            to_send -= sent;
            to_receive -= received;
            if sent == 0 && received == 0 && start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(start.elapsed())
    }
}

/// A call that would block has moved no bytes.
fn unless_blocked(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        moved => moved,
    }
}
