//! lsm_cgroup/socket_create: refuses with EPERM sockets that bypass the IP stack, where no other program sees their traffic.
//!
//! The list names the families that pass, because families that the kernel adds later may also bypass the IP stack. The
//! socket does not exist yet, so its network namespace is unknown: a strict policy refuses in every namespace.
//!
//! **Invariant:** a family that is not named here passes only if the policy exempts.

use aya_ebpf::{macros::lsm_cgroup, programs::LsmContext};
use steer_common::{Counter, Kind};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment, events, nesting, policy,
};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_KEY: i32 = 15;
const AF_NETLINK: i32 = 16;
const AF_ALG: i32 = 38;
const AF_KCM: i32 = 41;
const IPPROTO_SMC: i32 = 256;

/// Runs for every `socket` and `socketpair` of a process in an attached cgroup or below it (Linux 6.0, with `bpf` among the
/// active security modules).
#[lsm_cgroup(hook = "socket_create")]
pub fn family(ctx: LsmContext) -> i32 {
    let (family, protocol, kernel): (i32, i32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if kernel != 0 || sends_by_ip_or_nowhere(family, protocol) {
        return ALLOW;
    }
    let attachment = attachment::current();
    if !nesting::decides_for_current(&attachment) {
        return ALLOW;
    }
    match policy::get(attachment.policy).map(|policy| Kind::try_from(policy.kind)) {
        Some(Ok(Kind::Exempt)) => ALLOW,
        Some(Ok(Kind::Steer) | Err(_)) | None => {
            policy::count(attachment.policy, Counter::StoppedFamily);
            events::report(&attachment, Counter::StoppedFamily, events::cgroup_id(), |record| {
                record.netns_cookie = 0;
                events::add_caller(record);
            });
            REFUSE
        }
    }
}

/// Whether the other programs enforce the policy for this family, or its traffic stays on this host.
#[inline(always)]
fn sends_by_ip_or_nowhere(family: i32, protocol: i32) -> bool {
    match family {
        // Shared memory communications (SMC) begin as TCP and switch to RDMA where they can (Linux 6.11).
        AF_INET | AF_INET6 => protocol != IPPROTO_SMC,
        AF_UNIX | AF_NETLINK | AF_KEY | AF_ALG | AF_KCM => true,
        _ => false,
    }
}
