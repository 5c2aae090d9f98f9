//! Which packets may leave by a link that is not the uplink.
//!
//! **Invariant:** what is not known to be allowed is a leak, a bare acknowledgement, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use steer_lab::{Direction, Kind, Packet};

/// The addresses that the policy `except` reaches by `a0`.
pub const EXCEPTED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 7))];

/// The addresses that the policy `except` refuses.
pub const REFUSED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 8)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 8))];

/// The ports of DHCP, to which the managers send.
const DHCP: [u16; 2] = [67, 547];

/// Whether a packet on another link than the uplink may be one of a policy that must not be there. `a0` is the index of the link of
/// the LAN and of the exceptions; flows to the port `unsteered` are not steered.
pub fn is_leak(packet: &Packet, a0: u32, unsteered: u16) -> bool {
    if packet.direction != Direction::Out || packet.is_kernel_noise() || packet.is_kernel_answer() {
        return false;
    }
    // The managers announce and look up addresses; a packet would follow a look-up of a policy.
    if matches!(packet.kind, Kind::Arp | Kind::Ndp | Kind::Igmp | Kind::Mld) {
        return false;
    }
    let is_for = |ports: &[u16]| packet.dst_port.is_some_and(|port| ports.contains(&port));
    if is_for(&[unsteered]) || packet.kind == Kind::Udp && is_for(&DHCP) {
        return false;
    }
    let is_allowed = packet.ifindex == a0 && packet.dst.is_some_and(|to| EXCEPTED.contains(&to) || is_lan(to));
    !is_allowed
}

/// Whether a packet on the uplink has a destination that a policy does not reach by it.
pub fn is_excepted(packet: &Packet) -> bool {
    packet.direction == Direction::Out
        && !packet.is_kernel_answer()
        && packet.dst.is_some_and(|to| EXCEPTED.contains(&to) || REFUSED.contains(&to))
}

/// Whether the packet may be the kernel's acknowledgement for a connection that has ended. It belongs to no cgroup any more, so only
/// its mark leads it.
pub fn is_late_acknowledgement(packet: &Packet) -> bool {
    const ACK: u8 = 16;
    packet.tcp_flags == Some(ACK) && packet.payload_len == 0
}

/// Whether an address is in the network of `a0`.
fn is_lan(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [10, 0, 0],
        IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 0, 0, 0],
    }
}
