//! cgroup_skb egress and ingress: stop every packet on a link other than the policy's, whatever its socket is bound to and
//! whenever the socket was made.
//!
//! **Invariant:** packets pass on the uplink, on loopback unless their source is forged, where an exception of the policy lets
//! them, and where a policy leaves the socket alone. A policy that refuses other network namespaces stops their packets on all links
//! (Linux 6.15). Every other packet is stopped and counted, or, under a policy that observes, only counted. On the uplink, queries to another
//! server than the policy's resolver are stopped, too, and what is for this host's loopback addresses or from them.

use aya_ebpf::{
    Global,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use steer_common::{
    AttachmentRecord, COUNTERS, Counter, EventRecord, Kind, PolicyRecord, is_uplink, policy_flags, verifier::forget,
};

use crate::{account, attachment, dns, events, local, nesting, notes, outcome, peer, policy, reach, uplink};

const STOP: i32 = 0;
const PASS: i32 = 1;
/// No counter has this index.
#[expect(clippy::cast_possible_truncation, reason = "they are few")]
const PASSES: u8 = COUNTERS.len() as u8;
/// As [`PASSES`], and the policy accounts for it.
const COUNTED: u8 = PASSES + 1;
/// The first interface of every network namespace is its loopback.
const LOOPBACK_IFINDEX: u32 = 1;

/// Whether this program may read the id and the cgroup of the running process (Linux 6.12). Where it may not, the loader
/// sets 0, and the verifier removes the calls.
#[unsafe(no_mangle)]
static EGRESS_KNOWS_PID: Global<u8> = Global::new(0);

/// Whether it may also read the name of the process (Linux 7.3).
#[unsafe(no_mangle)]
static EGRESS_KNOWS_COMM: Global<u8> = Global::new(0);

/// Whether these programs may read the network namespace of a packet's socket (Linux 6.15). Where they may not, the loader
/// sets 0, and the verifier removes the call.
#[unsafe(no_mangle)]
static GUARD_KNOWS_NETNS: Global<u8> = Global::new(0);

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
    let may_be_forged =
        ifindex == LOOPBACK_IFINDEX && matches!(reason, Counter::StoppedEgress) && local::has_other_source(ctx);
    // A packet on its way out has a socket here. One without would be the kernel's own, which chooses a source of this host.
    let forged = match may_be_forged.then(|| socket(ctx)).flatten() {
        None => Forged::No,
        Some(socket) if local::is_raw(socket) => Forged::Yes,
        Some(_) => Forged::IfForeign,
    };
    if ifindex == LOOPBACK_IFINDEX && matches!(forged, Forged::No) {
        return PASS;
    }
    let attachment = attachment::current();
    let judged = forget(judge(ctx, &attachment, ifindex, forged, &reason));
    // The checks that need a helper call come last; they can only let more packets pass. Interface names of another network
    // namespace have no meaning here. The policy is looked up again, so that the verifier need not know here what was found before.
    if judged == PASSES
        || !nesting::decides_for_packet(&attachment, ctx)
        // Without a socket, the helper would return the cookie of the first network namespace.
        || socket(ctx).is_some_and(|socket| {
            notes::is_left(ctx, &GUARD_KNOWS_NETNS, socket.cast(), policy::get(attachment.policy))
        })
    {
        return PASS;
    }
    let incoming = matches!(reason, Counter::StoppedIngress);
    if judged != COUNTED && stops(ctx, &attachment, judged.into(), ifindex, incoming) {
        return STOP;
    }
    if policy::get(attachment.policy).is_some_and(|policy| policy.flags & policy_flags::ACCOUNT != 0) {
        account::count(ctx, attachment.policy, ifindex, incoming);
    }
    PASS
}

/// Whether a packet on loopback has a source that is not this host's.
#[derive(Clone, Copy)]
enum Forged {
    No,
    Yes,
    /// If this host certainly does not have the address.
    IfForeign,
}

/// Whether the policy stops packets in this direction, or observes them: it does, unless it says that it only accounts for them.
#[inline(always)]
fn is_guarded(policy: &PolicyRecord, reason: &Counter) -> bool {
    let flags = if matches!(reason, Counter::StoppedEgress) { policy_flags::SEES } else { policy_flags::GUARD_INGRESS };
    policy.flags & (flags | policy_flags::ACCOUNT) != policy_flags::ACCOUNT
}

#[inline(always)]
fn passes(policy: &PolicyRecord) -> u8 {
    if policy.flags & policy_flags::ACCOUNT == 0 { PASSES } else { COUNTED }
}

