//! The mark by which an inner cgroup's program tells the outer ones, which run after it on the same socket, that the
//! decision has been made. The most specific policy wins without any look-up, and no agent needs to keep a list.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_SK_STORAGE_GET_F_CREATE, btf_maps::SkStorage,
    helpers::generated::bpf_sk_storage_get, macros::btf_map, programs::SockContext,
};

#[btf_map]
static DECIDED: SkStorage<u32> = SkStorage::new();

#[inline(always)]
fn storage(ctx: &SockContext, flags: u64) -> bool {
    // SAFETY: sock_create may pass its context as the socket (Linux 5.3); a null value means zeroed.
    let value = unsafe {
        bpf_sk_storage_get((&raw const DECIDED).cast_mut().cast(), ctx.as_ptr(), core::ptr::null_mut(), flags)
    };
    !value.is_null()
}

/// Whether a more specific attachment has decided about this socket. Costs a call and one load when none has.
#[inline(always)]
pub(crate) fn is_marked(ctx: &SockContext) -> bool {
    storage(ctx, 0)
}

/// Marks the socket; false when there is no memory for it.
#[inline(always)]
pub(crate) fn mark(ctx: &SockContext) -> bool {
    storage(ctx, BPF_SK_STORAGE_GET_F_CREATE.into())
}
