//! connect4, connect6, bind4, bind6, sendmsg4, sendmsg6: restore a lost binding before the kernel looks up the route, and
//! redirect DNS queries to the policy's resolver.
//!
//! MPTCP subflows (also those of a listener) and the TCP sockets of AF_SMC never had a binding. A UDP socket loses it by
//! `connect(AF_UNSPEC)`.
//!
//! **Invariant:** a call that would use a link other than the policy's is refused. So is one whose destination is this host,
//! unless the socket can reach it: by the uplink, its payload would leave.

use aya_ebpf::{
    EbpfContext as _, Global, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{
    AttachmentRecord, CLOSED_IFINDEX, Counter, PolicyRecord, Verdict, decide, is_asked, is_settled, policy_flags,
};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment,
    destination::{self, Hook},
    dns, events, nesting, notes, peer, policy,
    rebind::rebind,
    socket,
};

/// The first interface of every network namespace is its loopback.
const LOOPBACK_IFINDEX: i32 = 1;
/// Policy flags that need the programs of connect and bind, and those of sendmsg.
const RESTORE: u32 = policy_flags::RESTORE | policy_flags::DNS4 | policy_flags::DNS6;
const GUARD: u32 = policy_flags::GUARD | policy_flags::DNS4 | policy_flags::DNS6;

/// Whether bind and sendmsg may call `bpf_setsockopt` (Linux 5.12). Where they may not, the loader sets 0, and the verifier
/// removes the call. `connect` then binds the socket again.
#[unsafe(no_mangle)]
static REBINDS: Global<u8> = Global::new(1);

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Hook::V4, Call::Connect)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Hook::V6, Call::Connect)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Hook::V4, Call::Bind)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    restore(&ctx, Hook::V6, Call::Bind)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Hook::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Hook::V6)
}

/// The attachment and the policy that act on this call. `None` if another attachment acts, or if the policy has none of
/// these flags: the program is then attached only to write the note.
#[inline(always)]
fn acting(ctx: &SockAddrContext, flags: u32) -> Option<(AttachmentRecord, Option<&'static PolicyRecord>)> {
    let attachment = attachment::current();
    let decides = nesting::decides(&attachment, socket::of(ctx).cast());
    let policy = policy::get(attachment.policy);
    (decides && is_asked(policy, flags)).then_some((attachment, policy))
}

