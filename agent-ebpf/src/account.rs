//! Counts what the cgroups of a policy send and receive, for policies that ask for it.
//!
//! **Invariant:** only packets that pass are counted, each by the policy that decides about it.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::PerCpuHashMap,
    macros::btf_map,
    programs::SkBuffContext,
};
use steer_common::account::{AccountKey, AccountRecord, ENTRIES};

#[btf_map]
static ACCOUNT: PerCpuHashMap<AccountKey, AccountRecord, { ENTRIES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

/// Counts a packet. One that finds no room in the map is not counted.
#[inline(always)]
pub(crate) fn count(ctx: &SkBuffContext, slot: u32, ifindex: u32, incoming: bool) {
    let key = AccountKey { slot, ifindex };
    let found = ACCOUNT.get_ptr_mut(key).or_else(|| {
        let none = AccountRecord { sent_bytes: 0, sent_packets: 0, received_bytes: 0, received_packets: 0 };
        // Another CPU may have created it.
        let _made = ACCOUNT.insert(key, none, BPF_NOEXIST.into());
        ACCOUNT.get_ptr_mut(key)
    });
    let Some(record) = found else { return };
    // SAFETY: this CPU's own element, valid while the program runs. Another program that interrupts on this CPU may lose a count.
    let record = unsafe { &mut *record };
    // SAFETY: a four byte load of the context (Linux 5.1).
    let segments = u64::from(unsafe { (*ctx.skb.skb).gso_segs }.max(1));
    let bytes = u64::from(ctx.len());
    if incoming {
        record.received_bytes += bytes;
        record.received_packets += segments;
    } else {
        record.sent_bytes += bytes;
        record.sent_packets += segments;
    }
}
