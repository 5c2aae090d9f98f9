//! setsockopt: refuses with EPERM every option that would undo the binding or send by another link, and those for a source that
//! this host does not have. Of a mark, the program sets the bits that are not steer's. A program that joins
//! a multicast group without naming a link, or by a link's address, joins it on the uplink. A membership on another link,
//! from before the policy, cannot be changed, because the kernel reports each change there. On loopback, where the policy reaches this
//! host, it can.
//!
//! **Invariant:** the uplink's own index and name pass, and with the route method no binding. Every option that is not named here passes.

use aya_ebpf::{Global, bindings::bpf_sock, macros::cgroup_sockopt, programs::SockoptContext};
use steer_common::{
    AddressWords, AttachmentRecord, Counter, Kind, Mark, PolicyRecord,
    event::KERNEL_NAME_BYTES,
    is_asked, is_uplink, mapped, observes,
    option::{
        IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP, IP_FREEBIND, IP_MSFILTER, IP_TRANSPARENT, IP_UNBLOCK_SOURCE,
        IPV6_ADD_MEMBERSHIP, IPV6_DROP_MEMBERSHIP, IPV6_FREEBIND, IPV6_JOIN_ANYCAST, IPV6_LEAVE_ANYCAST,
        IPV6_TRANSPARENT, MCAST_JOIN_GROUP, MCAST_MSFILTER, MRT_INIT, MRT_LAST, SO_BINDTODEVICE, SO_BINDTOIFINDEX,
        SO_MARK, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, TCP_ULP,
    },
    policy_flags,
    verifier::forget,
};

use crate::{
    answer::{ALLOW, REFUSE},
    attachment, events, nesting, notes, outcome, policy, reach, socket,
    uplink::{self, Held, Name},
};

/// The first interface of every network namespace is its loopback.
const LOOPBACK_IFINDEX: i32 = 1;
const IP_MREQ_BYTES: i32 = 8;
const IP_MREQN_BYTES: i32 = 12;
/// The part of a value that every kernel shows to the program: one page.
const SHOWN_BYTES: i32 = 4096;
/// The first four bytes of a name.
const SMC: i32 = i32::from_ne_bytes(*b"smc\0");

/// Whether this program may read which process calls (Linux 6.1). Where it may not, the loader sets 0, and the verifier
/// removes the calls.
#[unsafe(no_mangle)]
static SETSOCKOPT_KNOWS_TASK: Global<u8> = Global::new(0);

/// Whether it may read the network namespace of the socket (Linux 5.15). Likewise.
#[unsafe(no_mangle)]
static SETSOCKOPT_KNOWS_NETNS: Global<u8> = Global::new(0);

/// What the option's value holds.
pub(crate) enum Value {
    /// The index of the interface to bind to.
    Index,
    /// Its name.
    Name,
    /// A group, and where in the value the interface index is. Index 0: the kernel selects the interface.
    Group(Index),
    /// The protocol to put on top of TCP.
    UpperLayer,
    /// The mark of the socket.
    Mark,
    /// Whether the socket may have a source that this host does not have.
    Source,
    /// A value that cannot name the uplink.
    Other,
}

/// Where the index is in the value of a group option.
pub(crate) enum Index {
    /// group_req, group_source_req, group_filter.
    AtStart,
    /// ip_mreqn. The shorter ip_mreq is its beginning.
    BehindAddresses,
    /// ipv6_mreq.
    BehindGroup,
}

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: four byte loads of the context.
    let (level, option) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let Some(value) = value_of(level, option) else {
        if !is_whole(&ctx) {
            // Pass the value unchanged. Before Linux 6.5 the kernel rejects a length that exceeds what it has shown.
            set_len(&ctx, 0);
        }
        return ALLOW;
    };
    // SAFETY: the hook always has a socket.
    let socket: *mut bpf_sock = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    let attachment = attachment::current();
    let policy = policy::get(attachment.policy);
    if !nesting::decides(&attachment, socket.cast())
        || !is_asked(policy, policy_flags::SEES)
        || notes::is_left(&ctx, &SETSOCKOPT_KNOWS_NETNS, socket.cast(), policy)
    {
        return ALLOW;
    }
    let allowed = match policy {
        Some(policy) => match Kind::try_from(policy.kind) {
            Ok(Kind::Exempt) => true,
            // The kernel would read a value that is not completely shown a second time. It may have changed by then.
            Ok(Kind::Steer) => is_whole(&ctx) && is_allowed(&ctx, &value, &attachment, policy),
            Err(_) => false,
        },
        None => false,
    };
    // The policy is looked up again, so that the verifier need not know here what was found before.
    if forget(allowed.into()) == 0 && stops(&ctx, &attachment, (level, option), &value) {
        return REFUSE;
    }
    if observes(policy::get(attachment.policy)) {
        // As without this program: the caller's value, whole and unchanged.
        set_len(&ctx, 0);
    }
    ALLOW
}

