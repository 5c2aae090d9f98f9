//! sock_ops: binds or marks a listener that is neither when it begins to listen.
//!
//! MPTCP makes the socket that listens itself, so `sock_create` does not see it, and `bind` only if the program binds it. A
//! SYN cookie belongs to no socket, so `egress` does not see it: only the listener's binding keeps it on the uplink.
//!
//! **Invariant:** the program binds, and does nothing else. The hook cannot refuse. It runs a few times for each TCP
//! connection, and never for a packet.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock},
    helpers::generated::bpf_get_netns_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use steer_common::{Counter, Verdict, decide, is_asked, policy_flags};

use crate::{
    attachment, nesting, notes, policy,
    rebind::{rebind, remark},
    socket,
    uplink::{self, Held},
};

/// The kernel continues, with its own defaults.
const CONTINUE: u32 = 1;

/// Optional: it needs `bpf_get_netns_cookie` (Linux 5.15).
#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_LISTEN_CB {
        listen(&ctx);
    }
    CONTINUE
}

#[inline(always)]
fn listen(ctx: &SockOpsContext) {
    // SAFETY: an eight byte load of the context (Linux 5.3).
    let socket: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    let attachment = attachment::current();
    if !nesting::decides(&attachment, socket.cast()) {
        return;
    }
    let policy = policy::get(attachment.policy);
    let routed = policy.is_some_and(|policy| policy.flags & policy_flags::ROUTE != 0);
    if !is_asked(policy, policy_flags::GUARD) || !routed && socket::bound(socket) != 0 {
        return;
    }
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let held = Held { bound: 0, marked: socket::marked(socket), family: socket::family_of(socket) };
    let line = uplink::of_held(policy, &attachment, &held, None);
    match (decide(policy, line, netns_cookie), policy) {
        (Verdict::Bind(ifindex), Some(policy)) => {
            if rebind(ctx, ifindex, policy) {
                policy::count(attachment.policy, Counter::Restored);
            }
        }
        (Verdict::Mark(mark), _) => {
            let marked = socket::marked(socket);
            if !mark.is_in(marked) && remark(ctx, mark.set_in(marked)) {
                policy::count(attachment.policy, Counter::Restored);
            }
        }
        (Verdict::Leave(Counter::LeftNetns), _) => notes::set_netns(socket.cast(), netns_cookie),
        (Verdict::Bind(_) | Verdict::Leave(_) | Verdict::Close(_) | Verdict::Refuse(_), _) => {}
    }
}
