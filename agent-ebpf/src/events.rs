//! What is stopped is told, too: who tried, as a record in a ring buffer that somebody may read.
//!
//! Nothing of this happens where nothing is stopped. A kind of event that comes too often is counted instead, so that it
//! neither fills the ring nor costs much; the next one that is told has the count.
//!
//! **Invariant:** telling decides nothing. Whether a record is told, counted or lost, the attempt has been stopped.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{LruPerCpuHashMap, RingBuf},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns,
    },
    macros::btf_map,
};
use steer_common::{AttachmentRecord, Counter, EventRecord, LimitKey, LimitRecord, event};

use crate::policy;

#[btf_map]
static EVENTS: RingBuf<EventRecord, { event::EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
static EVENT_LIMITS: LruPerCpuHashMap<LimitKey, LimitRecord, { event::EVENT_LIMITS as usize }> =
    LruPerCpuHashMap::new();

/// Tells that the attachment has stopped something of the cgroup `cgroup_id` for that reason. `describe` adds what else is known,
/// if it is going to be told; the policy's network namespace is taken for the socket's unless it says otherwise.
#[inline(always)]
pub(crate) fn tell(
    attachment: &AttachmentRecord,
    reason: Counter,
    cgroup_id: u64,
    describe: impl FnOnce(&mut EventRecord),
) {
    let key = LimitKey { cgroup_id, policy: attachment.policy, reason: reason as u32 };
    let Some(limit) = limit(&key) else { return };
    // SAFETY: this CPU's own element, there as long as the program runs. A program that runs in between on the same CPU, or the
    // kernel, which may give the element to another key, costs or gives an event, no more.
    let limit = unsafe { &mut *limit };
    // SAFETY: no arguments (Linux 5.8).
    let boottime_ns = unsafe { bpf_ktime_get_boot_ns() };
    if !limit.admits(boottime_ns) {
        limit.unreported += 1;
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        // The ring is full: nobody reads.
        limit.unreported += 1;
        return;
    };
    let record = entry.write(EventRecord::EMPTY);
    record.boottime_ns = boottime_ns;
    record.unreported = limit.unreported;
    record.cgroup_id = cgroup_id;
    record.policy = attachment.policy;
    record.reason = reason as u32;
    if let Some(policy) = policy::get(attachment.policy) {
        record.policy_name = policy.name;
        record.netns_cookie = policy.netns_cookie;
    }
    describe(record);
    entry.submit(0);
    limit.unreported = 0;
}

/// Adds which process makes the call. The kernel must let a program ask for both here.
#[expect(clippy::cast_possible_truncation, reason = "sixteen")]
#[inline(always)]
pub(crate) fn add_caller(record: &mut EventRecord) {
    record.pid = pid();
    // SAFETY: the name's place in the record, with its length. Where it fails it leaves zeros.
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
        // Another CPU may have been faster: its element is as good.
        EVENT_LIMITS.insert(key, LimitRecord::default(), BPF_NOEXIST.into()).ok();
        EVENT_LIMITS.get_ptr_mut(key)
    })
}