/// What the value of an option holds; `None`: the option passes.
#[inline(always)]
pub(crate) fn value_of(level: i32, option: i32) -> Option<Value> {
    Some(match (level, option) {
        (SOL_SOCKET, SO_BINDTODEVICE) => Value::Name,
        (SOL_SOCKET, SO_BINDTOIFINDEX) => Value::Index,
        (SOL_IP | SOL_IPV6, MCAST_JOIN_GROUP..=MCAST_MSFILTER) => Value::Group(Index::AtStart),
        (SOL_IP, IP_ADD_MEMBERSHIP | IP_DROP_MEMBERSHIP) => Value::Group(Index::BehindAddresses),
        (SOL_IPV6, IPV6_ADD_MEMBERSHIP | IPV6_DROP_MEMBERSHIP | IPV6_JOIN_ANYCAST | IPV6_LEAVE_ANYCAST) => {
            Value::Group(Index::BehindGroup)
        }
        (SOL_SOCKET, SO_MARK) => Value::Mark,
        (SOL_TCP, TCP_ULP) => Value::UpperLayer,
        (SOL_IP, IP_FREEBIND | IP_TRANSPARENT) | (SOL_IPV6, IPV6_FREEBIND | IPV6_TRANSPARENT) => Value::Source,
        // The options of one source name a link by its address only. A multicast router forwards to other links what the
        // uplink sends.
        (SOL_IP, IP_UNBLOCK_SOURCE..=IP_MSFILTER) | (SOL_IP | SOL_IPV6, MRT_INIT..=MRT_LAST) => Value::Other,
        _ => return None,
    })
}

#[inline(always)]
fn stops(ctx: &SockoptContext, attachment: &AttachmentRecord, (level, option): (i32, i32), value: &Value) -> bool {
    outcome::stops(attachment, Counter::StoppedSetsockopt as u32, events::cgroup_id(), |record| {
        (record.option_level, record.option) = (level, option);
        record.ifindex = match value {
            Value::Index | Value::Group(Index::AtStart) => word::<0>(ctx),
            Value::Group(Index::BehindAddresses) => word::<8>(ctx),
            Value::Group(Index::BehindGroup) => word::<16>(ctx),
            Value::Name | Value::UpperLayer | Value::Mark | Value::Source | Value::Other => None,
        }
        .unwrap_or(0);
        if let Value::Name = value {
            copy_name(ctx, &mut record.interface);
        }
        if SETSOCKOPT_KNOWS_TASK.load() != 0 {
            events::add_caller(record);
        }
    })
}

/// Copies the name in the value up to its end, as the kernel does. The last byte of `name` stays unchanged.
#[inline(always)]
fn copy_name(ctx: &SockoptContext, name: &mut [u8; KERNEL_NAME_BYTES]) {
    let (start, end) = bounds(ctx);
    for (at, byte) in name.iter_mut().enumerate().take(KERNEL_NAME_BYTES - 1) {
        if start + at + 1 > end {
            break;
        }
        // SAFETY: within the bounds that were just compared, as the verifier requires.
        *byte = unsafe { ((start + at) as *const u8).read() };
        if *byte == 0 {
            break;
        }
    }
}

/// Where the value begins and ends.
#[inline(always)]
fn bounds(ctx: &SockoptContext) -> (usize, usize) {
    // SAFETY: eight byte loads of the context.
    unsafe { ((*ctx.sockopt).__bindgen_anon_2.optval as usize, (*ctx.sockopt).__bindgen_anon_3.optval_end as usize) }
}

