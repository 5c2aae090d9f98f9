//! fentry/cgroup_attach_task: reports a process that leaves the cgroups of a policy for one that no policy steers. No place
//! keeps a process from that: PID 1 moves any process of a user on the user's request.
//!
//! It runs for every migration between cgroups, of any kind, and for nothing else. The kernel has checked the permission by
//! then, and still has the process in its old cgroup.
//!
//! **Invariant:** it only reads and reports. The sockets of the process belong to the cgroup that it leaves, and stay held.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::HashMap,
    helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_buf},
    macros::{btf_map, fentry},
    programs::FEntryContext,
};
use steer_common::{AttachmentRecord, Counter, Kind, Offsets, STEERED_CGROUPS};

use crate::{events, policy};

#[btf_map]
static STEERED: HashMap<u64, u32, { STEERED_CGROUPS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[unsafe(no_mangle)]
static MOVED_OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_cgroups: 0,
    task_tgid: 0,
    task_comm: 0,
    css_set_cgroup: 0,
    cgroup_root: 0,
    cgroup_node: 0,
    node_id: 0,
    node_parent: 0,
});

/// How many levels upwards an attachment is looked for.
const DEPTH: u32 = 64;

/// The address of a kernel structure.
type Address = *const u8;

/// `int cgroup_attach_task(struct cgroup *dst_cgrp, struct task_struct *leader, bool threadgroup)` (fentry: Linux 5.5; arm64 6.0).
#[fentry(function = "cgroup_attach_task")]
pub fn moved(ctx: FEntryContext) -> i32 {
    let offsets = MOVED_OFFSETS.load();
    report(ctx.arg(0), ctx.arg(1), &offsets);
    0
}

/// `None`: there is nothing to report, or the kernel's memory could not be read.
#[inline(always)]
fn report(to: Address, task: Address, offsets: &Offsets) -> Option<()> {
    let from: Address = read(read(task, offsets.task_cgroups)?, offsets.css_set_cgroup)?;
    // A migration in a hierarchy of version 1 leaves the cgroup2 hierarchy unchanged.
    if read::<Address>(from, offsets.cgroup_root)? != read(to, offsets.cgroup_root)? {
        return None;
    }
    let slot = steered_by(from, offsets)?;
    if is_exempt(slot) || steered_by(to, offsets).is_some_and(|slot| !is_exempt(slot)) {
        return None;
    }
    policy::count(slot, Counter::MovedOut);
    let cgroup_id = read(read(from, offsets.cgroup_node)?, offsets.node_id)?;
    let attachment = AttachmentRecord { policy: slot, ..AttachmentRecord::default() };
    events::report(&attachment, Counter::MovedOut as u32, cgroup_id, |record| {
        record.pid = read(task, offsets.task_tgid).unwrap_or(0);
        // SAFETY: the helper checks the address. On failure the field has zeros.
        let _ = unsafe { bpf_probe_read_kernel_buf(at(task, offsets.task_comm), &mut record.comm) };
    });
    Some(())
}

/// The policy slot of the nearest attachment: of a cgroup or above it.
#[inline(always)]
fn steered_by(cgroup: Address, offsets: &Offsets) -> Option<u32> {
    let mut node: Address = read(cgroup, offsets.cgroup_node)?;
    for _ in 0..DEPTH {
        let id: u64 = read(node, offsets.node_id)?;
        // SAFETY: the value is one word, and it is copied at once.
        if let Some(&slot) = unsafe { STEERED.get(id) } {
            return Some(slot);
        }
        node = read(node, offsets.node_parent)?;
        if node.is_null() {
            break;
        }
    }
    None
}

#[inline(always)]
fn is_exempt(slot: u32) -> bool {
    policy::get(slot).is_some_and(|policy| Kind::try_from(policy.kind) == Ok(Kind::Exempt))
}

#[inline(always)]
fn read<T>(structure: Address, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at(structure, offset).cast()) }.ok()
}

#[inline(always)]
fn at(structure: Address, offset: u32) -> Address {
    structure.wrapping_add(offset as usize)
}
