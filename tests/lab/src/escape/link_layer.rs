//! Sockets below the IP stack or beside it.
//!
//! **Invariant:** each sent packet is a complete IP packet to the lab's server, so that a capture recognises it.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried};
use crate::sys;
use socket2::{Domain, Protocol, Type};
use std::{io, net::IpAddr};

const AF_SMC: i32 = 43;
/// A socket type that is treated as a family; libc marks it as deprecated.
const SOCK_PACKET: i32 = 10;
const IPPROTO_SMC: i32 = 256;

impl EscapeArgs {
    /// Packets written directly to the other interface.
    pub(super) fn packet(&self, kind: Type, bypass: bool) -> Tried {
        let socket = self.socket_of(Domain::PACKET, kind, None)?;
        if bypass {
            let on = 1_i32.to_ne_bytes();
            sys::set_socket_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on).at(Step::Option)?;
        }
        let bytes = if kind == Type::RAW { self.frame_to_server() } else { self.packet_to_server() };
        let to = sys::packet_address(self.other_index()?, self.ethertype(), [0xff; 6]);
        socket.send_to(&bytes, &to).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    /// The form from before AF_PACKET: the destination is the name of an interface.
    pub(super) fn packet_legacy(&self) -> Tried {
        let protocol = Protocol::from(i32::from(self.ethertype().to_be()));
        let socket = self.socket_of(Domain::IPV4, Type::from(SOCK_PACKET), Some(protocol))?;
        socket.send_to(&self.frame_to_server(), &sys::link_name(&self.other)).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    pub(super) fn sctp(&self) -> Tried {
        let socket = self.socket(Type::STREAM, Some(Protocol::from(libc::IPPROTO_SCTP)))?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// Shared memory communications, which fall back to TCP.
    pub(super) fn smc(&self) -> Tried {
        let family = Protocol::from(i32::from(!self.is_v4()));
        let socket = self.socket_of(Domain::from(AF_SMC), Type::STREAM, Some(family))?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// The same, by the protocol's number (Linux 6.11).
    pub(super) fn smc_inet(&self) -> Tried {
        let socket = self.socket(Type::STREAM, Some(Protocol::from(IPPROTO_SMC)))?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// The same, on top of a TCP socket (Linux 5.17).
    pub(super) fn smc_upper_layer(&self) -> Tried {
        const SOL_TCP: i32 = libc::IPPROTO_TCP;
        let socket = self.socket(Type::STREAM, None)?;
        match sys::set_socket_option(&socket, SOL_TCP, libc::TCP_ULP, b"smc") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Halt::Inapplicable("this kernel does not support it".to_owned()));
            }
            set => set.at(Step::Option)?,
        }
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    pub(super) fn ethertype(&self) -> u16 {
        if self.is_v4() { 0x0800 } else { 0x86dd }
    }

    /// The packet in a broadcast Ethernet frame.
    pub(super) fn frame_to_server(&self) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1]);
        frame.extend(self.ethertype().to_be_bytes());
        frame.extend(self.packet_to_server());
        frame
    }

    /// A UDP packet to the server. Neither the sending kernel nor a capture checks checksums.
    pub(super) fn packet_to_server(&self) -> Vec<u8> {
        self.packet_between(self.source, self.server().ip(), self.port)
    }

    /// A datagram with a header, from any address.
    #[expect(clippy::unused_self, reason = "belongs to the attempt")]
    pub(super) fn packet_between(&self, source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
        let len = u16::try_from(8 + REQUEST.len()).unwrap_or(u16::MAX);
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let [high, low] = (20 + len).to_be_bytes();
                let mut header = vec![0x45, 0, high, low, 0, 1, 0, 0, 64, 17, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [high, low] = len.to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, high, low, 17, 64];
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => Vec::new(),
        };
        for word in [40000, port, len, 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(REQUEST);
        packet
    }
}
