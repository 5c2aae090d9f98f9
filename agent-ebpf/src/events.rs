//! Reports what the programs stop, and which process tried, as records in a ring buffer.
//!
//! This code runs only where something is stopped. If events of one kind are too frequent, they are only counted, so they
//! do not fill the ring and cost little. The next reported event of that kind has the count.
//!
//! **Invariant:** reporting decides nothing. The attempt is stopped whether its record is reported, counted or lost.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{LruPerCpuHashMap, RingBuf},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns,
        bpf_skb_load_bytes,
    },
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use steer_common::{
    AttachmentRecord, EventRecord, LimitKey, LimitRecord, PolicyRecord,
    event::{self, NewsRecord},
    record::NAME_BYTES,
};

use crate::policy;

#[btf_map]
static EVENTS: RingBuf<EventRecord, { event::EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
static EVENT_LIMITS: LruPerCpuHashMap<LimitKey, LimitRecord, { event::EVENT_LIMITS as usize }> =
    LruPerCpuHashMap::new();

#[btf_map]
static STOPPED: LruPerCpuHashMap<LimitKey, u64, { event::STOPPED_ENTRIES as usize }> = LruPerCpuHashMap::new();

/// Writes the packet that the agent runs it with into the ring (`BPF_PROG_TEST_RUN`). It is attached to nothing.
#[cgroup_skb(egress)]
#[expect(clippy::cast_possible_truncation, reason = "a few hundred")]
pub fn tell(ctx: SkBuffContext) -> i32 {
    let Some(mut entry) = EVENTS.reserve_untyped::<NewsRecord>(0) else { return 0 };
    // SAFETY: the whole entry, with its length (Linux 4.11).
    let loaded =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, entry.as_mut_ptr().cast(), event::NEWS_BYTES as u32) };
    if loaded == 0 {
        entry.submit(0);
        1
    } else {
        entry.discard(0);
        0
    }
}

/// Counts what the attachment has stopped.
#[inline(always)]
fn count(attachment: &AttachmentRecord, reason: u32) {
    let key = LimitKey { cgroup_id: attachment.cgroup_id, policy: attachment.policy, reason };
    if let Some(count) = STOPPED.get_ptr_mut(key) {
        // SAFETY: this CPU's own element. Another program that interrupts on this CPU may lose one count.
        unsafe { *count += 1 };
    } else {
        STOPPED.insert(key, 1_u64, BPF_NOEXIST.into()).ok();
    }
}

/// Reports and counts that the attachment has stopped something of the cgroup `cgroup_id` for that reason, the index of a counter. `describe`
/// adds details if the event will be reported. The record has the policy's network namespace unless `describe` sets another.
#[inline(always)]
pub(crate) fn report(
    attachment: &AttachmentRecord,
    reason: u32,
    cgroup_id: u64,
    describe: impl FnOnce(&mut EventRecord),
) {
    count(attachment, reason);
    let key = LimitKey { cgroup_id, policy: attachment.policy, reason };
    let Some(limit) = limit(&key) else { return };
    // SAFETY: this CPU's own element, valid while the program runs. Another program on this CPU may interrupt, or the kernel
    // may reuse the element for another key. This adds or loses one event at most.
    let limit = unsafe { &mut *limit };
    // SAFETY: no arguments (Linux 5.8).
    let boottime_ns = unsafe { bpf_ktime_get_boot_ns() };
    if !limit.admits(boottime_ns) {
        limit.unreported += 1;
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        // The ring buffer is full: no process reads it.
        limit.unreported += 1;
        return;
    };
    // SAFETY: all of it is written, and zero is valid in each field.
    let record = unsafe {
        clear(&mut entry);
        entry.assume_init_mut()
    };
    record.boottime_ns = boottime_ns;
    record.unreported = limit.unreported;
    record.cgroup_id = cgroup_id;
    record.policy = attachment.policy;
    record.reason = reason;
    if let Some(policy) = policy::get(attachment.policy) {
        copy_name(&policy.name, &mut record.policy_name);
        record.netns_cookie = policy.netns_cookie;
    }
    describe(record);
    entry.submit(0);
    limit.unreported = 0;
}

/// Writes zeros, by words. A plain assignment becomes a call of `memset`, which writes bytes: the verifier walks each one again.
#[inline(always)]
fn clear(record: &mut MaybeUninit<EventRecord>) {
    let words = record.as_mut_ptr().cast::<u64>();
    for at in 0..size_of::<EventRecord>() / size_of::<u64>() {
        // SAFETY: within the record, which is aligned.
        unsafe { words.add(at).write_volatile(0) };
    }
}

/// Copies the name of a policy, likewise.
#[expect(clippy::cast_ptr_alignment, reason = "both are aligned: see the assertions")]
#[inline(always)]
fn copy_name(from: &[u8; NAME_BYTES], to: &mut [u8; NAME_BYTES]) {
    let (from, to) = (from.as_ptr().cast::<u64>(), to.as_mut_ptr().cast::<u64>());
    for at in 0..NAME_BYTES / size_of::<u64>() {
        // SAFETY: within both names, which are aligned: see the assertions.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

const _: () = assert!(offset_of!(PolicyRecord, name).is_multiple_of(8));
const _: () = assert!(offset_of!(EventRecord, policy_name).is_multiple_of(8));
const _: () = assert!(size_of::<EventRecord>().is_multiple_of(8) && NAME_BYTES.is_multiple_of(8));

/// Adds the calling process. The kernel must allow both helpers in the calling program.
#[expect(clippy::cast_possible_truncation, reason = "sixteen")]
#[inline(always)]
pub(crate) fn add_caller(record: &mut EventRecord) {
    record.pid = pid();
    // SAFETY: the name field of the record, with its length. On failure the field has zeros.
    unsafe { bpf_get_current_comm((&raw mut record.comm).cast(), size_of_val(&record.comm) as u32) };
}

/// The id of the running process.
#[inline(always)]
pub(crate) fn pid() -> u32 {
    // SAFETY: no arguments.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    (pid_tgid >> 32) as u32
}

/// The id of the cgroup of the running process.
#[inline(always)]
pub(crate) fn cgroup_id() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn limit(key: &LimitKey) -> Option<*mut LimitRecord> {
    EVENT_LIMITS.get_ptr_mut(key).or_else(|| {
        // Another CPU may have inserted the element first; that one is used.
        EVENT_LIMITS.insert(key, LimitRecord::default(), BPF_NOEXIST.into()).ok();
        EVENT_LIMITS.get_ptr_mut(key)
    })
}
