//! Losing the binding with `connect(AF_UNSPEC)`, and naming another interface in a message.
//!
//! **Invariant:** the socket is the one that a steered program gets. It loses its binding only in the way of the
//! vector.

use super::{At, EscapeArgs, REQUEST, Step, Tried};
use crate::{echo::Echo, sys};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::IoSlice,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

impl EscapeArgs {
    /// A datagram socket that was connected and then disconnected: `__udp_disconnect` also clears the binding.
    pub(super) fn disconnected(&self, socket: &Socket, to: SocketAddr) -> Tried<()> {
        self.connect(socket, &to.into())?;
        socket.connect(&sys::unspecified()).at(Step::Disconnect)
    }

    pub(super) fn udp_af_unspec(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.disconnected(&socket, self.server())?;
        self.talk_to(&socket, self.server())
    }

    pub(super) fn udp_af_unspec_connect(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.disconnected(&socket, self.server())?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// The datagram is started after the loss and finished with a second call.
    pub(super) fn udp_af_unspec_cork(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.disconnected(&socket, self.server())?;
        socket.send_to_with_flags(REQUEST, &self.server().into(), libc::MSG_MORE).at(Step::Send)?;
        self.talk_to(&socket, self.server())
    }

    pub(super) fn mapped_af_unspec(&self) -> Tried {
        let socket = self.socket_of(Domain::IPV6, Type::DGRAM, None)?;
        self.disconnected(&socket, self.mapped_server())?;
        self.talk_to(&socket, self.mapped_server())
    }

    pub(super) fn echo_af_unspec(&self, kind: Type) -> Tried {
        let socket = self.icmp_socket(kind)?;
        let to = SocketAddr::new(self.server().ip(), 0);
        self.disconnected(&socket, to)?;
        let echo = Echo::new(self.is_v4(), 0);
        socket.send_to(echo.request(), &to.into()).at(Step::Send)?;
        self.echo_reply(&socket, &echo, kind)
    }

    /// Sends with the other interface in the control data.
    fn send_by_other(&self, socket: &Socket, bytes: &[u8], to: SocketAddr, flags: MsgFlags) -> Tried<()> {
        let index = self.other_index()?;
        let (v4, v6) = (sys::pktinfo(index), libc::in6_pktinfo { ipi6_addr: sys::IN6_ANY, ipi6_ifindex: index });
        let control = match to.ip().to_canonical() {
            IpAddr::V4(_) => ControlMessage::Ipv4PacketInfo(&v4),
            IpAddr::V6(_) => ControlMessage::Ipv6PacketInfo(&v6),
        };
        let to = SockaddrStorage::from(to);
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &[control], flags, Some(&to)).map(drop).at(Step::Send)
    }

    pub(super) fn udp_pktinfo(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.send_by_other(&socket, REQUEST, self.server(), MsgFlags::empty())?;
        self.answer(&socket)
    }

    pub(super) fn udp_pktinfo_cork(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.send_by_other(&socket, REQUEST, self.server(), MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        self.talk_to(&socket, self.server())
    }

    /// An IPv6 socket that sends IPv4 accepts both kinds of control message; this is the IPv6 kind.
    pub(super) fn mapped_pktinfo(&self) -> Tried {
        let socket = self.socket_of(Domain::IPV6, Type::DGRAM, None)?;
        self.send_by_other(&socket, REQUEST, self.mapped_server(), MsgFlags::empty())?;
        self.answer(&socket)
    }

    pub(super) fn echo_pktinfo(&self, kind: Type) -> Tried {
        let socket = self.icmp_socket(kind)?;
        let echo = Echo::new(self.is_v4(), 0);
        self.send_by_other(&socket, echo.request(), SocketAddr::new(self.server().ip(), 0), MsgFlags::empty())?;
        self.echo_reply(&socket, &echo, kind)
    }

    /// A self-made IPv4 header, and the other interface in the control data.
    pub(super) fn raw_header(&self) -> Tried {
        let socket = self.socket(Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let packet = self.packet_to_server();
        self.send_by_other(&socket, &packet, SocketAddr::new(self.server().ip(), 0), MsgFlags::empty())?;
        Ok("sent".to_owned())
    }

    /// A self-made header with the ports of UDP.
    pub(super) fn raw_udp(&self) -> Tried {
        let socket = self.socket(Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.send_to(&self.packet_to_server(), &SocketAddr::new(self.server().ip(), 0).into()).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    /// The interface as a socket option instead of a part of the message.
    pub(super) fn pktinfo_sticky(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let mut info = [0; 20];
        info[16..].copy_from_slice(&self.other_index()?.to_ne_bytes());
        sys::set_socket_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info).at(Step::Option)?;
        self.talk_to(&socket, self.server())
    }

    /// The neighbour's link-local address, which needs the interface.
    fn neighbour(&self, port: u16) -> Tried<SocketAddr> {
        let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        Ok(SocketAddrV6::new(ip, port, 0, self.other_index()?).into())
    }

    pub(super) fn link_local(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.talk_to(&socket, self.neighbour(self.port)?)
    }

    pub(super) fn link_local_echo(&self, kind: Type) -> Tried {
        let socket = self.icmp_socket(kind)?;
        let echo = Echo::new(self.is_v4(), 0);
        socket.send_to(echo.request(), &self.neighbour(0)?.into()).at(Step::Send)?;
        self.echo_reply(&socket, &echo, kind)
    }

    pub(super) fn link_local_stream(&self, protocol: Option<Protocol>) -> Tried {
        let socket = self.socket(Type::STREAM, protocol)?;
        self.connect(&socket, &self.neighbour(self.port)?.into())?;
        self.talk(&socket)
    }

    pub(super) fn link_local_af_unspec(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.disconnected(&socket, self.server())?;
        self.connect(&socket, &self.neighbour(self.port)?.into())?;
        self.talk(&socket)
    }

    /// All nodes on the link; none of them answers.
    pub(super) fn link_local_multicast(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        self.send(&socket, SocketAddrV6::new(group, self.port, 0, self.other_index()?).into())
    }
}
