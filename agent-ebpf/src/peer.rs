//! The peer, as named by the address of a call or the header of a packet: for events, and to recognize queries to name
//! servers.

use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use steer_common::{Peer, mapped};

use crate::destination::{self, Hook};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The IPv6 extension header of a fragment.
const FRAGMENT: u32 = 44;
const FRAGMENT_OFFSET_V6: u16 = 0xfff8;
/// How many of them are read. The protocol of a packet with more is that of the next one.
const EXTENSIONS: usize = 4;

#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total_length_and_id: [u16; 2],
    fragment_be: u16,
    time_to_live: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
struct Ipv6Header {
    version_and_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The destination of a call.
#[inline(always)]
pub(crate) fn of_call(ctx: &SockAddrContext, hook: Hook) -> Peer {
    // SAFETY: a four byte load of the context.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    Peer { address: destination::address(ctx, hook), port: destination::port(ctx).into(), protocol }
}

/// The destination or the source of a packet.
#[inline(always)]
pub(crate) fn of_packet(ctx: &SkBuffContext, incoming: bool) -> Peer {
    // In these hooks a packet begins with its IP header.
    let (address, protocol, ports_at) = match ctx.load::<u8>(0).map(|first| first >> 4) {
        Ok(4) => {
            let Ok(header) = ctx.load::<Ipv4Header>(0) else { return Peer::default() };
            let address = if incoming { header.source } else { header.destination };
            let has_ports = u16::from_be(header.fragment_be) & FRAGMENT_OFFSET == 0;
            let ports_at = has_ports.then_some(usize::from(header.version_and_length & 0x0f) * 4);
            (mapped(address), header.protocol, ports_at)
        }
        Ok(6) => {
            let Ok(header) = ctx.load::<Ipv6Header>(0) else { return Peer::default() };
            let address = if incoming { header.source } else { header.destination };
            let (protocol, ports_at) = transport(ctx, header.next_header);
            (address, protocol, ports_at)
        }
        _ => return Peer::default(),
    };
    let protocol = u32::from(protocol);
    let port = match ports_at {
        Some(at) if matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE) => {
            let [source, destination] = ctx.load::<[u16; 2]>(at).unwrap_or_default();
            u16::from_be(if incoming { source } else { destination })
        }
        _ => 0,
    };
    Peer { address, port: u32::from(port), protocol }
}

/// Whether the packet certainly goes to another port. It reads only usual headers, without a helper call, which would take
/// ten times as long (Linux 5.0).
#[inline(always)]
pub(crate) fn has_other_port(ctx: &SkBuffContext, port: u16) -> bool {
    const V4_WITHOUT_OPTIONS: u8 = 0x45;
    const V4_PORT_AT: usize = size_of::<Ipv4Header>() + size_of::<u16>();
    const V6_PORT_AT: usize = size_of::<Ipv6Header>() + size_of::<u16>();
    const V6_PROTOCOL_AT: usize = 6;
    // SAFETY: four byte loads of the context.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + V4_PORT_AT + size_of::<u16>() > end {
        return false;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let (first, v4_port) =
        unsafe { ((start as *const u8).read(), ((start + V4_PORT_AT) as *const u16).read_unaligned()) };
    if first == V4_WITHOUT_OPTIONS {
        // In a packet without ports or a later fragment this is something else, and a query is not in it.
        return v4_port != port.to_be();
    }
    if first >> 4 != 6 || start + V6_PORT_AT + size_of::<u16>() > end {
        return false;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let (protocol, v6_port) = unsafe {
        (((start + V6_PROTOCOL_AT) as *const u8).read(), ((start + V6_PORT_AT) as *const u16).read_unaligned())
    };
    matches!(protocol.into(), IPPROTO_TCP | IPPROTO_UDP) && v6_port != port.to_be()
}

/// Whether the packet may have a source route: IPv4 options, but for IGMP, or an IPv6 header that can be one or that one can follow.
#[inline(always)]
pub(crate) fn may_have_source_route(ctx: &SkBuffContext) -> bool {
    const IPV4_LENGTH: u8 = 5;
    const IPPROTO_IGMP: u8 = 2;
    match ctx.load::<u8>(0).map(|first| (first >> 4, first & 0x0f)) {
        Ok((4, length)) => {
            length > IPV4_LENGTH && !ctx.load::<Ipv4Header>(0).is_ok_and(|header| header.protocol == IPPROTO_IGMP)
        }
        Ok((6, _)) => ctx.load::<Ipv6Header>(0).is_ok_and(|header| {
            let next = u32::from(header.next_header);
            next != FRAGMENT && is_extension(next)
        }),
        _ => false,
    }
}

/// The transport protocol of an IPv6 packet, and where its header begins, unless it is in an earlier fragment.
#[inline(always)]
fn transport(ctx: &SkBuffContext, mut protocol: u8) -> (u8, Option<usize>) {
    let mut at = size_of::<Ipv6Header>();
    for _ in 0..EXTENSIONS {
        if !is_extension(protocol.into()) {
            break;
        }
        let Ok([next, units, high, low]) = ctx.load::<[u8; 4]>(at) else { return (protocol, None) };
        if u32::from(protocol) == FRAGMENT {
            if u16::from_be_bytes([high, low]) & FRAGMENT_OFFSET_V6 != 0 {
                return (next, None);
            }
            at += 8;
        } else {
            at += (usize::from(units) + 1) * 8;
        }
        protocol = next;
    }
    (protocol, Some(at))
}

/// Whether this is an IPv6 extension header, behind which there is another header.
#[inline(always)]
pub(crate) fn is_extension(protocol: u32) -> bool {
    const HOP_BY_HOP: u32 = 0;
    const ROUTING: u32 = 43;
    const DESTINATION: u32 = 60;
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}