#[inline(always)]
fn is_allowed(ctx: &SockoptContext, value: &Value, attachment: &AttachmentRecord, policy: &PolicyRecord) -> bool {
    match value {
        Value::Index => match word::<0>(ctx) {
            Some(0) => policy.flags & policy_flags::ROUTE != 0,
            named => is_uplink(policy, uplink::group(Some(policy)), named.unwrap_or(0)),
        },
        Value::Name => policy.flags & policy_flags::ROUTE != 0 && is_empty(ctx) || names(ctx, policy),
        // The kernel checks the program's capability afterwards.
        Value::Mark => {
            let line = uplink::of_held(Some(policy), attachment, &held(ctx), None);
            let wanted = Mark { value: line.mark, mask: policy.mark_mask };
            word::<0>(ctx).is_some_and(|mark| set_word::<0>(ctx, wanted.set_in(mark.cast_unsigned()).cast_signed()))
        }
        Value::Group(index)
            if policy.flags & policy_flags::LOCAL_DISCOVERY != 0 && is_found_on(ctx, index, attachment)
                || policy.flags & policy_flags::LOCAL_HOST != 0 && is_on_loopback(ctx, index) =>
        {
            true
        }
        Value::Group(index) => is_group_allowed(ctx, index, uplink::current(policy, attachment, &held(ctx))),
        // Shared memory communications (SMC) switch to RDMA where they can.
        Value::UpperLayer => word::<0>(ctx) != Some(SMC),
        // The kernel answers a datagram to this host at its source, by the routing table.
        Value::Source => word::<0>(ctx) == Some(0) || is_checked_when_sent(ctx),
        Value::Other => false,
    }
}

/// Whether the group is on the uplink, which may be missing.
#[inline(always)]
fn is_group_allowed(ctx: &SockoptContext, index: &Index, uplink: i32) -> bool {
    if uplink <= 0 {
        return false;
    }
    match index {
        Index::AtStart => is_on::<0>(ctx, uplink),
        Index::BehindAddresses if (IP_MREQ_BYTES..IP_MREQN_BYTES).contains(&len(ctx)) => {
            // The buffer is large enough: the kernel shows at least sixteen bytes (Linux 5.3).
            set_len(ctx, IP_MREQN_BYTES);
            set_word::<8>(ctx, uplink)
        }
        Index::BehindAddresses => is_on::<8>(ctx, uplink),
        Index::BehindGroup => is_on::<16>(ctx, uplink),
    }
}

/// Whether the group is on loopback. If the value names it by its address, sets the index: other links can have such addresses.
#[inline(always)]
fn is_on_loopback(ctx: &SockoptContext, index: &Index) -> bool {
    let has_index = match index {
        Index::AtStart => return word::<0>(ctx) == Some(LOOPBACK_IFINDEX),
        Index::BehindGroup => return word::<16>(ctx) == Some(LOOPBACK_IFINDEX),
        Index::BehindAddresses => len(ctx) >= IP_MREQN_BYTES,
    };
    match word::<8>(ctx) {
        Some(LOOPBACK_IFINDEX) if has_index => true,
        Some(named) if has_index && named != 0 => false,
        _ if len(ctx) < IP_MREQ_BYTES || word::<4>(ctx).unwrap_or(0).to_ne_bytes()[0] != 127 => false,
        _ => {
            // The buffer is large enough: the kernel shows at least sixteen bytes (Linux 5.3).
            set_len(ctx, IP_MREQN_BYTES);
            set_word::<8>(ctx, LOOPBACK_IFINDEX)
        }
    }
}

/// What decides about the line of the socket.
#[inline(always)]
fn held(ctx: &SockoptContext) -> Held {
    // SAFETY: the hook always has a socket.
    let socket: *mut bpf_sock = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    Held { bound: socket::bound(socket), marked: socket::marked(socket), family: socket::family_of(socket) }
}

/// Whether the kernel sends nothing from a source that this host does not have, as it does for `IP_FREEBIND` of an IPv4 socket.
#[inline(always)]
fn is_checked_when_sent(ctx: &SockoptContext) -> bool {
    const AF_INET: u32 = 2;
    // SAFETY: four byte loads of the context, which always has a socket, and of the socket.
    unsafe { (*ctx.sockopt).optname == IP_FREEBIND && (*(*ctx.sockopt).__bindgen_anon_1.sk).family == AF_INET }
}

/// Whether the group is on the uplink. If the value names no interface, sets the uplink.
#[inline(always)]
fn is_on<const AT: usize>(ctx: &SockoptContext, uplink: i32) -> bool {
    match word::<AT>(ctx) {
        Some(0) => set_word::<AT>(ctx, uplink),
        named => named == Some(uplink),
    }
}

