//! The raw pointer work on the socket of a sock_create context.

use aya_ebpf::programs::SockContext;

/// Sets the device the socket is bound to.
#[inline(always)]
pub(crate) fn bind(ctx: &SockContext, ifindex: i32) {
    // SAFETY: the verifier allows a four byte store to `bound_dev_if` in sock_create (Linux 4.10).
    unsafe { (*ctx.sock).bound_dev_if = ifindex.cast_unsigned() };
}
