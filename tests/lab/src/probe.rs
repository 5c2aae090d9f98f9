//! The client program. It opens a socket, sends requests to a server and reports the results, like any program without
//! knowledge of steering.
//!
//! **Invariant:** a probe never binds a socket to an interface, an address or a mark. It reads the state of its socket
//! back from the kernel.

use crate::{
    echo::Echo,
    error::{Error, Result},
    sys,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// The kind of socket of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Proto {
    /// A TCP connection.
    Tcp,
    /// A connected UDP socket.
    Udp,
    /// An echo request on an ICMP datagram socket, as an unprivileged ping sends.
    Ping,
    /// An echo request on a raw socket; needs `CAP_NET_RAW`.
    Raw,
    /// A UDP socket that is never connected; `sendto` names the server.
    UdpUnconnected,
    /// An MPTCP connection.
    Mptcp,
}

impl Proto {
    /// The four kinds that every machine has and every lab must carry.
    pub const COMMON: [Self; 4] = [Self::Tcp, Self::Udp, Self::Ping, Self::Raw];
}

/// The address family of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The steps of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Making the socket.
    Socket,
    /// Connecting it.
    Connect,
    /// Sending the request.
    Send,
    /// Receiving the answer; every successful probe ends here.
    Receive,
}

/// One probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The kind of socket.
    pub proto: Proto,
    /// The target; it determines the family.
    pub target: IpAddr,
    /// The port; ignored for ping and raw.
    pub port: u16,
    /// The number of requests, sent one after the other on the same socket.
    pub count: u32,
    /// The timeout of each connect, send and receive.
    pub timeout_ms: u64,
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// As in the probe.
    pub proto: Proto,
    /// The target's family.
    pub family: Family,
    /// As in the probe.
    pub target: IpAddr,
    /// The socket's own address, if it has one.
    pub local: Option<IpAddr>,
    /// The answer: the source address that the server saw, or the address that the echo reply came to.
    pub saw: Option<String>,
    /// The interface that the socket is bound to at the end; 0 for none, -1 if there is no socket.
    pub bound_ifindex: i32,
    /// The last step.
    pub stage: Stage,
    /// The name of the errno. It is `ETIMEDOUT` also for a wait that timed out, and `EOF` for a stream that ended.
    pub error: Option<String>,
}

impl Outcome {
    /// Whether every request was answered.
    pub fn is_ok(&self) -> bool {
        self.error.is_none()
    }

    /// Reads the socket's state back from the kernel.
    pub(crate) fn look_at(&mut self, socket: &Socket) -> io::Result<()> {
        self.local = local(socket);
        self.bound_ifindex = sys::socket_option(socket, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX)?;
        Ok(())
    }
}

/// Parses the lines that `steer-probe --json` prints.
pub fn parse_outcomes(output: &str) -> Result<Vec<Outcome>> {
    let lines = output.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source }))
        .collect()
}

impl Probe {
    /// One request with a timeout of one second.
    pub fn new(proto: Proto, target: impl Into<IpAddr>, port: u16) -> Self {
        Self { proto, target: target.into(), port, count: 1, timeout_ms: 1000 }
    }

    /// The target's family.
    pub fn family(&self) -> Family {
        Family::of(self.target)
    }

    /// Runs the probe on the calling thread, and so in its network namespace.
    pub fn run(&self) -> Outcome {
        let mut outcome = self.begin();
        let result = self.open().and_then(|socket| {
            let result = self.talk(&socket, &mut outcome);
            outcome.look_at(&socket)?;
            result
        });
        outcome.error = result.err().map(|error| errno_name(&error));
        outcome
    }

    /// The part of the outcome that is known before there is a socket.
    pub(crate) fn begin(&self) -> Outcome {
        Outcome {
            proto: self.proto,
            family: self.family(),
            target: self.target,
            local: None,
            saw: None,
            bound_ifindex: -1,
            stage: Stage::Socket,
            error: None,
        }
    }

    /// A new socket with the timeouts set.
    pub(crate) fn open(&self) -> io::Result<Socket> {
        let domain = if self.target.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let icmp = if self.target.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let (kind, protocol) = match self.proto {
            Proto::Tcp => (Type::STREAM, None),
            Proto::Mptcp => (Type::STREAM, Some(Protocol::MPTCP)),
            Proto::Udp | Proto::UdpUnconnected => (Type::DGRAM, None),
            Proto::Ping => (Type::DGRAM, Some(icmp)),
            Proto::Raw => (Type::RAW, Some(icmp)),
        };
        let socket = Socket::new(domain, kind, protocol)?;
        // Zero would mean no timeout.
        let timeout = Duration::from_millis(self.timeout_ms.max(1));
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(socket)
    }

