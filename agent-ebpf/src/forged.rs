//! Packets of raw sockets to this host with the address of another host as their source. The kernel answers that host by the
//! routing table, and its answer belongs to no socket and quotes what was sent.
//!
//! A program with CAP_NET_RAW writes the source itself. Other sockets need an option for a foreign source, which
//! [`crate::option`] refuses.
//!
//! **Invariant:** a packet passes if it comes from its own destination or from a loopback address: the answer stays on this host.

use aya_ebpf::{bindings::bpf_sock, programs::SkBuffContext};

const SOCK_RAW: u32 = 3;
const V4_SOURCE_AT: usize = 12;
const V6_SOURCE_AT: usize = 8;
const V4_BYTES: usize = 4;
const V6_BYTES: usize = 16;

/// Whether the source is neither a loopback address nor the destination. It reads the header without a helper call, for every
/// packet on loopback runs it (Linux 5.0). A packet whose header it cannot read counts as one that is not from this host.
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

/// Whether a program may write the source of this socket's packets itself.
#[inline(always)]
pub(crate) fn is_raw(socket: *mut bpf_sock) -> bool {
    // SAFETY: a four byte load that the verifier allows on every full socket.
    unsafe { (*socket).type_ == SOCK_RAW }
}
