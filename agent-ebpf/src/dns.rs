//! DNS: redirects queries to the policy's resolver, or to that of the member of its group by which they leave. The program sees answers
//! from the server that it asked.
//!
//! Most machines have a resolver on 127.0.0.53. A socket that is bound to an uplink cannot reach it. If it could, that
//! resolver would send the names by the machine's own routes.
//!
//! **Invariant:** only the address is changed, and only for port 53. Whether the query may leave is decided afterwards, by
//! its new address. A query that was not redirected is stopped as a packet, under a strict policy.

use aya_ebpf::{
    macros::cgroup_sock_addr,
    programs::{SkBuffContext, SockAddrContext},
};
use steer_common::{
    AddressWords, Kind, PolicyRecord, is_mapped, policy_flags,
    resolver::{has_resolver, is_resolver, may_ask, resolver},
    uplink::{Family, MEMBERS},
};

use crate::{
    answer::ALLOW,
    attachment,
    destination::{self, Hook},
    nesting, notes, peer, policy, socket, uplink,
};

const PORT: u16 = 53;
const SOCK_STREAM: u32 = 1;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;

/// The family of a server.
#[inline(always)]
fn family(server: &AddressWords) -> Family {
    if is_mapped(server) { Family::V4 } else { Family::V6 }
}

/// Whether the call may be redirected to another server.
#[inline(always)]
pub(crate) fn is_asked(ctx: &SockAddrContext, policy: Option<&PolicyRecord>) -> bool {
    let has_resolver = |policy: &PolicyRecord| policy.flags & (policy_flags::DNS4 | policy_flags::DNS6) != 0;
    policy.is_some_and(has_resolver) && destination::port(ctx) == PORT
}

/// Whether a call is a query that goes to no resolver of the policy, which has one of the other family, or for another member.
#[inline(always)]
pub(crate) fn is_unanswered(ctx: &SockAddrContext, hook: Hook, policy: &PolicyRecord) -> bool {
    let server = destination::address(ctx, hook);
    is_asked(ctx, Some(policy)) && !is_resolver(policy, uplink::group(Some(policy)), family(&server), &server)
}

/// Whether a packet to port 53 that leaves by this link goes to another server than the resolver: from a raw socket, by a source route,
/// or from a socket that was connected before there was a resolver, or on another line. By another link than the uplink, no query leaves
/// but to the resolver.
#[inline(always)]
pub(crate) fn is_stray(ctx: &SkBuffContext, policy: &PolicyRecord, ifindex: i32, by_uplink: bool) -> bool {
    if policy.flags & (policy_flags::DNS4 | policy_flags::DNS6) == 0 || peer::has_other_port(ctx, PORT) {
        return false;
    }
    let peer = peer::of_packet(ctx, false);
    // A packet with more extension headers than are read may be a query.
    let asks = peer.port == u32::from(PORT) || !is_mapped(&peer.address) && peer::is_extension(peer.protocol);
    if !asks {
        return false;
    }
    let group = uplink::group(Some(policy));
    if !by_uplink && !is_resolver(policy, group, family(&peer.address), &peer.address) {
        return true;
    }
    let by_link = group.map_or(MEMBERS, |group| group.member_of(ifindex));
    // By an exception, a packet leaves on a link that is no member. Its mark is that of its socket.
    // SAFETY: a four byte load of the context.
    let member = if by_link < MEMBERS { by_link } else { policy.member_of_mark(unsafe { (*ctx.skb.skb).mark }) };
    !may_ask(policy, group, member, family(&peer.address), &peer.address)
}

/// The server that a call asks, if queries of its family are redirected.
#[inline(always)]
pub(crate) fn asked(ctx: &SockAddrContext, hook: Hook, policy: &PolicyRecord) -> Option<AddressWords> {
    if destination::port(ctx) != PORT {
        return None;
    }
    // SAFETY: four byte loads of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM && protocol != IPPROTO_UDP && protocol != IPPROTO_UDPLITE {
        return None;
    }
    let asked = destination::address(ctx, hook);
    has_resolver(policy, family(&asked)).then_some(asked)
}

/// Redirects a query to the resolver of a member of the group, or to the policy's, and notes the server that the program asked. If there
/// is none, the query goes to that server; false: not under a strict policy, because it is a resolver of another member.
#[inline(always)]
pub(crate) fn redirect(
    ctx: &SockAddrContext,
    hook: Hook,
    policy: &PolicyRecord,
    member: usize,
    asked: &AddressWords,
) -> bool {
    let group = uplink::group(Some(policy));
    let Some(resolver) = resolver(policy, group, member, family(asked)) else {
        let is_strict = policy.flags & policy_flags::GUARD != 0;
        return !is_strict || member >= MEMBERS || may_ask(policy, group, member, family(asked), asked);
    };
    destination::set_address(ctx, hook, &resolver);
    // If the note fails, the answer has the resolver's own address, and the program may reject it.
    notes::remember_asked(socket::of(ctx).cast(), asked);
    true
}

/// The same for a datagram, of which the packet is stopped.
#[inline(always)]
pub(crate) fn redirect_datagram(ctx: &SockAddrContext, hook: Hook, policy: &PolicyRecord, member: usize) {
    let Some(asked) = asked(ctx, hook, policy) else { return };
    // An IPv6 socket connected to a mapped address gets here with every datagram. `connect` has redirected it already.
    let is_redirected = || is_resolver(policy, uplink::group(Some(policy)), family(&asked), &asked);
    if !socket::is_connected(socket::of(ctx)) || !is_redirected() {
        redirect(ctx, hook, policy, member, &asked);
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    rename(&ctx, Hook::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    rename(&ctx, Hook::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    rename(&ctx, Hook::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    rename(&ctx, Hook::V6)
}

/// Replaces the resolver's address with that of the server that the program asked. These hooks may not refuse.
#[inline(always)]
fn rename(ctx: &SockAddrContext, hook: Hook) -> i32 {
    if destination::port(ctx) != PORT {
        return ALLOW;
    }
    let attachment = attachment::current();
    if let Some(policy) = policy::get(attachment.policy)
        && Kind::try_from(policy.kind) == Ok(Kind::Steer)
        && let peer = destination::address(ctx, hook)
        && is_resolver(policy, uplink::group(Some(policy)), family(&peer), &peer)
        && nesting::decides(&attachment, socket::of(ctx).cast())
        && let Some(asked) = notes::asked(socket::of(ctx).cast())
        && is_mapped(&asked) == is_mapped(&peer)
    {
        destination::set_address(ctx, hook, &asked);
    }
    ALLOW
}
