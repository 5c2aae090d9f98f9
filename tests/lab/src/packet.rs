//! One captured packet: its kind and its addresses, parsed from the network header on.
//!
//! **Invariant:** no input makes the parser panic or fail. A packet that it cannot parse is still a packet, of kind
//! [`Kind::Other`] or without ports, and counts as traffic. Only packets that the kernel sends without any action of a
//! process are noise.

use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The direction of a packet, seen from the capturing namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Received from the link.
    In,
    /// Sent on the link.
    Out,
}

/// The content of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP, including MPTCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP for IPv4.
    Icmp4,
    /// `ICMPv6` other than neighbour discovery and MLD.
    Icmp6,
    /// ARP.
    Arp,
    /// IPv6 neighbour discovery: `ICMPv6` types 133 to 137.
    Ndp,
    /// IPv4 multicast group membership.
    Igmp,
    /// IPv6 multicast group membership.
    Mld,
    /// Any other protocol; the protocol is 0 unless it is IP.
    Other {
        /// As in the link-layer header.
        ethertype: u16,
        /// As in the IP header.
        protocol: u8,
    },
}

/// One captured packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Packet {
    /// The interface's index at the time of the capture.
    pub ifindex: u32,
    /// The direction.
    pub direction: Direction,
    /// The content.
    pub kind: Kind,
    /// The source; the sender's protocol address for ARP.
    pub src: Option<IpAddr>,
    /// The destination; the requested address for ARP.
    pub dst: Option<IpAddr>,
    /// The source port of TCP and UDP.
    pub src_port: Option<u16>,
    /// The destination port of TCP and UDP.
    pub dst_port: Option<u16>,
    /// The TCP flags, as in the header: 2 opens, 1 and 4 end.
    pub tcp_flags: Option<u8>,
    /// The number of bytes after the transport header, or after the network header if there is no readable transport
    /// header.
    pub payload_len: usize,
    /// The number of sources that an `IGMPv3` or `MLDv2` report names, in all of its records that can be read.
    pub sources: usize,
    noise: bool,
    answer: bool,
}

impl Packet {
    /// Whether the kernel sent this without any action of a process: an MLD report only of groups that belong to IPv6
    /// addresses, a router solicitation, or the probe of duplicate address detection. Other ARP and neighbour
    /// solicitations are not noise. Neither is membership of a group that a process joined.
    pub fn is_kernel_noise(&self) -> bool {
        self.noise
    }

    /// Whether this is the kernel's answer to a packet that no socket claims: a TCP reset, an ICMP error or echo reply,
    /// an ARP reply or neighbour advertisement. No socket sends these, so no binding applies; they follow the routing
    /// table.
    pub fn is_kernel_answer(&self) -> bool {
        self.answer
    }

    /// Parses a packet from its network header on.
    pub(crate) fn parse(ifindex: u32, direction: Direction, ethertype: u16, bytes: &[u8]) -> Self {
        let mut packet = Self {
            ifindex,
            direction,
            kind: Kind::Other { ethertype, protocol: 0 },
            src: None,
            dst: None,
            src_port: None,
            dst_port: None,
            tcp_flags: None,
            payload_len: bytes.len(),
            sources: 0,
            noise: false,
            answer: false,
        };
        let understood = match i32::from(ethertype) {
            libc::ETH_P_IP => packet.ipv4(bytes),
            libc::ETH_P_IPV6 => packet.ipv6(bytes),
            libc::ETH_P_ARP => {
                packet.arp(bytes);
                Some(())
            }
            _ => None,
        };
        // The last parsed field decides about noise, so a truncated packet is never noise.
        packet.noise &= understood.is_some();
        packet
    }

    fn arp(&mut self, bytes: &[u8]) {
        self.kind = Kind::Arp;
        self.payload_len = 0;
        self.src = ipv4_at(bytes, 14);
        self.dst = ipv4_at(bytes, 24);
        self.answer = u16_at(bytes, 6) == Some(ARP_REPLY);
    }

    fn ipv4(&mut self, bytes: &[u8]) -> Option<()> {
        let header_len = usize::from(bytes.first()? & 0x0f) * 4;
        let protocol = *bytes.get(9)?;
        self.kind = Kind::Other { ethertype: 0x0800, protocol };
        self.src = ipv4_at(bytes, 12);
        self.dst = ipv4_at(bytes, 16);
        // A total length of 0 means that the length does not fit into the field.
        let total_len = match usize::from(u16_at(bytes, 2)?) {
            0 => bytes.len(),
            len => len,
        };
        let later_fragment = u16_at(bytes, 6)? & 0x1fff != 0;
        self.transport(protocol, bytes.get(header_len..)?, total_len.saturating_sub(header_len), later_fragment)
    }

