//! connect4, connect6, bind4, bind6, sendmsg4, sendmsg6: restore a lost binding or mark before the kernel looks up the route,
//! and redirect DNS queries to the policy's resolver.
//!
//! MPTCP subflows (also those of a listener) and the TCP sockets of AF_SMC never had a binding. A UDP socket loses it by
//! `connect(AF_UNSPEC)`.
//!
//! **Invariant:** a call that would use a link other than the policy's is refused. So is one whose destination is this host,
//! unless the socket can reach it: by the uplink, its payload would leave. A socket with a loopback address sends to no other host.

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use steer_common::{
    AttachmentRecord, CLOSED_IFINDEX, Counter, EventRecord, PolicyRecord, Verdict, decide, is_asked, is_mapped,
    is_settled, is_uplink, observes, policy_flags, uplink::Family, verifier::forget,
};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment,
    destination::{self, Hook},
    dns, events, nesting, notes,
    outcome::{self, Call, EACCES, EADDRNOTAVAIL, EINTR, EINVAL, NO_EVENT, Outcome, Wanted},
    peer, policy, reach,
    rebind::{rebind, remark},
    socket,
    uplink::{self, Held},
};

/// The first interface of every network namespace is its loopback.
const LOOPBACK_IFINDEX: i32 = 1;
/// Policy flags that need the programs of connect and bind, and those of sendmsg.
const RESTORE: u32 = policy_flags::RESTORE | policy_flags::DNS4 | policy_flags::DNS6;
const SEES: u32 = policy_flags::SEES | policy_flags::DNS4 | policy_flags::DNS6;

/// Whether bind and sendmsg may call `bpf_setsockopt` (Linux 5.12). Where they may not, the loader sets 0, and the verifier
/// removes the call. `connect` then binds the socket again.
#[unsafe(no_mangle)]
static REBINDS: Global<u8> = Global::new(1);

/// Whether these programs may choose the error of a refused call (Linux 6.1). Where they may not, the loader sets 0, and the
/// verifier removes the call.
#[unsafe(no_mangle)]
static CHOOSES_ERROR: Global<u8> = Global::new(0);

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

/// Whether the address of a call is this host, whatever addresses its links have.
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

/// A call on a socket, and the policy that acts.
struct Acting<'c> {
    ctx: &'c SockAddrContext,
    hook: Hook,
    call: Call,
    attachment: AttachmentRecord,
    bound: i32,
    /// Whether the call changes nothing, because the policy observes, and the kernel has chosen the route of a datagram already.
    observes: bool,
}

