//! Socket options, addresses and route choices that could select another link.
//!
//! **Invariant:** if the option is refused, the attempt ends. Another vector covers an ordinary socket.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried};
use crate::{
    echo::Echo,
    sys::{self, set_socket_option},
};
use socket2::{Protocol, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The mark for which the lab has a rule.
pub const MARK: u32 = 0x5ca9e;
/// The name of the VRF device.
pub const VRF: &str = "vrf0";

impl EscapeArgs {
    pub(super) fn bind_to_device(&self, device: &str) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        socket.bind_device((!device.is_empty()).then_some(device.as_bytes())).at(Step::Option)?;
        self.talk_to(&socket, self.server())
    }

    pub(super) fn bind_to_ifindex(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        let index = self.other_index()?.to_ne_bytes();
        set_socket_option(&socket, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX, &index).at(Step::Option)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// A mark whose rule selects the other link, on an unchanged socket or on a socket without binding.
    pub(super) fn mark(&self, af_unspec: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, &MARK.to_ne_bytes()).at(Step::Option)?;
        if af_unspec {
            self.disconnected(&socket, self.server())?;
        }
        self.talk_to(&socket, self.server())
    }

    /// Since Linux 5.7, binding an unbound socket needs no privilege.
    pub(super) fn bind_to_device_af_unspec(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.disconnected(&socket, self.server())?;
        socket.bind_device(Some(self.other.as_bytes())).at(Step::Option)?;
        self.talk_to(&socket, self.server())
    }

    pub(super) fn bind_to_device_mptcp(&self) -> Tried {
        let socket = self.socket(Type::STREAM, Some(Protocol::MPTCP))?;
        socket.bind_device(Some(self.other.as_bytes())).at(Step::Option)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// A device that stands for several links.
    pub(super) fn vrf(&self) -> Tried {
        if nix::net::if_::if_nametoindex(VRF).is_err() {
            return Err(Halt::Inapplicable(format!("there is no interface {VRF}")));
        }
        self.bind_to_device(VRF)
    }

    pub(super) fn unicast_if(&self, af_unspec: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        if af_unspec {
            self.disconnected(&socket, self.server())?;
        }
        let index = self.other_index()?.to_be_bytes();
        let (level, name) = if self.is_v4() {
            (libc::IPPROTO_IP, libc::IP_UNICAST_IF)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF)
        };
        set_socket_option(&socket, level, name, &index).at(Step::Option)?;
        self.talk_to(&socket, self.server())
    }

    /// The address of the other link as the source.
    pub(super) fn bind_other(&self) -> Tried {
        let socket = self.socket(Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.source, 0).into()).at(Step::Bind)?;
        self.connect(&socket, &self.server().into())?;
        self.talk(&socket)
    }

    /// Without a connection, with one, and after it. The attempt may pause when the socket has its address.
    pub(super) fn bind_other_udp(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        socket.bind(&SocketAddr::new(self.source, 0).into()).at(Step::Bind)?;
        self.pause(Step::Bind)?;
        let sent = self.talk_to(&socket, self.server());
        let connected = self.connect(&socket, &self.server().into()).and_then(|()| self.talk(&socket));
        socket.connect(&sys::unspecified()).at(Step::Disconnect)?;
        self.talk_to(&socket, self.server()).or(connected).or(sent)
    }

    pub(super) fn bind_other_raw(&self) -> Tried {
        let socket = self.icmp_socket(Type::RAW)?;
        socket.bind(&SocketAddr::new(self.source, 0).into()).at(Step::Bind)?;
        let echo = Echo::new(self.is_v4(), 0);
        socket.send_to(echo.request(), &SocketAddr::new(self.server().ip(), 0).into()).at(Step::Send)?;
        self.echo_reply(&socket, &echo, Type::RAW)
    }

    /// A source address that this host does not have.
    pub(super) fn foreign_address(&self, transparent: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let (level, name) = match (self.is_v4(), transparent) {
            (true, false) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
            (true, true) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
            (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
            (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        };
        set_socket_option(&socket, level, name, &1_i32.to_ne_bytes()).at(Step::Option)?;
        // It is in the other link's subnet, and nobody receives the answer.
        let foreign = match self.source {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) + 7)),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) + 7)),
        };
        socket.bind(&SocketAddr::new(foreign, 0).into()).at(Step::Bind)?;
        self.talk_to(&socket, self.server())
    }

    /// The neighbour on the other link as the first hop.
    pub(super) fn source_route(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        match (self.gateway, self.server().ip()) {
            (IpAddr::V4(gateway), IpAddr::V4(server)) => {
                // No-op, LSRR of two addresses from the first one on.
                let mut route = vec![1, 131, 11, 4];
                route.extend(gateway.octets());
                route.extend(server.octets());
                set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &route).at(Step::Option)?;
            }
            (IpAddr::V6(gateway), IpAddr::V6(server)) => {
                // A segment routing header of two segments, the last one first.
                let mut route = vec![0, 4, 4, 1, 1, 0, 0, 0];
                route.extend(server.octets());
                route.extend(gateway.octets());
                set_socket_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &route).at(Step::Option)?;
            }
            _ => {}
        }
        self.talk_to(&socket, self.server())
    }

    /// Directly to the neighbour on the other link, without a router.
    pub(super) fn dont_route(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_DONTROUTE, &1_i32.to_ne_bytes()).at(Step::Option)?;
        self.talk_to(&socket, SocketAddr::new(self.gateway, self.port))
    }

    pub(super) fn broadcast(&self, subnet: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        socket.set_broadcast(true).at(Step::Option)?;
        let to = match self.gateway {
            IpAddr::V4(gateway) if subnet => Ipv4Addr::from(u32::from(gateway) | 0xff),
            _ => Ipv4Addr::BROADCAST,
        };
        self.send(&socket, SocketAddr::new(to.into(), self.port))
    }

    /// Nobody answers there, so the attempt only sends.
    #[expect(clippy::unused_self, reason = "belongs to the attempt")]
    pub(super) fn send(&self, socket: &Socket, to: SocketAddr) -> Tried {
        socket.send_to(REQUEST, &to.into()).at(Step::Send)?;
        Ok("sent".to_owned())
    }
}
