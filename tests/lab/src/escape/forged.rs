//! Packets to this host with the address of another host as their source. The kernel answers that host, with a packet that belongs
//! to no socket and quotes or repeats what was sent.
//!
//! **Invariant:** the attempt sends to an address of each kind: on the uplink, on the other link, and of loopback. It is refused only
//! where all of them are.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried};
use crate::{
    echo::Echo,
    probe::local,
    sys::{self, set_socket_option},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Protocol, SockAddr, Socket, Type};
use std::{
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

/// A port on which nobody listens.
const CLOSED_PORT: u16 = 9;

/// A protocol that the kernel reports as unknown. Over IPv6, it drops datagrams without a checksum.
const EXPERIMENTAL: u8 = 253;

/// The option that allows the source.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    /// `IP_FREEBIND`, `IPV6_FREEBIND`
    Freebind,
    /// The IPv4 option, also on an IPv6 socket.
    FreebindOfV4,
    /// `IP_TRANSPARENT`, `IPV6_TRANSPARENT`
    Transparent,
}

impl EscapeArgs {
    /// The neighbour on the other link: an answer to it leaves there.
    fn forged(&self) -> SocketAddr {
        SocketAddr::new(self.gateway, 0)
    }

    fn own_addresses(&self) -> Tried<[IpAddr; 3]> {
        let socket = self.socket(Type::DGRAM, None)?;
        self.connect(&socket, &self.server().into())?;
        let uplink = local(&socket).ok_or_else(|| Halt::Inapplicable("no address on the uplink".to_owned()))?;
        let loopback = if self.is_v4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        Ok([uplink, self.source, loopback])
    }

    /// Sends to each, with a socket as it was made and with one that was disconnected.
    fn to_each(&self, make: impl Fn() -> Tried<Socket>, send: impl Fn(&Socket, IpAddr) -> Tried<()>) -> Tried {
        let mut refusal = None;
        let mut done = 0;
        for to in self.own_addresses()? {
            for disconnected in [false, true] {
                let socket = make()?;
                if disconnected {
                    // A TCP socket that is not connected refuses this, and stays as it is.
                    socket.connect(&sys::unspecified()).ok();
                }
                match send(&socket, to) {
                    Ok(()) => done += 1,
                    Err(halt) => refusal = Some(halt),
                }
            }
        }
        match refusal {
            Some(halt) if done == 0 => Err(halt),
            _ => Ok(format!("sent {done}")),
        }
    }

    /// A header of the program's own.
    pub(super) fn forged_header(&self) -> Tried {
        let make = || self.socket(Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        self.to_each(make, |socket, to| {
            let mut packet = self.packet_between(self.gateway, to, CLOSED_PORT);
            packet[if self.is_v4() { 9 } else { 6 }] = EXPERIMENTAL;
            socket.send_to(&packet, &SocketAddr::new(to, 0).into()).map(drop).at(Step::Send)
        })
    }

    /// To all nodes of the uplink, of which this host is one. It reports the unknown option, also to a group (RFC 4443, 2.4).
    pub(super) fn forged_multicast(&self) -> Tried {
        const OPTIONS: [u8; 8] = [59, 0, 0xbf, 4, 0, 0, 0, 0];
        let socket = self.socket(Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let IpAddr::V6(source) = self.gateway else { return Err(Halt::Inapplicable("IPv6 only".to_owned())) };
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 60, 64];
        packet.extend(source.octets());
        packet.extend(group.octets());
        packet.extend(OPTIONS);
        socket.send_to(&packet, &SocketAddr::new(group.into(), 0).into()).map(drop).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    /// An echo request, from an ICMP datagram socket or a raw one.
    pub(super) fn forged_echo(&self, kind: Type) -> Tried {
        let make = || {
            let socket = self.icmp_socket(kind)?;
            // A raw socket can do it with either option.
            let allowed = if self.is_v4() { Allowed::Transparent } else { Allowed::Freebind };
            self.allow(&socket, allowed)?;
            socket.bind(&self.forged().into()).at(Step::Bind)?;
            Ok(socket)
        };
        self.to_each(make, |socket, to| {
            let echo = Echo::new(self.is_v4(), 0);
            socket.send_to(echo.request(), &SocketAddr::new(to, 0).into()).map(drop).at(Step::Send)
        })
    }

    fn allow(&self, socket: &Socket, allowed: Allowed) -> Tried<()> {
        let (level, name) = match (self.is_v4(), allowed) {
            (_, Allowed::FreebindOfV4) | (true, Allowed::Freebind) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
            (true, Allowed::Transparent) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            (false, Allowed::Freebind) => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
            (false, Allowed::Transparent) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        };
        set_socket_option(socket, level, name, &1_i32.to_ne_bytes()).at(Step::Option)
    }

    /// A datagram to a closed port, or a connection to it.
    pub(super) fn forged_bind(&self, kind: Type, allowed: Allowed) -> Tried {
        let make = || {
            let socket = self.socket(kind, None)?;
            self.allow(&socket, allowed)?;
            socket.bind(&self.forged().into()).at(Step::Bind)?;
            Ok(socket)
        };
        self.to_each(make, |socket, to| {
            let to = SockAddr::from(SocketAddr::new(to, CLOSED_PORT));
            if kind == Type::STREAM {
                // Nobody answers: whether it was sent is not known.
                socket.connect(&to).ok();
                return Ok(());
            }
            socket.send_to(REQUEST, &to).map(drop).at(Step::Send)
        })
    }

    /// The source in the control data.
    pub(super) fn forged_pktinfo(&self) -> Tried {
        let make = || {
            let socket = self.socket(Type::DGRAM, None)?;
            self.allow(&socket, Allowed::Freebind)?;
            Ok(socket)
        };
        self.to_each(make, |socket, to| {
            let mut v4 = sys::pktinfo(0);
            let mut v6 = libc::in6_pktinfo { ipi6_addr: sys::IN6_ANY, ipi6_ifindex: 0 };
            let control = match self.gateway {
                IpAddr::V4(gateway) => {
                    v4.ipi_spec_dst.s_addr = u32::from(gateway).to_be();
                    ControlMessage::Ipv4PacketInfo(&v4)
                }
                IpAddr::V6(gateway) => {
                    v6.ipi6_addr.s6_addr = gateway.octets();
                    ControlMessage::Ipv6PacketInfo(&v6)
                }
            };
            let to = SockaddrStorage::from(SocketAddr::new(to, CLOSED_PORT));
            let parts = [IoSlice::new(REQUEST)];
            sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::empty(), Some(&to)).map(drop).at(Step::Send)
        })
    }
}
