//! Binds or marks the socket of a call.
//!
//! **Invariant:** the caller has decided that the socket gets this binding or mark.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_setsockopt};
use steer_common::PolicyRecord;

use crate::uplink;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTODEVICE: i32 = 25;
const SO_BINDTOIFINDEX: i32 = 62;
const WORD_BYTES: i32 = 4;
const NAME_BYTES: i32 = 16;

/// Binds to an interface, by index (Linux 6.1) or else by name; 0 unbinds. Any process can bind an unbound socket. To
/// rebind a bound socket, the process needs CAP_NET_RAW.
#[inline(always)]
pub(crate) fn rebind(ctx: &impl EbpfContext, mut ifindex: i32, policy: &PolicyRecord) -> bool {
    let index = (&raw mut ifindex).cast();
    // SAFETY: the option's value is four bytes on the stack.
    if unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, index, WORD_BYTES) } == 0 {
        return true;
    }
    let name = uplink::name(policy, ifindex).cast_mut().cast();
    // SAFETY: the option's value is the start of the name in the policy, which is longer.
    ifindex > 0 && unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, name, NAME_BYTES) } == 0
}

/// Sets the mark. Unlike SO_MARK of a process, this needs no capability.
#[inline(always)]
pub(crate) fn remark(ctx: &impl EbpfContext, mut mark: u32) -> bool {
    // SAFETY: the option's value is four bytes on the stack.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), WORD_BYTES) == 0 }
}
