//! The kernel side: one program per hook, loaded once, attached by `bpf_link` to each cgroup that has a policy.
//!
//! Entry points map one exhaustive `match` to the hook's return value. What to do is decided in `steer_common`.
//!
//! **Invariant:** a socket of a steered cgroup leaves here bound to its uplink, bound to nowhere, refused, or left alone
//! by a policy that says so. There is no error path that lets it through by accident.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the entry points that the attribute macros make")]

mod attachment;
mod decided;
mod policy;
mod socket;

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext,
};
use aya_log_ebpf::trace;
use steer_common::{Counter, Verdict, attachment_flags, decide};

/// `socket()` fails with EPERM.
const REFUSE: i32 = 0;
/// `socket()` goes on.
const ALLOW: i32 = 1;

/// Runs for every `socket(AF_INET | AF_INET6, ...)` of a process in an attached cgroup or below it, of the innermost
/// attachment first (Linux 4.10; link 5.7).
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let attachment = attachment::current();
    let slot = attachment.policy;
    if decided::is_marked(&ctx) {
        policy::count(slot, Counter::LeftNested);
        return ALLOW;
    }
    // SAFETY: the helper takes the program's own context (Linux 5.8 for sock_create).
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let verdict = decide(policy::get(slot), netns_cookie);
    if attachment.flags & attachment_flags::NESTED != 0 && !decided::mark(&ctx) {
        // Without the mark the outer cgroup's policy would take the socket over.
        policy::count(slot, Counter::RefusedMemory);
        return REFUSE;
    }
    match verdict {
        Verdict::Bind(ifindex) => {
            socket::bind(&ctx, ifindex);
            policy::count(slot, Counter::Bound);
            trace!(&ctx, "policy slot {}: bound to ifindex {}", slot, ifindex);
            ALLOW
        }
        Verdict::Close(reason) => {
            socket::bind(&ctx, steer_common::CLOSED_IFINDEX);
            policy::count(slot, reason);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            ALLOW
        }
        Verdict::Leave(reason) => {
            policy::count(slot, reason);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            ALLOW
        }
        Verdict::Refuse(reason) => {
            policy::count(slot, reason);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            REFUSE
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Needed for helpers that the kernel offers to programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