impl Acting<'_> {
    /// Counts, reports and answers, in one place for all outcomes: each copy of this code would be verified for each way to it.
    #[inline(always)]
    fn conclude(&self, outcome: Outcome) -> i32 {
        let event = forget(outcome.event);
        let errno = forget(outcome.errno);
        let allows = forget(outcome.allows.into());
        let passes = event != NO_EVENT && !self.stops(event.into());
        if passes || allows != 0 {
            return ALLOW;
        }
        if errno != 0 {
            set_error(errno.into());
        }
        REFUSE
    }

    /// Counts and reports an event. Whether the call is stopped, if the outcome is that.
    #[inline(always)]
    fn stops(&self, reason: u32) -> bool {
        let (ctx, hook, bound) = (self.ctx, self.hook, self.bound);
        let describe = |record: &mut EventRecord| {
            record.netns_cookie = netns_cookie(ctx);
            record.ifindex = bound;
            record.peer = peer::of_call(ctx, hook);
            events::add_caller(record);
        };
        if let Call::Send = self.call {
            return outcome::stops(&self.attachment, reason, events::cgroup_id(), describe);
        }
        // What is stopped here, is stopped under every policy.
        policy::count_index(self.attachment.policy, reason);
        events::report(&self.attachment, reason, events::cgroup_id(), describe);
        true
    }

    /// Whether the socket has a loopback address, and so reaches this host only, which the policy does not reach.
    #[inline(always)]
    fn stays_on_this_host(&self, policy: &PolicyRecord) -> bool {
        !matches!(self.call, Call::Bind)
            && policy.flags & policy_flags::LOCAL_HOST == 0
            && destination::is_loopback(&socket::address(socket::of(self.ctx), self.hook))
    }

    /// Whether a connection goes to an address of a link of this host, which the policy does not reach. That of the uplink would be
    /// reached, and to others the payload would leave.
    #[inline(always)]
    fn is_own_address(&self, policy: &PolicyRecord) -> bool {
        if !matches!(self.call, Call::Connect) || policy.flags & policy_flags::LOCAL_HOST != 0 {
            return false;
        }
        let address = destination::address(self.ctx, self.hook);
        reach::link_of(policy.netns_cookie, &address) != 0
            && (policy.flags & policy_flags::PASSES == 0
                || !reach::passes(self.attachment.policy, LOOPBACK_IFINDEX.cast_unsigned(), &address))
    }

    /// Whether it is a query that was not redirected, because there is no resolver of its family, or for its member. A resolver on this host
    /// would ask by the host's own routes.
    #[inline(always)]
    fn asks_past_resolver(&self, policy: &PolicyRecord) -> bool {
        !matches!(self.call, Call::Bind)
            && policy.flags & policy_flags::SEES != 0
            && dns::is_unanswered(self.ctx, self.hook, policy)
    }

    /// Whether an exception of the policy refuses the destination. Its route does so, too, but is no event.
    #[inline(always)]
    fn is_refused(&self, policy: &PolicyRecord) -> bool {
        !matches!(self.call, Call::Bind)
            && policy.flags & policy_flags::REFUSES != 0
            && reach::refuses(self.attachment.policy, &destination::address(self.ctx, self.hook))
    }

    /// Whether the program binds its socket to an address of a link by which the policy sends nothing.
    #[inline(always)]
    fn has_foreign_source(&self, policy: &PolicyRecord) -> bool {
        // A TCP socket with a port of its own listens as a rule. `local` reaches it by this address.
        let is_reached = policy.flags & policy_flags::LOCAL_HOST != 0 && destination::is_listener(self.ctx);
        if !matches!(self.call, Call::Bind) || is_reached {
            return false;
        }
        let address = destination::address(self.ctx, self.hook);
        let link = reach::link_of(netns_cookie(self.ctx), &address);
        // An address of loopback is good for any link.
        link != 0
            && link != LOOPBACK_IFINDEX.cast_unsigned()
            && !is_uplink(policy, uplink::group(Some(policy)), link.cast_signed())
            && !reach::passes(self.attachment.policy, link, &address)
    }

    /// Whether the socket reaches this host. A bound socket does not: by the uplink, its payload would leave. One that is bound to
    /// loopback, or connected there before the policy, does.
    #[inline(always)]
    fn reaches_this_host(&self, policy: &PolicyRecord) -> bool {
        policy.flags & policy_flags::LOCAL_HOST != 0
            || self.bound == LOOPBACK_IFINDEX
            || matches!(self.call, Call::Send) && self.bound == 0 && socket::is_connected(socket::of(self.ctx))
    }

    /// Goes on if the destination is allowed, and the socket is as wanted or could be made so.
    #[inline(always)]
    fn settle(&self, wanted: Wanted, policy: &PolicyRecord) -> Outcome {
        let (ctx, bound) = (self.ctx, self.bound);
        let mut event = NO_EVENT;
        if is_this_host(ctx, self.hook, self.call) {
            let refused = Outcome::refused(Counter::StoppedLocal);
            if self.reaches_this_host(policy) {
                if self.asks_past_resolver(policy) {
                    return Outcome::refused(Counter::StoppedDns);
                }
                // A process with CAP_NET_RAW can unbind its socket.
                let is_free = bound == 0 || bound == LOOPBACK_IFINDEX || self.may_change() && rebind(ctx, 0, policy);
                return if is_free { Outcome::ALLOWED } else { refused };
            }
            match self.call {
                Call::Bind if wanted.is_marked => {}
                // Most programs stop if they cannot listen there. The kernel refuses ::1 to a bound socket.
                Call::Bind if is_mapped(&destination::address(ctx, self.hook)) => {
                    event = Counter::UnreachableBind as u8;
                }
                Call::Bind => return Outcome::refused(Counter::UnreachableBind).with_errno(EADDRNOTAVAIL),
                Call::Connect | Call::Send => return refused,
            }
        } else if self.stays_on_this_host(policy) {
            return Outcome::refused(Counter::StoppedLocal).with_errno(EINVAL);
        } else if self.is_own_address(policy) {
            return Outcome::refused(Counter::StoppedLocal);
        } else if self.asks_past_resolver(policy)
            && reach::link_of(policy.netns_cookie, &destination::address(ctx, self.hook)) != 0
        {
            return Outcome::refused(Counter::StoppedDns);
        } else if self.is_refused(policy) {
            return Outcome::refused(Counter::StoppedExcept).with_errno(EACCES);
        }
        let outcome = self.restore(wanted, policy);
        if !outcome.allows {
            return outcome;
        }
        // Late, so that little is verified for each of its answers.
        let is_foreign = event == NO_EVENT && self.has_foreign_source(policy);
        Outcome { event: if is_foreign { Counter::ForeignSource as u8 } else { event }, ..outcome }
    }

    /// Goes on if the socket is as wanted, or could be made so.
    #[inline(always)]
    fn restore(&self, wanted: Wanted, policy: &PolicyRecord) -> Outcome {
        let (ctx, bound) = (self.ctx, self.bound);
        let Wanted { ifindex, mark, is_marked } = wanted;
        let is_done = if is_marked {
            let marked = socket::marked(socket::of(ctx));
            let is_free = bound == 0 || self.is_on_uplink(policy);
            if is_free && mark.is_in(marked) {
                return Outcome::ALLOWED;
            }
            self.may_change()
                && (is_free || rebind(ctx, 0, policy))
                && (mark.is_in(marked) || remark(ctx, mark.set_in(marked)))
        } else if bound == ifindex && !self.has_mark(policy) {
            return Outcome::ALLOWED;
        } else {
            (bound == ifindex || ifindex > 0 || bound == CLOSED_IFINDEX)
                && self.may_change()
                && (bound == ifindex || rebind(ctx, ifindex, policy))
                && self.unmark(policy)
        };
        match (self.call, is_done) {
            // The kernel has chosen the route already. The next datagram takes the right one.
            (Call::Send, true) => Outcome::refused(Counter::StoppedSendmsg).with_errno(EINTR),
            (_, true) => {
                policy::count(self.attachment.policy, Counter::Restored);
                Outcome::ALLOWED
            }
            // A socket with the closed index needs no refusal: the kernel returns ENODEV, or EINVAL from `bind`. One on another member of
            // the group stays there: without a capability, its binding cannot be changed.
            (_, false)
                if bound == CLOSED_IFINDEX || !is_marked && self.is_on_uplink(policy) && !self.has_mark(policy) =>
            {
                Outcome::ALLOWED
            }
            (call, false) => Outcome::refused(call.stopped()),
        }
    }

    /// Whether it is bound to an uplink of the policy.
    #[inline(always)]
    fn is_on_uplink(&self, policy: &PolicyRecord) -> bool {
        is_uplink(policy, uplink::group(Some(policy)), self.bound)
    }

    /// What decides about its line.
    #[inline(always)]
    fn held(&self) -> Held {
        let family = match self.hook {
            Hook::V6 if !is_mapped(&destination::address(self.ctx, self.hook)) => Family::V6,
            Hook::V4 | Hook::V6 => Family::V4,
        };
        Held { bound: self.bound, marked: socket::marked(socket::of(self.ctx)), family }
    }

    /// Whether the socket has the mark of an earlier policy, for which there may be a rule, or none.
    #[inline(always)]
    fn has_mark(&self, policy: &PolicyRecord) -> bool {
        socket::marked(socket::of(self.ctx)) & policy.mark_mask != 0
    }

    /// Clears such a mark.
    #[inline(always)]
    fn unmark(&self, policy: &PolicyRecord) -> bool {
        !self.has_mark(policy) || remark(self.ctx, socket::marked(socket::of(self.ctx)) & !policy.mark_mask)
    }

    /// Whether this call may change the socket. `connect` always may. A datagram may not under a policy that observes.
    #[inline(always)]
    fn may_change(&self) -> bool {
        match self.call {
            Call::Connect => true,
            Call::Bind => REBINDS.load() != 0,
            Call::Send => REBINDS.load() != 0 && !self.observes,
        }
    }
}

