//! The policies and their counters, by slot.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use steer_common::{Counter, CounterRecord, POLICY_SLOTS, PolicyRecord};

#[btf_map]
static POLICIES: Array<PolicyRecord, { POLICY_SLOTS as usize }> = Array::new();

#[btf_map]
static COUNTERS: PerCpuArray<CounterRecord, { POLICY_SLOTS as usize }> = PerCpuArray::new();

/// The policy in `slot`; `None` when there is no such slot.
#[inline(always)]
pub(crate) fn get(slot: u32) -> Option<&'static PolicyRecord> {
    POLICIES.get(slot)
}

/// Counts one socket.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter) {
    if let Some(record) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the slot is this CPU's own. A program that runs in between on the same CPU may cost a count, no more.
        unsafe { (*record).sockets[counter as usize] += 1 };
    }
}