/// Why a packet is stopped, as the index of a [`Counter`], or [`PASSES`] or [`COUNTED`].
#[inline(always)]
fn judge(ctx: &SkBuffContext, attachment: &AttachmentRecord, ifindex: u32, forged: Forged, reason: &Counter) -> u8 {
    const UPLINK: u8 = 1;
    const OTHER: u8 = 2;
    let other_link = *reason as u8;
    let policy = policy::get(attachment.policy);
    if matches!(forged, Forged::IfForeign) {
        let steers = policy.filter(|policy| policy.kind == Kind::Steer as u32 && is_guarded(policy, reason));
        let is_foreign = |cookie| local::source(ctx).is_none_or(|source| reach::is_foreign(cookie, &source));
        return if steers.is_some_and(|policy| is_foreign(policy.netns_cookie)) { other_link } else { PASSES };
    }
    let Some(policy) = policy else { return other_link };
    let by = match Kind::try_from(policy.kind) {
        Ok(Kind::Steer) if !is_guarded(policy, reason) => return passes(policy),
        Ok(Kind::Steer) if matches!(forged, Forged::Yes) => return other_link,
        Ok(Kind::Steer) if is_elsewhere(ctx, policy) => return Counter::RefusedNetns as u8,
        Ok(Kind::Steer) if is_uplink(policy, uplink::group(Some(policy)), ifindex.cast_signed()) => UPLINK,
        Ok(Kind::Steer)
            if policy.flags & policy_flags::PASSES != 0 && is_excepted(ctx, attachment.policy, ifindex, reason) =>
        {
            OTHER
        }
        Ok(Kind::Exempt) => OTHER,
        Ok(Kind::Steer) | Err(_) => return other_link,
    };
    if !matches!(reason, Counter::StoppedEgress) {
        return passes(policy);
    }
    let by_uplink = forget(by) == UPLINK;
    if by_uplink && local::has_loopback(ctx) {
        return Counter::StoppedLocal as u8;
    }
    if dns::is_stray(ctx, policy, ifindex.cast_signed(), by_uplink) {
        Counter::StoppedDns as u8
    } else {
        passes(policy)
    }
}

/// Whether the policy refuses the network namespace of the packet's socket. A link there may have the index of the uplink.
#[inline(always)]
fn is_elsewhere(ctx: &SkBuffContext, policy: &PolicyRecord) -> bool {
    policy.flags & policy_flags::REFUSE_OTHER_NETNS != 0
        && GUARD_KNOWS_NETNS.load() != 0
        && socket(ctx).is_some()
        // SAFETY: the helper takes the program's own context. The loader has found that this kernel has it here.
        && unsafe { bpf_get_netns_cookie(ctx.skb.skb.cast()) } != policy.netns_cookie
}

/// Whether the policy lets the packet pass on a link other than the uplink.
#[inline(always)]
fn is_excepted(ctx: &SkBuffContext, slot: u32, ifindex: u32, reason: &Counter) -> bool {
    let incoming = matches!(reason, Counter::StoppedIngress);
    // The destination in the header may be the first of several.
    if !incoming && peer::may_have_source_route(ctx) {
        return false;
    }
    reach::passes(slot, ifindex, &peer::of_packet(ctx, incoming).address)
}

#[inline(always)]
fn stops(ctx: &SkBuffContext, attachment: &AttachmentRecord, reason: u32, ifindex: u32, incoming: bool) -> bool {
    // SAFETY: the helper takes the program's own context (Linux 4.18 for egress, 5.0 for ingress).
    let of_socket = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    // The socket of a connection that is being opened or closed has no cgroup.
    let cgroup_id = if of_socket == 0 { attachment.cgroup_id } else { of_socket };
    outcome::stops(attachment, reason, cgroup_id, |record| {
        record.ifindex = ifindex.cast_signed();
        record.peer = peer::of_packet(ctx, incoming);
        if !incoming {
            add_sender(record, of_socket);
        }
    })
}

/// Adds the running process if it can be the sender. The kernel also sends on its own (for example a retransmission),
/// while any process runs. That process is probably in a cgroup other than the socket's.
#[inline(always)]
fn add_sender(record: &mut EventRecord, cgroup_id: u64) {
    if EGRESS_KNOWS_PID.load() == 0 || events::cgroup_id() != cgroup_id {
        return;
    }
    if EGRESS_KNOWS_COMM.load() == 0 {
        record.pid = events::pid();
    } else {
        events::add_caller(record);
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
