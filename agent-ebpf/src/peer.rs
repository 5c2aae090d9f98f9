//! The peer, as named by the address of a call or the header of a packet. For events only: no decision depends on it.

use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use steer_common::{Peer, mapped};

use crate::destination::{self, Hook};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const FRAGMENT_OFFSET: u16 = 0x1fff;

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
            (address, header.next_header, Some(size_of::<Ipv6Header>()))
        }
        _ => return Peer::default(),
    };
    let protocol = u32::from(protocol);
    let port = match ports_at {
        Some(at) if matches!(protocol, IPPROTO_TCP | IPPROTO_UDP) => {
            let [source, destination] = ctx.load::<[u16; 2]>(at).unwrap_or_default();
            u16::from_be(if incoming { source } else { destination })
        }
        _ => 0,
    };
    Peer { address, port: u32::from(port), protocol }
}
