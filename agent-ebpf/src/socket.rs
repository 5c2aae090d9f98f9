//! The raw pointer work on sockets.

use aya_ebpf::{
    bindings::bpf_sock,
    programs::{SockAddrContext, SockContext},
};
use steer_common::{AddressWords, Mark, mapped, uplink::Family};

use crate::destination::Hook;

/// The socket of a call.
#[inline(always)]
pub(crate) fn of(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the hook always has a socket.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// Sets the device the socket is bound to.
#[inline(always)]
pub(crate) fn bind(ctx: &SockContext, ifindex: i32) {
    // SAFETY: the verifier allows a four byte store to `bound_dev_if` in sock_create (Linux 4.10).
    unsafe { (*ctx.sock).bound_dev_if = ifindex.cast_unsigned() };
}

/// The index of the interface a socket is bound to; 0 for none.
///
/// The load is volatile: of this and that of the mark, the compiler would make one with a computed address, which the verifier refuses.
#[inline(always)]
pub(crate) fn bound(socket: *mut bpf_sock) -> i32 {
    // SAFETY: a four byte load that the verifier allows on every full socket.
    unsafe { (&raw const (*socket).bound_dev_if).read_volatile() }.cast_signed()
}

/// Sets the mark of a new socket.
#[inline(always)]
pub(crate) fn mark(ctx: &SockContext, mark: Mark) {
    // SAFETY: the verifier allows four byte loads and stores of `mark` in sock_create (Linux 4.14).
    unsafe { (*ctx.sock).mark = mark.set_in((*ctx.sock).mark) };
}

/// The mark of a socket.
#[inline(always)]
pub(crate) fn marked(socket: *mut bpf_sock) -> u32 {
    // SAFETY: a four byte load that the verifier allows on every full socket (Linux 5.1).
    unsafe { (*socket).mark }
}

/// The socket's own address, of the family of the hook; zero if it has none. A socket with an IPv6 address has 127.0.0.6 for
/// IPv4, with which the kernel sends nothing.
#[inline(always)]
pub(crate) fn address(socket: *mut bpf_sock, hook: Hook) -> AddressWords {
    match hook {
        // SAFETY: a four byte load that the verifier allows on every full socket (Linux 4.17).
        Hook::V4 => mapped(unsafe { (*socket).src_ip4 }),
        Hook::V6 => {
            // SAFETY: likewise.
            let word = |index: usize| unsafe { (*socket).src_ip6[index] };
            [word(0), word(1), word(2), word(3)]
        }
    }
}

/// Whether a datagram socket is connected.
#[inline(always)]
pub(crate) fn is_connected(socket: *mut bpf_sock) -> bool {
    const ESTABLISHED: u32 = 1;
    // SAFETY: a four byte load that the verifier allows on every full socket (Linux 5.1).
    unsafe { (*socket).state == ESTABLISHED }
}

/// The family of a new socket.
#[inline(always)]
pub(crate) fn family(ctx: &SockContext) -> Family {
    const AF_INET: u32 = 2;
    // SAFETY: the verifier allows a four byte load of `family` in sock_create (Linux 4.10).
    if unsafe { (*ctx.sock).family } == AF_INET { Family::V4 } else { Family::V6 }
}

/// The family of a socket.
#[inline(always)]
pub(crate) fn family_of(socket: *mut bpf_sock) -> Family {
    const AF_INET: u32 = 2;
    // SAFETY: a four byte load that the verifier allows on every full socket.
    if unsafe { (*socket).family } == AF_INET { Family::V4 } else { Family::V6 }
}

/// Whether it is a stream: TCP, or MPTCP.
#[inline(always)]
pub(crate) fn is_tcp(socket: *mut bpf_sock) -> bool {
    const SOCK_STREAM: u32 = 1;
    // SAFETY: a four byte load that the verifier allows on every full socket.
    unsafe { (*socket).type_ == SOCK_STREAM }
}

/// Whether a new socket is one of MPTCP.
#[inline(always)]
pub(crate) fn is_mptcp(ctx: &SockContext) -> bool {
    const IPPROTO_MPTCP: u32 = 262;
    protocol(ctx) == IPPROTO_MPTCP
}

/// The transport protocol of a new socket.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockContext) -> u32 {
    // SAFETY: the verifier allows a four byte load of `protocol` in sock_create (Linux 4.16).
    unsafe { (*ctx.sock).protocol }
}
