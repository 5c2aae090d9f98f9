//! DNS: redirects queries to the policy's resolver. The program sees answers from the server that it asked.
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
use steer_common::{AddressWords, Kind, PolicyRecord, policy_flags};

use crate::{
    answer::ALLOW,
    attachment,
    destination::{self, Hook},
    nesting, notes, peer, policy, socket,
};

const PORT: u16 = 53;
const SOCK_STREAM: u32 = 1;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;

/// The policy's resolver of the same family, if it has one.
#[inline(always)]
fn resolver<'p>(policy: &'p PolicyRecord, asked: &AddressWords) -> Option<&'p AddressWords> {
    if destination::is_mapped(asked) {
        (policy.flags & policy_flags::DNS4 != 0).then_some(&policy.dns4)
    } else {
        (policy.flags & policy_flags::DNS6 != 0).then_some(&policy.dns6)
    }
}

/// Whether the call may be redirected to another server.
#[inline(always)]
pub(crate) fn is_asked(ctx: &SockAddrContext, policy: Option<&PolicyRecord>) -> bool {
    let has_resolver = |policy: &PolicyRecord| policy.flags & (policy_flags::DNS4 | policy_flags::DNS6) != 0;
    policy.is_some_and(has_resolver) && destination::port(ctx) == PORT
}

/// Whether a packet to port 53 goes to another server than the policy's resolver: from a raw socket, by a source route, or
/// from a socket that was connected before the policy had a resolver.
#[inline(always)]
pub(crate) fn is_stray(ctx: &SkBuffContext, policy: &PolicyRecord) -> bool {
    if policy.flags & (policy_flags::DNS4 | policy_flags::DNS6) == 0 || peer::has_other_port(ctx, PORT) {
        return false;
    }
    let peer = peer::of_packet(ctx, false);
    // A packet with more extension headers than are read may be a query.
    let asks =
        peer.port == u32::from(PORT) || !destination::is_mapped(&peer.address) && peer::is_extension(peer.protocol);
    asks && resolver(policy, &peer.address).is_some_and(|resolver| peer.address != *resolver)
}

/// Redirects a connection to a name server to the policy's resolver, and notes the original server.
#[inline(always)]
pub(crate) fn redirect_connection(ctx: &SockAddrContext, hook: Hook, policy: &PolicyRecord) {
    if let Some((asked, resolver)) = query(ctx, hook, policy) {
        redirect(ctx, hook, &asked, resolver);
    }
}

/// The same for a datagram.
#[inline(always)]
pub(crate) fn redirect_datagram(ctx: &SockAddrContext, hook: Hook, policy: &PolicyRecord) {
    if let Some((asked, resolver)) = query(ctx, hook, policy) {
        // An IPv6 socket connected to a mapped address gets here with every datagram. `connect` has redirected it already.
        if asked == *resolver && socket::is_connected(socket::of(ctx)) {
            return;
        }
        redirect(ctx, hook, &asked, resolver);
    }
}

/// The server that the call names, and the resolver to use instead.
#[inline(always)]
fn query<'p>(ctx: &SockAddrContext, hook: Hook, policy: &'p PolicyRecord) -> Option<(AddressWords, &'p AddressWords)> {
    if destination::port(ctx) != PORT {
        return None;
    }
    // SAFETY: four byte loads of the context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM && protocol != IPPROTO_UDP && protocol != IPPROTO_UDPLITE {
        return None;
    }
    let asked = destination::address(ctx, hook);
    Some((asked, resolver(policy, &asked)?))
}

#[inline(always)]
fn redirect(ctx: &SockAddrContext, hook: Hook, asked: &AddressWords, resolver: &AddressWords) {
    destination::set_address(ctx, hook, resolver);
    // If the note fails, the answer has the resolver's own address, and the program may reject it.
    notes::remember_asked(socket::of(ctx).cast(), asked);
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
        && resolver(policy, &peer) == Some(&peer)
        && nesting::decides(&attachment, socket::of(ctx).cast())
        && let Some(asked) = notes::asked(socket::of(ctx).cast())
        && destination::is_mapped(&asked) == destination::is_mapped(&peer)
    {
        destination::set_address(ctx, hook, &asked);
    }
    ALLOW
}
