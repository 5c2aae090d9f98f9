//! Multicast routing: the kernel forwards what the program sends by one link to another, and no program sees that copy.
//!
//! **Invariant:** the network namespace is the test's own, so nothing removes the routes before it ends.

use super::{At, EscapeArgs, REQUEST, Step, Tried};
use crate::sys::{self, set_socket_option};
use socket2::{Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};

/// The same numbers in both families.
const MRT_INIT: i32 = 200;
const MRT_ADD_VIF: i32 = 202;
const MRT_ADD_MFC: i32 = 204;
const VIFF_USE_IFINDEX: u8 = 8;
const HOPS: u32 = 8;

impl EscapeArgs {
    pub(super) fn multicast_routing(&self) -> Tried {
        let router = self.socket(
            Type::RAW,
            Some(if self.is_v4() { Protocol::from(libc::IPPROTO_IGMP) } else { Protocol::ICMPV6 }),
        )?;
        let set = |name, value: &[u8]| set_socket_option(&router, self.level(), name, value).at(Step::Option);
        let sender = self.socket(Type::DGRAM, None)?;
        let uplink: i32 = sys::socket_option(&sender, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX).at(Step::Option)?;
        set(MRT_INIT, &1_i32.to_ne_bytes())?;
        set(MRT_ADD_VIF, &self.vif(0, uplink.cast_unsigned()))?;
        set(MRT_ADD_VIF, &self.vif(1, self.other_index()?))?;
        set(MRT_ADD_MFC, &route(self.own_address()?, self.group()))?;
        if self.is_v4() {
            sender.set_multicast_ttl_v4(HOPS).at(Step::Option)?;
        } else {
            sender.set_multicast_hops_v6(HOPS).at(Step::Option)?;
        }
        sender.send_to(REQUEST, &SocketAddr::new(self.group(), self.port).into()).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    /// The address that the program's packets have.
    fn own_address(&self) -> Tried<IpAddr> {
        let socket: Socket = self.socket(Type::DGRAM, None)?;
        self.connect(&socket, &self.server().into())?;
        Ok(socket.local_addr().at(Step::Bind)?.as_socket().map_or(self.any(), |address| address.ip()))
    }

    /// A vifctl or a mif6ctl: number, flags, threshold, and the interface, which for IPv6 comes before the rate limit.
    fn vif(&self, number: u16, index: u32) -> Vec<u8> {
        let (number, index) = (number.to_ne_bytes(), index.to_ne_bytes());
        if self.is_v4() {
            [&number[..], &[VIFF_USE_IFINDEX, 1], &[0; 4], &index, &[0; 4]].concat()
        } else {
            [&number[..], &[0, 1], &index, &[0; 4]].concat()
        }
    }
}

/// An mfcctl or an mf6cctl: origin, group, the interface where it comes in (the first), those where it goes out (the second).
fn route(origin: IpAddr, group: IpAddr) -> Vec<u8> {
    if let (IpAddr::V4(origin), IpAddr::V4(group)) = (origin, group) {
        let mut ttls = [0; 32];
        ttls[1] = 1;
        return [&origin.octets()[..], &group.octets(), &[0; 2], &ttls, &[0; 2], &[0; 16]].concat();
    }
    let address = |ip: IpAddr| {
        let family = u16::try_from(libc::AF_INET6).unwrap_or_default().to_ne_bytes();
        let octets = match ip {
            IpAddr::V6(ip) => ip.octets(),
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        };
        [&family[..], &[0; 6], &octets, &[0; 4]].concat()
    };
    let mut out = [0; 32];
    out[..4].copy_from_slice(&(1_u32 << 1).to_ne_bytes());
    [&address(origin)[..], &address(group), &[0; 4], &out].concat()
}
