//! The raw pointer work on sockets.

use aya_ebpf::{bindings::bpf_sock, programs::SockContext};

/// Sets the device the socket is bound to.
#[inline(always)]
pub(crate) fn bind(ctx: &SockContext, ifindex: i32) {
    // SAFETY: the verifier allows a four byte store to `bound_dev_if` in sock_create (Linux 4.10).
    unsafe { (*ctx.sock).bound_dev_if = ifindex.cast_unsigned() };
}

/// The index of the interface a socket is bound to; 0 for none.
#[inline(always)]
pub(crate) fn bound(socket: *mut bpf_sock) -> i32 {
    // SAFETY: a four byte load that the verifier allows on every full socket.
    unsafe { (*socket).bound_dev_if }.cast_signed()
}

/// The transport protocol of a new socket.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockContext) -> u32 {
    // SAFETY: the verifier allows a four byte load of `protocol` in sock_create (Linux 4.16).
    unsafe { (*ctx.sock).protocol }
}
