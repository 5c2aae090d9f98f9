//! Security hooks for calls that run no cgroup/setsockopt program: the 32 bit system call, and io_uring in a ring that was set up
//! by one (`do_sock_setsockopt` skips the program, Linux 5.10 to 6.18).
//!
//! The hooks do not see the value. So what the setsockopt program would judge by its value is refused. As for
//! [`crate::family`], the network namespace is not known: a strict policy refuses in every namespace.
//!
//! **Invariant:** other calls pass. An option that the setsockopt program judges does not pass it unseen.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
    macros::lsm_cgroup,
    programs::LsmContext,
};
use steer_common::{CompatOffsets, Counter, Kind};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment, events, nesting, option, outcome, policy,
};

#[unsafe(no_mangle)]
static COMPAT_OFFSETS: Global<CompatOffsets> =
    Global::new(CompatOffsets { task: 0, task_mask: 0, request_ring: 0, ring: 0, ring_mask: 0 });

/// `socket_setsockopt(struct socket *, int level, int optname)`, by the cgroup of the socket (Linux 6.0).
#[lsm_cgroup(hook = "socket_setsockopt")]
pub fn compat_option(ctx: LsmContext) -> i32 {
    let (level, option): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let offsets = COMPAT_OFFSETS.load();
    if option::value_of(level, option).is_none() || !is_compat_call(&offsets) {
        return ALLOW;
    }
    judge((level, option))
}

/// `uring_cmd(struct io_uring_cmd *)`, by the cgroup of the process (Linux 6.0). The command is the beginning of the request.
#[lsm_cgroup(hook = "uring_cmd")]
pub fn compat_ring(ctx: LsmContext) -> i32 {
    let offsets = COMPAT_OFFSETS.load();
    if is_compat_ring(ctx.arg(0), &offsets) { judge((0, 0)) } else { ALLOW }
}

/// Whether the running process is in a 32 bit system call. If this cannot be read, it counts as one.
#[inline(always)]
fn is_compat_call(offsets: &CompatOffsets) -> bool {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    read::<u32>(task, offsets.task).is_none_or(|word| word & offsets.task_mask != 0)
}

/// Whether the ring of a request was set up by such a call.
#[inline(always)]
fn is_compat_ring(request: *const u8, offsets: &CompatOffsets) -> bool {
    let ring = read::<*const u8>(request, offsets.request_ring);
    ring.and_then(|ring| read::<u8>(ring, offsets.ring)).is_none_or(|byte| u32::from(byte) & offsets.ring_mask != 0)
}

#[inline(always)]
fn judge((level, option): (i32, i32)) -> i32 {
    let attachment = attachment::current();
    if !nesting::decides_for_current(&attachment) {
        return ALLOW;
    }
    match policy::get(attachment.policy).map(|policy| Kind::try_from(policy.kind)) {
        Some(Ok(Kind::Exempt)) => ALLOW,
        Some(Ok(Kind::Steer) | Err(_)) | None => {
            let stops = outcome::stops(&attachment, Counter::StoppedSetsockopt as u32, events::cgroup_id(), |record| {
                record.netns_cookie = 0;
                (record.option_level, record.option) = (level, option);
                events::add_caller(record);
            });
            if stops { REFUSE } else { ALLOW }
        }
    }
}

#[inline(always)]
fn read<T>(structure: *const u8, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(structure.wrapping_add(offset as usize).cast()) }.ok()
}
