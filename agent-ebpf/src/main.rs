//! The kernel side: one program per hook, loaded once, attached by `bpf_link` to each cgroup that has a policy.
//!
//! Entry points map one exhaustive `match` to the hook's return value. `steer_common` holds the decision.
//!
//! **Invariant:** a new socket of a steered cgroup is bound to its uplink, marked for it, bound to the closed index, refused, or
//! left alone because its policy requires it. No error path lets it through.
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the entry points that the attribute macros make")]
#![expect(clippy::needless_pass_by_value, reason = "so the macros call them")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a field of a union in a context is one load")]
#![expect(clippy::inline_always, reason = "calls are expensive for the verifier and the CPU")]

mod account;
mod address;
mod answer;
mod attachment;
mod compat;
mod destination;
mod dns;
mod events;
mod family;
mod listen;
mod local;
mod moved;
mod nesting;
mod notes;
mod option;
mod outcome;
mod packet;
mod peer;
mod policy;
mod reach;
mod rebind;
mod runtime;
mod socket;
mod traffic;
mod uplink;

use answer::{ALLOW, REFUSE};
use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext,
};
use aya_log_ebpf::trace;
use steer_common::{AttachmentRecord, CLOSED_IFINDEX, Counter, PolicyRecord, Verdict, decide, policy_flags};

/// Attached briefly, for its map: see [`steer_common::program::ANCHOR`]. It uses a hook that is in use anyway, because the
/// kernel rewrites its code on all CPUs for the first and the last program on a hook. It got a new name when its hook
/// changed, because a pin of the old program cannot be attached here.
#[cgroup_sock(sock_create)]
pub fn create_anchor(_ctx: SockContext) -> i32 {
    core::hint::black_box(attachment::current());
    ALLOW
}

/// Runs for every `socket(AF_INET | AF_INET6, ...)` of a process in an attached cgroup or below it, the innermost
/// attachment first (Linux 4.10; link 5.7).
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let attachment = attachment::current();
    let slot = attachment.policy;
    if !nesting::decides(&attachment, ctx.as_ptr()) {
        policy::count(slot, Counter::LeftNested);
        return ALLOW;
    }
    let policy = policy::get(slot);
    // SAFETY: the helper takes the program's own context (Linux 5.8 for sock_create).
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let line = uplink::of_new(policy, &attachment, socket::family(&ctx));
    let verdict = decide(policy, line, netns_cookie);
    if socket::is_mptcp(&ctx) && verdict.steers() && refuses_mptcp(&ctx, &attachment, policy, netns_cookie) {
        return REFUSE;
    }
    match verdict {
        Verdict::Bind(ifindex) => {
            socket::bind(&ctx, ifindex);
            policy::count(slot, Counter::Bound);
            trace!(&ctx, "policy slot {}: bound to ifindex {}", slot, ifindex);
            ALLOW
        }
        Verdict::Mark(mark) => {
            socket::mark(&ctx, mark);
            let ifindex = line.ifindex;
            let counter = if ifindex > 0 { Counter::Bound } else { Counter::ClosedMissing };
            policy::count(slot, counter);
            if ifindex <= 0 {
                report(&ctx, &attachment, counter, netns_cookie, CLOSED_IFINDEX);
            }
            trace!(&ctx, "policy slot {}: marked {:x} for ifindex {}", slot, mark.value, ifindex);
            ALLOW
        }
        Verdict::Close(reason) => {
            socket::bind(&ctx, CLOSED_IFINDEX);
            policy::count(slot, reason);
            report(&ctx, &attachment, reason, netns_cookie, CLOSED_IFINDEX);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            ALLOW
        }
        Verdict::Leave(reason) => {
            if matches!(reason, Counter::LeftNetns) {
                notes::set_netns(ctx.as_ptr(), netns_cookie);
            }
            policy::count(slot, reason);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            ALLOW
        }
        Verdict::Refuse(reason) => {
            policy::count(slot, reason);
            report(&ctx, &attachment, reason, netns_cookie, 0);
            trace!(&ctx, "policy slot {}: {}", slot, reason.name());
            REFUSE
        }
    }
}

/// Refuses an MPTCP socket under strict: a peer may join its connections by a listener of another cgroup, whose packets leave by any link.
#[inline(always)]
fn refuses_mptcp(
    ctx: &SockContext,
    attachment: &AttachmentRecord,
    policy: Option<&PolicyRecord>,
    netns_cookie: u64,
) -> bool {
    if policy.is_none_or(|policy| policy.flags & policy_flags::SEES == 0) {
        return false;
    }
    let stops = outcome::stops(attachment, Counter::StoppedMptcp as u32, events::cgroup_id(), |record| {
        record.netns_cookie = netns_cookie;
        record.peer.protocol = socket::protocol(ctx);
        events::add_caller(record);
    });
    if stops {
        address::set_error(outcome::ENOPROTOOPT.into());
    }
    stops
}

#[inline(always)]
fn report(ctx: &SockContext, attachment: &AttachmentRecord, reason: Counter, netns_cookie: u64, ifindex: i32) {
    events::report(attachment, reason as u32, events::cgroup_id(), |record| {
        record.netns_cookie = netns_cookie;
        record.ifindex = ifindex;
        record.peer.protocol = socket::protocol(ctx);
        events::add_caller(record);
    });
}