/// Chooses the error of the refused call. Without this, it is EPERM.
#[inline(always)]
pub(crate) fn set_error(errno: i32) {
    if CHOOSES_ERROR.load() != 0 {
        // SAFETY: no pointers.
        unsafe { bpf_set_retval(-errno) };
    }
}

/// Restores a lost binding or mark.
#[inline(always)]
fn restore(ctx: &SockAddrContext, hook: Hook, call: Call) -> i32 {
    let Some((attachment, policy)) = acting(ctx, RESTORE) else { return ALLOW };
    let acting = Acting { ctx, hook, call, attachment, bound: socket::bound(socket::of(ctx)), observes: false };
    let netns_cookie = netns_cookie(ctx);
    let address = destination::address(ctx, hook);
    let decides = matches!(call, Call::Connect) && socket::is_tcp(socket::of(ctx));
    let asked = if let (Call::Connect, Some(policy)) = (call, policy) { dns::asked(ctx, hook, policy) } else { None };
    // A bound socket may not leave its member, so its queries go to the resolver there.
    let keeps = asked.is_some() && policy.is_some_and(|policy| policy.flags & policy_flags::ROUTE == 0);
    let to = decides.then_some(&address);
    let (line, member) = uplink::of_held_or_kept(policy, &acting.attachment, &acting.held(), to, keeps);
    let verdict = decide(policy, line, netns_cookie);
    if let Call::Bind = call
        && REBINDS.load() == 0
        && !matches!(verdict, Verdict::Leave(_))
    {
        return ALLOW;
    }
    let wanted = match verdict {
        Verdict::Leave(why) => return leave(ctx, why, netns_cookie),
        Verdict::Refuse(_) => return acting.conclude(Outcome::refused(call.stopped())),
        Verdict::Bind(ifindex) => Wanted::bound(ifindex),
        Verdict::Mark(mark) => Wanted::marked(mark),
        Verdict::Close(_) => Wanted::bound(CLOSED_IFINDEX),
    };
    let Some(policy) = policy else {
        let is_closed = acting.bound == CLOSED_IFINDEX;
        return acting.conclude(if is_closed { Outcome::ALLOWED } else { Outcome::refused(call.stopped()) });
    };
    let outcome = match asked {
        Some(asked) if !dns::redirect(ctx, hook, policy, member, &asked) => Outcome::refused(Counter::StoppedDns),
        _ => acting.settle(wanted.forget(), policy),
    };
    acting.conclude(outcome)
}

