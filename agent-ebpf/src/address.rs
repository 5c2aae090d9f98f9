//! connect4, connect6, sendmsg4, sendmsg6: a binding that was lost is put back before the route is looked up.
//!
//! MPTCP's subflows and the TCP sockets of AF_SMC never had one; a UDP socket loses it by `connect(AF_UNSPEC)`.
//!
//! **Invariant:** a call that would use another link than the policy's is refused, unless it goes to this host.

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{CLOSED_IFINDEX, Counter, PolicyRecord, Verdict, decide, is_settled};

use crate::{attachment, decider, policy, socket};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_BINDTOIFINDEX: i32 = 62;
const INDEX_BYTES: i32 = 4;
const NAME_BYTES: i32 = 16;

/// Whether `bpf_setsockopt` may be called in sendmsg (Linux 6.1). Where it may not, the loader says 0, and the verifier leaves
/// the call out; the socket is then bound again when it connects.
#[unsafe(no_mangle)]
static SENDMSG_REBINDS: Global<u8> = Global::new(1);

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, is_loopback4(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, is_loopback6(&ctx))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, is_loopback4(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, is_loopback6(&ctx))
}

/// 127.0.0.0/8.
#[inline(always)]
fn is_loopback4(ctx: &SockAddrContext) -> bool {
    // SAFETY: a four byte load that the verifier allows in the IPv4 hooks.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    u32::from_be(address) >> 24 == 127
}

/// ::1 and ::ffff:127.0.0.0/104.
#[inline(always)]
fn is_loopback6(ctx: &SockAddrContext) -> bool {
    // SAFETY: four byte loads that the verifier allows in the IPv6 hooks.
    let word = |index: usize| unsafe { u32::from_be((*ctx.sock_addr).user_ip6[index]) };
    let (high, low) = (word(0) | word(1), (word(2), word(3)));
    high == 0 && (low == (0, 1) || (low.0 == 0xffff && low.1 >> 24 == 127))
}

#[inline(always)]
fn sk(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the hook always has a socket.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// Binds to an interface, by index (Linux 6.1) or else by name; 0 unbinds. An unbound socket can always be bound, a bound
/// one only by a process with CAP_NET_RAW.
#[inline(always)]
fn rebind(ctx: &SockAddrContext, mut ifindex: i32, policy: &PolicyRecord) -> bool {
    let index = (&raw mut ifindex).cast();
    // SAFETY: the option's value is four bytes on the stack.
    if unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, index, INDEX_BYTES) } == 0 {
        return true;
    }
    let name = (&raw const policy.interface).cast_mut().cast();
    // SAFETY: the option's value is the start of the name in the policy, which is longer.
    ifindex > 0 && unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, name, NAME_BYTES) } == 0
}

/// The policy that acts on this call, with its slot; `None` where another attachment does.
#[inline(always)]
fn acting(ctx: &SockAddrContext) -> Option<(u32, Option<&'static PolicyRecord>)> {
    let attachment = attachment::current();
    decider::is(&attachment, sk(ctx)).then(|| (attachment.policy, policy::get(attachment.policy)))
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, policy: Option<&PolicyRecord>) -> Verdict {
    // SAFETY: the helper takes the program's own context (Linux 5.8).
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    decide(policy, netns_cookie)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, loopback: bool) -> i32 {
    let Some((slot, policy)) = acting(ctx) else { return ALLOW };
    let bound = socket::bound(sk(ctx));
    let wanted = match verdict(ctx, policy) {
        Verdict::Leave(_) => return ALLOW,
        Verdict::Refuse(_) => return refuse(slot, Counter::StoppedConnect),
        Verdict::Bind(ifindex) => ifindex,
        Verdict::Close(_) => CLOSED_IFINDEX,
    };
    let Some(policy) = policy else {
        return if bound == CLOSED_IFINDEX { ALLOW } else { refuse(slot, Counter::StoppedConnect) };
    };
    if loopback {
        // Bound, it would not arrive. Where the process may not be unbound, it stays bound.
        if bound != 0 {
            rebind(ctx, 0, policy);
        }
        return ALLOW;
    }
    // The closed index needs no help: the kernel says ENODEV.
    if bound == wanted || bound == CLOSED_IFINDEX && !rebind(ctx, wanted, policy) {
        return ALLOW;
    }
    if bound == CLOSED_IFINDEX || wanted > 0 && rebind(ctx, wanted, policy) {
        policy::count(slot, Counter::Restored);
        return ALLOW;
    }
    refuse(slot, Counter::StoppedConnect)
}

/// The output interface has been read before this hook: a binding that is put back helps the next datagram only.
#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, loopback: bool) -> i32 {
    let Some((slot, policy)) = acting(ctx) else { return ALLOW };
    let bound = socket::bound(sk(ctx));
    if is_settled(policy, bound) {
        return ALLOW;
    }
    let wanted = match verdict(ctx, policy) {
        Verdict::Leave(_) => return ALLOW,
        Verdict::Refuse(_) => return refuse(slot, Counter::StoppedSendmsg),
        Verdict::Bind(ifindex) => ifindex,
        Verdict::Close(_) => CLOSED_IFINDEX,
    };
    if loopback || bound == wanted || bound == CLOSED_IFINDEX {
        return ALLOW;
    }
    if let Some(policy) = policy
        && wanted > 0
        && SENDMSG_REBINDS.load() != 0
    {
        rebind(ctx, wanted, policy);
    }
    refuse(slot, Counter::StoppedSendmsg)
}

#[inline(always)]
fn refuse(slot: u32, reason: Counter) -> i32 {
    policy::count(slot, reason);
    REFUSE
}
