//! cgroup_skb egress and ingress: no packet by another link than the policy's, whatever the socket is bound to and whenever
//! it was made.
//!
//! **Invariant:** passes are the uplink, loopback, and what a policy leaves alone; everything else is stopped and counted.

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_sk_fullsock, macros::cgroup_skb, programs::SkBuffContext};
use steer_common::{Counter, Kind};

use crate::{attachment, decider, policy};

const STOP: i32 = 0;
const PASS: i32 = 1;
/// The first interface of every network namespace is its loopback.
const LOOPBACK_IFINDEX: u32 = 1;

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    guard(&ctx, Counter::StoppedEgress)
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    guard(&ctx, Counter::StoppedIngress)
}

#[inline(always)]
fn guard(ctx: &SkBuffContext, reason: Counter) -> i32 {
    // SAFETY: a four byte load of the context.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    if ifindex == LOOPBACK_IFINDEX {
        return PASS;
    }
    let attachment = attachment::current();
    let policy = policy::get(attachment.policy);
    let kind = policy.map(|policy| Kind::try_from(policy.kind));
    let uplink = policy.map_or(0, |policy| policy.ifindex);
    let ours = match kind {
        Some(Ok(Kind::Steer)) => uplink > 0 && ifindex.cast_signed() == uplink,
        Some(Ok(Kind::Exempt)) => true,
        Some(Err(_)) | None => false,
    };
    if !attachment::is_nested(&attachment) {
        if ours {
            return PASS;
        }
        // Only now, for it costs a call: what another network namespace's interface is called says nothing here.
        if let Some(socket) = socket(ctx)
            && decider::is_left(socket)
        {
            return PASS;
        }
        policy::count(attachment.policy, reason);
        return STOP;
    }
    match socket(ctx) {
        Some(socket) if !decider::is(&attachment, socket) => PASS,
        Some(socket) if ours || decider::is_left(socket) => PASS,
        None if ours => PASS,
        Some(_) | None => {
            policy::count(attachment.policy, reason);
            STOP
        }
    }
}

#[inline(always)]
fn socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: an eight byte load of the context.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: a socket that is not null.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() { None } else { Some(socket) }
}