/// The kernel reads the output interface and the mark before this hook. What is restored here applies only to the next datagram.
#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let Some((attachment, policy)) = acting(ctx, SEES) else { return ALLOW };
    let socket = socket::of(ctx);
    let observes = forget(observes(policy).into()) != 0;
    let acting = Acting { ctx, hook, call: Call::Send, attachment, bound: socket::bound(socket), observes };
    if is_settled(policy, uplink::group(policy), acting.bound, socket::marked(socket))
        && (policy.is_some_and(|policy| policy.flags & policy_flags::LOCAL_HOST != 0)
            || !is_this_host(ctx, hook, Call::Send) && !destination::is_loopback(&socket::address(socket, hook)))
        && !dns::is_asked(ctx, policy)
        && !policy.is_some_and(|policy| acting.is_refused(policy))
    {
        return ALLOW;
    }
    let netns_cookie = netns_cookie(ctx);
    // This datagram leaves by the member that the socket is on, unless it is marked again, which stops the datagram.
    let keeps = policy.is_some_and(|policy| {
        policy.flags & (policy_flags::ROUTE | policy_flags::GUARD) != policy_flags::ROUTE | policy_flags::GUARD
            && dns::is_asked(ctx, Some(policy))
    });
    let (line, member) = uplink::of_held_or_kept(policy, &acting.attachment, &acting.held(), None, keeps);
    let verdict = decide(policy, line, netns_cookie);
    let wanted = match verdict {
        Verdict::Leave(why) => return leave(ctx, why, netns_cookie),
        Verdict::Refuse(_) => return acting.conclude(Outcome::refused(Counter::StoppedSendmsg)),
        Verdict::Bind(ifindex) => Wanted::bound(ifindex),
        Verdict::Mark(mark) => Wanted::marked(mark),
        Verdict::Close(_) => Wanted::bound(CLOSED_IFINDEX),
    };
    let Some(policy) = policy else {
        let is_closed = acting.bound == CLOSED_IFINDEX;
        return acting.conclude(if is_closed { Outcome::ALLOWED } else { Outcome::refused(Counter::StoppedSendmsg) });
    };
    dns::redirect_datagram(ctx, hook, policy, member);
    if policy.flags & policy_flags::SEES == 0 && !matches!(verdict, Verdict::Close(Counter::ClosedUnknown)) {
        return ALLOW;
    }
    acting.conclude(acting.settle(wanted.forget(), policy))
}