    fn ipv6(&mut self, bytes: &[u8]) -> Option<()> {
        const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];
        let mut protocol = *bytes.get(6)?;
        self.kind = Kind::Other { ethertype: 0x86dd, protocol };
        self.src = ipv6_at(bytes, 8);
        self.dst = ipv6_at(bytes, 24);
        let total_len = match usize::from(u16_at(bytes, 4)?) {
            0 => bytes.len(),
            len => len + 40,
        };
        let mut at = 40;
        let mut later_fragment = false;
        while EXTENSIONS.contains(&protocol) && !later_fragment {
            let header = bytes.get(at..)?;
            let fragment = protocol == 44;
            later_fragment = fragment && u16_at(header, 2)? & 0xfff8 != 0;
            at += if fragment { 8 } else { (usize::from(*header.get(1)?) + 1) * 8 };
            protocol = *header.first()?;
            self.kind = Kind::Other { ethertype: 0x86dd, protocol };
        }
        self.transport(protocol, bytes.get(at..)?, total_len.saturating_sub(at), later_fragment)
    }

    fn transport(&mut self, protocol: u8, bytes: &[u8], len: usize, later_fragment: bool) -> Option<()> {
        self.payload_len = len;
        let kind = match i32::from(protocol) {
            libc::IPPROTO_TCP => Kind::Tcp,
            libc::IPPROTO_UDP => Kind::Udp,
            libc::IPPROTO_ICMP if self.src?.is_ipv4() => Kind::Icmp4,
            libc::IPPROTO_IGMP if self.src?.is_ipv4() => Kind::Igmp,
            libc::IPPROTO_ICMPV6 if self.src?.is_ipv6() => Kind::Icmp6,
            _ => return Some(()),
        };
        self.kind = kind;
        if later_fragment {
            return Some(());
        }
        let header_len = match kind {
            Kind::Tcp => usize::from(bytes.get(12)? >> 4) * 4,
            _ => 8,
        };
        self.payload_len = len.saturating_sub(header_len);
        match kind {
            Kind::Tcp | Kind::Udp => {
                self.src_port = u16_at(bytes, 0);
                self.dst_port = u16_at(bytes, 2);
                if kind == Kind::Tcp {
                    let flags = *bytes.get(13)?;
                    (self.tcp_flags, self.answer) = (Some(flags), flags & TCP_RST != 0);
                }
            }
            // Echo reply, destination unreachable, time exceeded, parameter problem.
            Kind::Icmp4 => self.answer = matches!(*bytes.first()?, 0 | 3 | 11 | 12),
            Kind::Icmp6 => self.icmp6(bytes)?,
            Kind::Igmp if *bytes.first()? == IGMP3_REPORT => self.sources = named_sources(bytes, 4),
            _ => {}
        }
        Some(())
    }

    fn icmp6(&mut self, bytes: &[u8]) -> Option<()> {
        let kind = *bytes.first()?;
        // Errors, echo reply, neighbour advertisement.
        self.answer = matches!(kind, 1..=4 | 129 | 136);
        match kind {
            133 => (self.kind, self.noise) = (Kind::Ndp, true),
            135 => (self.kind, self.noise) = (Kind::Ndp, self.src == Some(Ipv6Addr::UNSPECIFIED.into())),
            134 | 136 | 137 => self.kind = Kind::Ndp,
            // MLDv1 report and done.
            131 | 132 => (self.kind, self.noise) = (Kind::Mld, is_solicited_node(bytes, 8)),
            143 => {
                (self.kind, self.sources) = (Kind::Mld, named_sources(bytes, 16));
                self.noise = mld2_names_addresses_only(bytes)?;
            }
            130 => self.kind = Kind::Mld,
            _ => {}
        }
        Some(())
    }
}

const ARP_REPLY: u16 = 2;
const TCP_RST: u8 = 4;
const IGMP3_REPORT: u8 = 0x22;

/// The number of sources in a report. Both families have the same layout, with addresses of other lengths.
fn named_sources(report: &[u8], address_len: usize) -> usize {
    let mut at = 8;
    let mut named = 0;
    for _ in 0..u16_at(report, 6).unwrap_or_default() {
        let (Some(aux_words), Some(sources)) = (report.get(at + 1), u16_at(report, at + 2)) else { break };
        named += usize::from(sources);
        at += 4 + address_len * (1 + usize::from(sources)) + usize::from(*aux_words) * 4;
    }
    named
}

/// Whether every record of an `MLDv2` report is about a group that exists because of an address.
fn mld2_names_addresses_only(report: &[u8]) -> Option<bool> {
    let records = u16_at(report, 6)?;
    let mut at = 8;
    for _ in 0..records {
        let aux_words = usize::from(*report.get(at + 1)?);
        let sources = usize::from(u16_at(report, at + 2)?);
        if !is_solicited_node(report, at + 4) {
            return Some(false);
        }
        at += 20 + sources * 16 + aux_words * 4;
    }
    Some(records > 0)
}

/// Whether the address at `at` is in `ff02::1:ff00:0/104`.
fn is_solicited_node(bytes: &[u8], at: usize) -> bool {
    const PREFIX: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    bytes.get(at..at + 16).is_some_and(|address| address.starts_with(&PREFIX))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?).into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?).into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests;
