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
    count_index(slot, counter as u32);
}

/// The same, by the index of the counter.
#[inline(always)]
pub(crate) fn count_index(slot: u32, counter: u32) {
    if let Some(record) = COUNTERS.get_ptr_mut(slot) {
        // The compiler knows the enum's values and would remove the bounds check. The verifier of Linux 6.1 needs it (6.18
        // derives the bound from the branches).
        let index = core::hint::black_box(counter as usize);
        // SAFETY: the slot is this CPU's own. Another program that interrupts on this CPU may lose one count.
        let record = unsafe { &mut *record };
        if let Some(sockets) = record.counts.get_mut(index) {
            *sockets += 1;
        }
    }
}