/// Whether the group is one that the policy joins on other links, and the value names such a link.
#[inline(always)]
fn is_found_on(ctx: &SockoptContext, index: &Index, attachment: &AttachmentRecord) -> bool {
    const AF_INET: i32 = 2;
    // Values that are there in any case keep the compiler from reading registers that the verifier does not let it read.
    let (mut ifindex, mut group) = (0, [0; 4]);
    match index {
        // A value without an index is shorter, and shown with more bytes than it has.
        Index::BehindAddresses if len(ctx) >= IP_MREQN_BYTES => {
            ifindex = word::<8>(ctx).unwrap_or(0);
            group = mapped(word::<0>(ctx).unwrap_or(0).cast_unsigned());
        }
        Index::BehindAddresses => {}
        Index::BehindGroup => {
            ifindex = word::<16>(ctx).unwrap_or(0);
            group = address::<0>(ctx);
        }
        // A sockaddr follows at the next multiple of eight: family and port, and for IPv6 the flow, come before the address.
        Index::AtStart => {
            ifindex = word::<0>(ctx).unwrap_or(0);
            group = if word::<8>(ctx).unwrap_or(0) & 0xffff == AF_INET {
                mapped(word::<12>(ctx).unwrap_or(0).cast_unsigned())
            } else {
                address::<16>(ctx)
            };
        }
    }
    ifindex > 0 && reach::passes(attachment.policy, ifindex.cast_unsigned(), &group)
}

/// An IPv6 address in the value; `::`, which is no group, if the value is shorter.
#[inline(always)]
fn address<const AT: usize>(ctx: &SockoptContext) -> AddressWords {
    let (start, end) = bounds(ctx);
    if start + AT + size_of::<AddressWords>() <= end {
        // SAFETY: the bytes are within the bounds, as the verifier requires.
        unsafe { ((start + AT) as *const AddressWords).read_unaligned() }
    } else {
        [0; 4]
    }
}

/// Whether the value is the empty name, which unbinds.
#[inline(always)]
fn is_empty(ctx: &SockoptContext) -> bool {
    let (start, end) = bounds(ctx);
    // SAFETY: within the bounds that were just compared, as the verifier requires.
    start + 1 > end || unsafe { (start as *const u8).read() } == 0
}

/// Four bytes of the value; `None` if the value is shorter.
#[inline(always)]
fn word<const AT: usize>(ctx: &SockoptContext) -> Option<i32> {
    // SAFETY: the bytes are within the bounds, as the verifier requires.
    at::<AT>(ctx).map(|word| unsafe { word.read_unaligned() })
}

/// Changes four bytes of the value that the kernel uses; false if the value is shorter.
#[inline(always)]
fn set_word<const AT: usize>(ctx: &SockoptContext, to: i32) -> bool {
    // SAFETY: the bytes are within the bounds, as the verifier requires.
    at::<AT>(ctx).map(|word| unsafe { word.write_unaligned(to) }).is_some()
}

#[inline(always)]
fn at<const AT: usize>(ctx: &SockoptContext) -> Option<*mut i32> {
    let (start, end) = bounds(ctx);
    (start + AT + size_of::<i32>() <= end).then_some((start + AT) as *mut i32)
}

/// Length of the value, as given by the caller.
#[inline(always)]
fn len(ctx: &SockoptContext) -> i32 {
    // SAFETY: a four byte load of the context.
    unsafe { (*ctx.sockopt).optlen }
}

/// Sets the length of the value that the kernel uses; 0 makes the kernel read the caller's value again.
#[inline(always)]
fn set_len(ctx: &SockoptContext, bytes: i32) {
    // SAFETY: a four byte store that the verifier allows in setsockopt.
    unsafe { (*ctx.sockopt).optlen = bytes };
}

#[inline(always)]
fn is_whole(ctx: &SockoptContext) -> bool {
    len(ctx) <= SHOWN_BYTES
}

/// Whether the value is the name of the uplink, or of a member of the group. A longer (alternative) name does not fit in the option.
#[inline(always)]
fn names(ctx: &SockoptContext, policy: &PolicyRecord) -> bool {
    let mut name = Name([0; KERNEL_NAME_BYTES]);
    copy_name(ctx, &mut name.0);
    if name.0[0] == 0 {
        return false;
    }
    uplink::is_named(policy, &name)
}
