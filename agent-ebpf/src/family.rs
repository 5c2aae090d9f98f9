//! lsm_cgroup/socket_create: refuses with EPERM sockets that bypass the IP stack, where no other program sees their traffic.
//!
//! The socket does not exist yet, so its network namespace is unknown: a strict policy refuses in every namespace.
//!
//! **Invariant:** a family that `steer_common::family` does not name passes only if the policy exempts, or observes.

use aya_ebpf::{macros::lsm_cgroup, programs::LsmContext};
use steer_common::{Counter, Kind, family};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment, events, nesting, outcome, policy,
};

/// Runs for every `socket` and `socketpair` of a process in an attached cgroup or below it (Linux 6.0, with `bpf` among the
/// active security modules).
#[lsm_cgroup(hook = "socket_create")]
pub fn family(ctx: LsmContext) -> i32 {
    let (family, protocol, kernel): (i32, i32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if kernel != 0 || family::passes(family, protocol) {
        return ALLOW;
    }
    let attachment = attachment::current();
    if !nesting::decides_for_current(&attachment) {
        return ALLOW;
    }
    match policy::get(attachment.policy).map(|policy| Kind::try_from(policy.kind)) {
        Some(Ok(Kind::Exempt)) => ALLOW,
        Some(Ok(Kind::Steer) | Err(_)) | None => {
            let stops = outcome::stops(&attachment, Counter::StoppedFamily as u32, events::cgroup_id(), |record| {
                record.netns_cookie = 0;
                events::add_caller(record);
            });
            if stops { REFUSE } else { ALLOW }
        }
    }
}