    /// The destination of connect or send; raw sockets take no port.
    pub(crate) fn address(&self) -> SockAddr {
        let port = if matches!(self.proto, Proto::Ping | Proto::Raw) { 0 } else { self.port };
        SocketAddr::new(self.target, port).into()
    }

    fn talk(&self, socket: &Socket, outcome: &mut Outcome) -> io::Result<()> {
        self.connect(socket, outcome)?;
        (0..self.count.max(1)).try_for_each(|sequence| self.exchange(socket, sequence, outcome))
    }

    /// Connects the socket, if its kind is connected.
    pub(crate) fn connect(&self, socket: &Socket, outcome: &mut Outcome) -> io::Result<()> {
        if self.proto == Proto::UdpUnconnected {
            return Ok(());
        }
        outcome.stage = Stage::Connect;
        socket.connect(&self.address())
    }

    /// Sends one request, and waits for its answer.
    pub(crate) fn exchange(&self, socket: &Socket, sequence: u32, outcome: &mut Outcome) -> io::Result<()> {
        outcome.stage = Stage::Send;
        let echo = Echo::new(self.target.is_ipv4(), sequence);
        let request: &[u8] =
            if matches!(self.proto, Proto::Ping | Proto::Raw) { echo.request() } else { b"steer-probe\n" };
        if self.proto == Proto::UdpUnconnected {
            socket.send_to(request, &self.address())?;
        } else {
            (&*socket).write_all(request)?;
        }
        outcome.stage = Stage::Receive;
        outcome.saw = Some(match self.proto {
            Proto::Tcp | Proto::Mptcp => read_line(socket)?,
            Proto::Udp | Proto::UdpUnconnected => read_datagram(socket)?,
            Proto::Ping | Proto::Raw => self.read_reply(socket, &echo)?,
        });
        Ok(())
    }

    /// Waits for the reply to `echo` among all replies that a raw socket receives, and returns its destination address.
    /// The socket is connected, so without an IP header that is the socket's own address.
    fn read_reply(&self, mut socket: &Socket, echo: &Echo) -> io::Result<String> {
        let deadline = Instant::now() + Duration::from_millis(self.timeout_ms);
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            let len = socket.read(&mut buffer)?;
            let packet = &buffer[..len];
            if self.proto == Proto::Raw && self.target.is_ipv4() {
                let header_len = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
                if let (Some(message), Some(to)) = (packet.get(header_len..), packet.get(16..20))
                    && echo.is_answered_by(message)
                {
                    return Ok(to.iter().map(u8::to_string).collect::<Vec<_>>().join("."));
                }
            } else if echo.is_answered_by(packet) {
                return local(socket).map(|ip| ip.to_string()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn read_line(mut socket: &Socket) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn read_datagram(mut socket: &Socket) -> io::Result<String> {
    let mut buffer = [0; 2048];
    let len = socket.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned())
}

pub(crate) fn local(socket: &Socket) -> Option<IpAddr> {
    let address = socket.local_addr().ok()?.as_socket()?.ip();
    (!address.is_unspecified()).then_some(address)
}

/// The name of the errno. A socket timeout is reported as EAGAIN, or as EINPROGRESS while connecting.
pub(crate) fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINPROGRESS) => "ETIMEDOUT".to_owned(),
        Some(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
        None if error.kind() == io::ErrorKind::TimedOut => "ETIMEDOUT".to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_printing() {
        let outcome = Outcome {
            proto: Proto::UdpUnconnected,
            family: Family::V6,
            target: "fd00:ffff::1".parse().unwrap(),
            local: None,
            saw: Some("fd00:1::2".to_owned()),
            bound_ifindex: 3,
            stage: Stage::Receive,
            error: Some("ENODEV".to_owned()),
        };
        let line = serde_json::to_string(&outcome).unwrap();
        assert!(line.contains(r#""proto":"udp-unconnected","family":"v6""#), "{line}");
        assert_eq!(parse_outcomes(&format!("{line}\n\n{line}\n")).unwrap(), [outcome.clone(), outcome]);
        assert!(matches!(parse_outcomes("tcp: fine").unwrap_err(), Error::Output { line, .. } if line == "tcp: fine"));
    }

    #[test]
    fn errno_names() {
        let named = |errno| errno_name(&io::Error::from_raw_os_error(errno));
        assert_eq!(named(libc::ENODEV), "ENODEV");
        assert_eq!(named(libc::EINPROGRESS), "ETIMEDOUT");
        assert_eq!(errno_name(&io::ErrorKind::UnexpectedEof.into()), "EOF");
    }
}
