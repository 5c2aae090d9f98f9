//! Whether an address is near: in a network of a link.
//!
//! **Invariant:** only reads. A link that needs no addresses of neighbours, such as a tunnel, has no network.

use std::net::IpAddr;

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

use crate::model::prefix::Prefix;

/// An address in a network of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// Of one host.
    Host,
    /// Of all hosts.
    Broadcast,
}

/// Where an address is in the networks of this link, in the calling thread's network namespace. `None`: it is not there.
pub fn near(link: &str, to: IpAddr) -> Option<Near> {
    let without = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT | InterfaceFlags::IFF_NOARP;
    let of_link = |interface: &nix::ifaddrs::InterfaceAddress| {
        interface.interface_name == link && !interface.flags.intersects(without)
    };
    let networks = getifaddrs().into_iter().flatten().filter(of_link);
    let mut found = networks.filter_map(|network| {
        if network.broadcast.as_ref().and_then(ip) == Some(to) {
            return Some(Near::Broadcast);
        }
        let len = mask_len(network.netmask.as_ref().and_then(ip)?);
        Prefix::of(network.address.as_ref().and_then(ip)?, len)?.contains(to).then_some(Near::Host)
    });
    found.next()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn mask_len(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    u8::try_from(ones).unwrap_or_default()
}
