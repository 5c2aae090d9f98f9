//! Binds the socket of a call to an interface.
//!
//! **Invariant:** the caller has decided that the socket gets this binding.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_setsockopt};
use steer_common::PolicyRecord;

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_BINDTOIFINDEX: i32 = 62;
const INDEX_BYTES: i32 = 4;
const NAME_BYTES: i32 = 16;

/// Binds to an interface, by index (Linux 6.1) or else by name; 0 unbinds. Any process can bind an unbound socket. To
/// rebind a bound socket, the process needs CAP_NET_RAW.
#[inline(always)]
pub(crate) fn rebind(ctx: &impl EbpfContext, mut ifindex: i32, policy: &PolicyRecord) -> bool {
    let index = (&raw mut ifindex).cast();
    // SAFETY: the option's value is four bytes on the stack.
    if unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, index, INDEX_BYTES) } == 0 {
        return true;
    }
    let name = (&raw const policy.interface).cast_mut().cast();
    // SAFETY: the option's value is the start of the name in the policy, which is longer.
    ifindex > 0 && unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, name, NAME_BYTES) } == 0
}
