//! What the addresses in a packet's header say of this host.
//!
//! On loopback: a raw socket may write the address of another host as the source. The kernel answers that host by the routing
//! table, and its answer belongs to no socket and quotes what was sent. Other sockets need an option for such a source, which
//! [`crate::option`] refuses, or an address that this host had when they were bound to it: over IPv6, and for corked data over IPv4,
//! the kernel does not look again.
//!
//! On the uplink: the kernel sends there what a bound socket sends to a loopback address, and, over IPv6, from one. The calls of
//! most sockets are refused before ([`crate::address`]). Raw and ping sockets, and UDP-Lite, have calls that run no program.
//!
//! **Invariant:** the header is read without a helper call, for this runs for every packet. One that cannot be read counts as one
//! that is stopped on loopback, and passes on the uplink.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};
use steer_common::{AddressWords, mapped};

const SOCK_RAW: u32 = 3;
const V4_SOURCE_AT: usize = 12;
const V6_SOURCE_AT: usize = 8;
const V4_BYTES: usize = 4;
const V6_BYTES: usize = 16;

/// Whether the source is neither a loopback address nor the destination. Otherwise the answer stays on this host. (Linux 5.0)
#[inline(always)]
pub(crate) fn has_other_source(ctx: &SkBuffContext) -> bool {
    // SAFETY: four byte loads of the context.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + V4_SOURCE_AT + 2 * V4_BYTES > end {
        return true;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let version = unsafe { (start as *const u8).read() } >> 4;
    if version == 4 {
        // SAFETY: likewise.
        let [source, destination] = unsafe { ((start + V4_SOURCE_AT) as *const [u32; 2]).read_unaligned() };
        return source != destination && source.to_ne_bytes()[0] != 127;
    }
    if version != 6 || start + V6_SOURCE_AT + 2 * V6_BYTES > end {
        return true;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let [source, destination] = unsafe { ((start + V6_SOURCE_AT) as *const [[u32; 4]; 2]).read_unaligned() };
    source != destination && source != [0, 0, 0, 1_u32.to_be()]
}

/// The source. (Linux 5.0)
#[inline(always)]
pub(crate) fn source(ctx: &SkBuffContext) -> Option<AddressWords> {
    // SAFETY: four byte loads of the context.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + V4_SOURCE_AT + V4_BYTES > end {
        return None;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let version = unsafe { (start as *const u8).read() } >> 4;
    if version == 4 {
        // SAFETY: likewise.
        return Some(mapped(unsafe { ((start + V4_SOURCE_AT) as *const u32).read_unaligned() }));
    }
    if version != 6 || start + V6_SOURCE_AT + V6_BYTES > end {
        return None;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    Some(unsafe { ((start + V6_SOURCE_AT) as *const AddressWords).read_unaligned() })
}

/// Whether the source or the destination is a loopback address.
#[inline(always)]
pub(crate) fn has_loopback(ctx: &SkBuffContext) -> bool {
    const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
    // SAFETY: four byte loads of the context.
    let (start, end) = unsafe { ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize) };
    if start + V4_SOURCE_AT + 2 * V4_BYTES > end {
        return false;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let version = unsafe { (start as *const u8).read() } >> 4;
    if version == 4 {
        // SAFETY: likewise.
        let ends = unsafe { ((start + V4_SOURCE_AT) as *const [[u8; V4_BYTES]; 2]).read() };
        return ends[0][0] == 127 || ends[1][0] == 127;
    }
    if version != 6 || start + V6_SOURCE_AT + 2 * V6_BYTES > end {
        return false;
    }
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    let [source, destination] = unsafe { ((start + V6_SOURCE_AT) as *const [[u32; 4]; 2]).read_unaligned() };
    source == LOOPBACK_V6 || destination == LOOPBACK_V6
}

/// Whether a program may write the source of this socket's packets itself.
#[inline(always)]
pub(crate) fn is_raw(socket: *mut bpf_sock) -> bool {
    // SAFETY: a four byte load that the verifier allows on every full socket.
    unsafe { (*socket).type_ == SOCK_RAW }
}
