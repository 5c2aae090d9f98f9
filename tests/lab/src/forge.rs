//! IPv4 packets that no ordinary program sends, sent by a chosen link.
//!
//! **Invariant:** the caller chooses every field that a receiver looks at. The kernel adds checksums of IP only.

use crate::{
    error::{Doing, Result},
    netns::Netns,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

const UDP: u8 = 17;
const UDP_HEADER_BYTES: usize = 8;
/// Units of the fragment offset.
const OFFSET_BYTES: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const PORT_UNREACHABLE: [u8; 8] = [3, 3, 0, 0, 0, 0, 0, 0];

/// A UDP datagram in two fragments, each with its IP header. The first has the ports and the first eight bytes.
pub fn fragments(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> [Vec<u8>; 2] {
    let datagram = udp(from, to, payload);
    let (first, last) = datagram.split_at(UDP_HEADER_BYTES + OFFSET_BYTES);
    let offset = u16::try_from(first.len() / OFFSET_BYTES).unwrap_or_default();
    [ip(*from.ip(), *to.ip(), MORE_FRAGMENTS, first), ip(*from.ip(), *to.ip(), offset, last)]
}

/// The message that a datagram could not be delivered, which quotes it. It goes to the sender of that datagram.
pub fn port_unreachable(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let quoted = ip(*from.ip(), *to.ip(), 0, &udp(from, to, payload));
    let mut message = [&PORT_UNREACHABLE[..], &quoted].concat();
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// Sends a packet that has its IP header.
pub fn send(netns: &Netns, link: &str, packet: &[u8], to: Ipv4Addr) -> Result<()> {
    send_as(netns, link, libc::IPPROTO_RAW, packet, to)
}

/// Sends an ICMP message.
pub fn send_icmp(netns: &Netns, link: &str, message: &[u8], to: Ipv4Addr) -> Result<()> {
    send_as(netns, link, libc::IPPROTO_ICMP, message, to)
}

fn send_as(netns: &Netns, link: &str, protocol: i32, bytes: &[u8], to: Ipv4Addr) -> Result<()> {
    netns
        .run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(protocol)))?;
            socket.bind_device(Some(link.as_bytes()))?;
            socket.send_to(bytes, &SocketAddr::from((to, 0)).into()).map(drop)
        })?
        .doing(|| format!("send a packet by {link} in {netns}"))
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, fragment: u16, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let header =
        [&[0x45, 0][..], &len, &[0x77, 0x77], &fragment, &[64, UDP, 0, 0], &from.octets(), &to.octets()].concat();
    [&header[..], content].concat()
}

/// Without a checksum, which IPv4 allows.
fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(UDP_HEADER_BYTES + payload.len()).unwrap_or(u16::MAX);
    let header = [from.port(), to.port(), len, 0].map(u16::to_be_bytes).concat();
    [&header[..], payload].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or_default()
}
