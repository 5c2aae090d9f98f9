//! Ordinary use of sockets, with all ways to send data.
//!
//! **Invariant:** nothing here requests more than a program that knows of only one network.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried};
use crate::{echo::Echo, probe::local, sys};
use nix::{
    fcntl::{SpliceFFlags, splice},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        sendfile::sendfile,
        socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

impl EscapeArgs {
    pub(super) fn tcp(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    pub(super) fn mptcp(&self) -> Tried {
        let socket = self.socket(Type::STREAM, Some(Protocol::MPTCP))?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    pub(super) fn fast_open(&self, protocol: Option<Protocol>) -> Tried {
        let socket = self.socket(Type::STREAM, protocol)?;
        socket.send_to_with_flags(REQUEST, &self.server().into(), libc::MSG_FASTOPEN).at(Step::Send)?;
        self.answer(&socket)
    }

    /// A TCP socket that is disconnected and connected again.
    pub(super) fn tcp_af_unspec(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        self.connect(&socket, &self.server().into())?;
        socket.connect(&sys::unspecified()).at(Step::Disconnect)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// Waits for a connection and answers from the accepted socket. A socket that is not bound to an address listens on
    /// all addresses.
    pub(super) fn accept(&self, protocol: Option<Protocol>, bind_to: Option<IpAddr>) -> Tried {
        let socket = self.socket(Type::STREAM, protocol)?;
        if let Some(ip) = bind_to {
            socket.bind(&SocketAddr::new(ip, 0).into()).at(Step::Bind)?;
        }
        self.accept_on(&socket)
    }

    /// Listens as Go does: its listeners are IPv6 sockets for both families, with Multipath TCP.
    pub(super) fn accept_dual(&self, protocol: Protocol) -> Tried {
        let socket = self.socket_of(Domain::IPV6, Type::STREAM, Some(protocol))?;
        socket.set_only_v6(false).at(Step::Option)?;
        socket.set_reuse_address(true).at(Step::Option)?;
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0).into()).at(Step::Bind)?;
        self.accept_on(&socket)
    }

    fn accept_on(&self, socket: &Socket) -> Tried {
        socket.listen(8).at(Step::Bind)?;
        let port = socket.local_addr().at(Step::Bind)?.as_socket().map_or(0, |address| address.port());
        self.say(&format!("listening {port}"))?;
        // The timeout of an MPTCP socket does not apply to accept.
        let patience = PollTimeout::try_from(self.timeout_ms).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], patience).at(Step::Accept)? == 0 {
            return Err(Halt::Refused(Step::Accept, io::ErrorKind::TimedOut.into()));
        }
        let (accepted, _) = socket.accept().at(Step::Accept)?;
        self.give_patience(&accepted)?;
        self.talk(&accepted)
    }

    pub(super) fn udp(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    pub(super) fn udp_unconnected(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.talk_to(&socket, self.server())
    }

    /// The server has no such socket, so the attempt only sends.
    pub(super) fn udp_lite(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, Some(Protocol::from(libc::IPPROTO_UDPLITE)))?;
        socket.send_to(REQUEST, &self.server().into()).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    /// The kernel makes two datagrams of one buffer.
    pub(super) fn udp_gso(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.connect(&socket, &self.server().into())?;
        let segment = u16::try_from(REQUEST.len()).unwrap_or(u16::MAX);
        let parts = [IoSlice::new(REQUEST), IoSlice::new(REQUEST)];
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).at(Step::Send)?;
        self.answer(&socket)
    }

    /// An echo request, from an ICMP datagram socket or a raw one.
    pub(super) fn echo(&self, kind: Type) -> Tried {
        let socket = self.icmp_socket(kind)?;
        self.connect(&socket, &SocketAddr::new(self.server().ip(), 0).into())?;
        let echo = Echo::new(self.is_v4(), 0);
        (&socket).write_all(echo.request()).at(Step::Send)?;
        self.echo_reply(&socket, &echo, kind)
    }

    pub(super) fn icmp_socket(&self, kind: Type) -> Tried<Socket> {
        self.socket(kind, Some(if self.is_v4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 }))
    }

    pub(super) fn echo_reply(&self, mut socket: &Socket, echo: &Echo, kind: Type) -> Tried {
        let deadline = Instant::now() + Duration::from_millis(self.timeout_ms);
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            let len = socket.read(&mut buffer).at(Step::Receive)?;
            // Only a raw IPv4 socket receives the IP header.
            let header_len = match kind {
                Type::RAW if self.is_v4() => usize::from(buffer[0] & 0x0f) * 4,
                _ => 0,
            };
            if buffer[..len].get(header_len..).is_some_and(|message| echo.is_answered_by(message)) {
                return Ok(local(socket).map_or_else(|| "answered".to_owned(), |ip| ip.to_string()));
            }
        }
        Err(Halt::Refused(Step::Receive, io::ErrorKind::TimedOut.into()))
    }

    pub(super) fn zerocopy(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        sys::set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32.to_ne_bytes()).at(Step::Option)?;
        self.connect(&socket, &self.server().into())?;
        socket.send_with_flags(REQUEST, libc::MSG_ZEROCOPY).at(Step::Send)?;
        self.answer(&socket)
    }

    pub(super) fn sendfile(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        self.connect(&socket, &self.server().into())?;
        let mut file = File::from(memfd_create(c"request", MFdFlags::empty()).at(Step::Place)?);
        file.write_all(REQUEST).at(Step::Place)?;
        sendfile(&socket, &file, Some(&mut 0), REQUEST.len()).at(Step::Send)?;
        self.answer(&socket)
    }

    pub(super) fn splice(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        self.connect(&socket, &self.server().into())?;
        let (reader, mut writer) = io::pipe().at(Step::Place)?;
        writer.write_all(REQUEST).at(Step::Place)?;
        splice(&reader, None, &socket, None, REQUEST.len(), SpliceFFlags::empty()).at(Step::Send)?;
        self.answer(&socket)
    }

    /// Several datagrams in one call, unmodified or with the other interface named in each.
    pub(super) fn sendmmsg(&self, pktinfo: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let info = sys::pktinfo(self.other_index()?);
        let control = if pktinfo { vec![ControlMessage::Ipv4PacketInfo(&info)] } else { Vec::new() };
        let parts = [[IoSlice::new(REQUEST)], [IoSlice::new(REQUEST)]];
        let to = [Some(SockaddrStorage::from(self.server())); 2];
        let mut headers = MultiHeaders::preallocate(2, pktinfo.then(|| nix::cmsg_space!(libc::in_pktinfo)));
        let fd = socket.as_raw_fd();
        sendmmsg(fd, &mut headers, &parts, to, control, MsgFlags::empty()).map(drop).at(Step::Send)?;
        self.answer(&socket)
    }

    /// An IPv6 socket that sends IPv4.
    pub(super) fn mapped(&self, kind: Type) -> Tried {
        let socket = self.socket_of(Domain::IPV6, kind, None)?;
        if kind == Type::STREAM {
            self.connect(&socket, &self.mapped_server().into())?;
            self.talk(&socket)
        } else {
            self.talk_to(&socket, self.mapped_server())
        }
    }

    pub(super) fn mapped_server(&self) -> SocketAddr {
        let ip = match self.server().ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        SocketAddr::new(ip.into(), self.port)
    }

    pub(super) fn any(&self) -> IpAddr {
        if self.is_v4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }

    /// A request and its answer on a connected socket.
    pub(super) fn talk(&self, mut socket: &Socket) -> Tried {
        socket.write_all(REQUEST).at(Step::Send)?;
        self.answer(socket)
    }

    /// A request and its answer on a socket that is not connected.
    pub(super) fn talk_to(&self, socket: &Socket, to: SocketAddr) -> Tried {
        socket.send_to(REQUEST, &to.into()).at(Step::Send)?;
        self.answer(socket)
    }

    /// The server's answer: the address that it saw.
    #[expect(clippy::unused_self, reason = "belongs to the attempt")]
    pub(super) fn answer(&self, mut socket: &Socket) -> Tried {
        let mut buffer = [0; 256];
        match socket.read(&mut buffer).at(Step::Receive)? {
            0 => Err(Halt::Refused(Step::Receive, io::ErrorKind::UnexpectedEof.into())),
            len => Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned()),
        }
    }
}
