//! The mark by which an inner cgroup's program tells the outer ones, which run after it on the same socket, that the
//! decision has been made. The most specific policy wins without any look-up, and no agent needs to keep a list.
//!
//! The mark is in the upper half of the socket's priority, for the length of one run of the chain: the outermost program
//! takes it away again. A field of the context costs a load; socket storage costs a call on every socket, and an
//! allocation on nested ones.
//!
//! **Invariant:** the lower half, which another program or none may have set, is left as it is.

use aya_ebpf::programs::SockContext;

const MARK: u32 = 0x5354_0000;
const UPPER_HALF: u32 = 0xffff_0000;

#[inline(always)]
fn priority(ctx: &SockContext) -> u32 {
    // SAFETY: the verifier allows a four byte load of `priority` in sock_create (Linux 4.16).
    unsafe { (*ctx.sock).priority }
}

#[inline(always)]
fn set_priority(ctx: &SockContext, priority: u32) {
    // SAFETY: the verifier allows a four byte store to `priority` in sock_create (Linux 4.16).
    unsafe { (*ctx.sock).priority = priority };
}

/// Whether a more specific attachment has decided about this socket.
#[inline(always)]
pub(crate) fn is_marked(ctx: &SockContext) -> bool {
    priority(ctx) & UPPER_HALF == MARK
}

/// Marks the socket for the programs that run after this one.
#[inline(always)]
pub(crate) fn mark(ctx: &SockContext) {
    set_priority(ctx, priority(ctx) & !UPPER_HALF | MARK);
}

/// Takes the mark away: no program runs after this one.
#[inline(always)]
pub(crate) fn unmark(ctx: &SockContext) {
    set_priority(ctx, priority(ctx) & !UPPER_HALF);
}