/// Leaves the socket of a call alone. A socket of another network namespace may be older than the attachment, or made by
/// the kernel: the guard recognizes it by the note.
#[inline(always)]
fn leave(ctx: &SockAddrContext, why: Counter, netns_cookie: u64) -> i32 {
    if let Counter::LeftNetns = why {
        notes::set_netns(socket::of(ctx).cast(), netns_cookie);
    }
    ALLOW
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context (Linux 5.8).
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// A call with an address.
#[derive(Clone, Copy)]
enum Call {
    /// The socket's own address.
    Bind,
    /// The peer's address.
    Connect,
    /// A datagram's destination.
    Send,
}

impl Call {
    fn stopped(self) -> Counter {
        match self {
            Self::Bind => Counter::StoppedBind,
            Self::Connect => Counter::StoppedConnect,
            Self::Send => Counter::StoppedSendmsg,
        }
    }
}

/// Whether the address of a call is this host. The host's own addresses on links are not known here.
#[inline(always)]
fn is_this_host(ctx: &SockAddrContext, hook: Hook, call: Call) -> bool {
    let address = destination::address(ctx, hook);
    destination::is_loopback(&address)
        || destination::is_unspecified(&address)
            && match call {
                Call::Bind => false,
                Call::Connect => true,
                // A datagram of a connected socket may have no address here, and then no port.
                Call::Send => destination::port(ctx) != 0,
            }
}

/// Whether a socket may use an address of this host. A bound socket does not reach it. A process with CAP_NET_RAW can unbind
/// its socket. A socket that has no binding is bound first, so it reaches this host under the same condition.
#[inline(always)]
fn reaches_this_host(ctx: &SockAddrContext, call: Call, bound: i32, wanted: i32, policy: &PolicyRecord) -> bool {
    let unbinds = |ctx| (bound != 0 || rebind(ctx, wanted, policy)) && rebind(ctx, 0, policy);
    match call {
        // If the process may not unbind it, nobody reaches the socket, and the kernel sends nothing from this address.
        Call::Bind => {
            if bound != 0 {
                rebind(ctx, 0, policy);
            }
            true
        }
        Call::Connect => bound == LOOPBACK_IFINDEX || unbinds(ctx),
        // The route has been chosen by the binding. A connected socket was checked when it was connected.
        Call::Send => {
            let socket = socket::of(ctx);
            bound == LOOPBACK_IFINDEX
                || bound == 0 && (socket::is_connected(socket) || REBINDS.load() != 0 && unbinds(ctx))
        }
    }
}

/// Restores a lost binding.
#[inline(always)]
fn restore(ctx: &SockAddrContext, hook: Hook, call: Call) -> i32 {
    let Some((attachment, policy)) = acting(ctx, RESTORE) else { return ALLOW };
    let bound = socket::bound(socket::of(ctx));
    let netns_cookie = netns_cookie(ctx);
    let verdict = decide(policy, netns_cookie);
    if let Call::Bind = call
        && REBINDS.load() == 0
        && !matches!(verdict, Verdict::Leave(_))
    {
        return ALLOW;
    }
    let wanted = match verdict {
        Verdict::Leave(why) => return leave(ctx, why, netns_cookie),
        Verdict::Refuse(_) => return refuse(ctx, &attachment, call.stopped(), bound, hook),
        Verdict::Bind(ifindex) => ifindex,
        Verdict::Close(_) => CLOSED_IFINDEX,
    };
    let Some(policy) = policy else {
        return if bound == CLOSED_IFINDEX { ALLOW } else { refuse(ctx, &attachment, call.stopped(), bound, hook) };
    };
    if let Call::Connect = call {
        dns::redirect_connection(ctx, hook, policy);
    }
    if is_this_host(ctx, hook, call) {
        return if reaches_this_host(ctx, call, bound, wanted, policy) {
            ALLOW
        } else {
            refuse(ctx, &attachment, Counter::StoppedLocal, bound, hook)
        };
    }
    // A socket with the closed index needs no refusal: the kernel returns ENODEV, or EINVAL from `bind`.
    if bound == wanted || bound == CLOSED_IFINDEX && !rebind(ctx, wanted, policy) {
        return ALLOW;
    }
    if bound == CLOSED_IFINDEX || wanted > 0 && rebind(ctx, wanted, policy) {
        policy::count(attachment.policy, Counter::Restored);
        return ALLOW;
    }
    refuse(ctx, &attachment, call.stopped(), bound, hook)
}

/// The kernel reads the output interface before this hook. A restored binding applies only to the next datagram.
#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let Some((attachment, policy)) = acting(ctx, GUARD) else { return ALLOW };
    let bound = socket::bound(socket::of(ctx));
    if is_settled(policy, bound) && !is_this_host(ctx, hook, Call::Send) && !dns::is_asked(ctx, policy) {
        return ALLOW;
    }
    let netns_cookie = netns_cookie(ctx);
    let verdict = decide(policy, netns_cookie);
    let wanted = match verdict {
        Verdict::Leave(why) => return leave(ctx, why, netns_cookie),
        Verdict::Refuse(_) => return refuse(ctx, &attachment, Call::Send.stopped(), bound, hook),
        Verdict::Bind(ifindex) => ifindex,
        Verdict::Close(_) => CLOSED_IFINDEX,
    };
    if let Some(policy) = policy {
        dns::redirect_datagram(ctx, hook, policy);
        if policy.flags & policy_flags::GUARD == 0 && !matches!(verdict, Verdict::Close(Counter::ClosedUnknown)) {
            return ALLOW;
        }
    }
    if is_this_host(ctx, hook, Call::Send) {
        let reaches = |policy| reaches_this_host(ctx, Call::Send, bound, wanted, policy);
        return if policy.is_some_and(reaches) {
            ALLOW
        } else {
            refuse(ctx, &attachment, Counter::StoppedLocal, bound, hook)
        };
    }
    if bound == wanted || bound == CLOSED_IFINDEX {
        return ALLOW;
    }
    if let Some(policy) = policy
        && wanted > 0
        && REBINDS.load() != 0
    {
        rebind(ctx, wanted, policy);
    }
    refuse(ctx, &attachment, Call::Send.stopped(), bound, hook)
}

#[inline(always)]
fn refuse(ctx: &SockAddrContext, attachment: &AttachmentRecord, reason: Counter, bound: i32, hook: Hook) -> i32 {
    policy::count(attachment.policy, reason);
    events::report(attachment, reason, events::cgroup_id(), |record| {
        record.netns_cookie = netns_cookie(ctx);
        record.ifindex = bound;
        record.peer = peer::of_call(ctx, hook);
        events::add_caller(record);
    });
    REFUSE
}
