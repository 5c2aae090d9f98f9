//! setsockopt: what would undo the binding, or send by another link behind its back, is refused with EPERM.
//!
//! **Invariant:** the uplink's own index and name pass; so does every option that is not named here.

use aya_ebpf::{Global, bindings::bpf_sock, macros::cgroup_sockopt, programs::SockoptContext};
use steer_common::{
    AttachmentRecord, Counter, Kind, PolicyRecord,
    event::KERNEL_NAME_BYTES,
    option::{
        IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IPV6_ADD_MEMBERSHIP, IPV6_JOIN_ANYCAST, MCAST_JOIN_GROUP,
        MCAST_JOIN_SOURCE_GROUP, SO_BINDTODEVICE, SO_BINDTOIFINDEX, SO_MARK, SOL_IP, SOL_IPV6, SOL_SOCKET,
    },
};

use crate::{attachment, decider, events, policy};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

/// Whether a program may ask here which process calls (Linux 6.1). Where it may not, the loader says 0, and the verifier leaves
/// the calls out.
#[unsafe(no_mangle)]
static SETSOCKOPT_KNOWS_TASK: Global<u8> = Global::new(0);

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: four byte loads of the context.
    let (level, option) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    // Where in the value the interface's index is.
    let index_at = match (level, option) {
        (SOL_SOCKET, SO_BINDTOIFINDEX) | (SOL_IP | SOL_IPV6, MCAST_JOIN_GROUP | MCAST_JOIN_SOURCE_GROUP) => Some(0),
        (SOL_IP, IP_ADD_MEMBERSHIP) => Some(8),
        (SOL_IPV6, IPV6_ADD_MEMBERSHIP | IPV6_JOIN_ANYCAST) => Some(16),
        (SOL_SOCKET, SO_BINDTODEVICE | SO_MARK) | (SOL_IP, IP_ADD_SOURCE_MEMBERSHIP) => None,
        _ => return ALLOW,
    };
    // SAFETY: the hook always has a socket.
    let socket: *mut bpf_sock = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    let attachment = attachment::current();
    if !decider::is(&attachment, socket) || decider::is_left(socket) {
        return ALLOW;
    }
    let allowed = match policy::get(attachment.policy) {
        Some(policy) => match Kind::try_from(policy.kind) {
            Ok(Kind::Exempt) => true,
            Ok(Kind::Steer) => match index_at {
                Some(offset) => policy.ifindex > 0 && index(&ctx, offset) == Some(policy.ifindex),
                None => option == SO_BINDTODEVICE && level == SOL_SOCKET && names(&ctx, policy),
            },
            Err(_) => false,
        },
        None => false,
    };
    if allowed {
        return ALLOW;
    }
    policy::count(attachment.policy, Counter::StoppedSetsockopt);
    tell(&ctx, &attachment, (level, option), index_at);
    REFUSE
}

#[inline(always)]
fn tell(ctx: &SockoptContext, attachment: &AttachmentRecord, (level, option): (i32, i32), index_at: Option<usize>) {
    events::tell(attachment, Counter::StoppedSetsockopt, events::cgroup_id(), |record| {
        record.ifindex = index_at.and_then(|offset| index(ctx, offset)).unwrap_or(0);
        (record.option_level, record.option) = (level, option);
        if (level, option) == (SOL_SOCKET, SO_BINDTODEVICE) {
            copy_name(ctx, &mut record.interface);
        }
        if SETSOCKOPT_KNOWS_TASK.load() != 0 {
            events::add_caller(record);
        }
    });
}

/// Copies the value, a name, as far as it goes. The last byte stays as it is.
#[inline(always)]
fn copy_name(ctx: &SockoptContext, name: &mut [u8; KERNEL_NAME_BYTES]) {
    let (start, end) = value(ctx);
    for (at, byte) in name.iter_mut().enumerate().take(KERNEL_NAME_BYTES - 1) {
        if start + at + 1 > end {
            break;
        }
        // SAFETY: within the bounds just compared, as the verifier wants it.
        *byte = unsafe { ((start + at) as *const u8).read() };
        if *byte == 0 {
            break;
        }
    }
}

/// Where the value begins and ends.
#[inline(always)]
fn value(ctx: &SockoptContext) -> (usize, usize) {
    // SAFETY: eight byte loads of the context.
    unsafe { ((*ctx.sockopt).__bindgen_anon_2.optval as usize, (*ctx.sockopt).__bindgen_anon_3.optval_end as usize) }
}

/// Four bytes of the value; `None` if it is shorter.
#[inline(always)]
fn word(ctx: &SockoptContext, offset: usize) -> Option<u32> {
    let (start, end) = value(ctx);
    if start + offset + size_of::<u32>() > end {
        return None;
    }
    // SAFETY: within the bounds just compared, as the verifier wants it.
    Some(unsafe { ((start + offset) as *const u32).read_unaligned() })
}

#[inline(always)]
fn index(ctx: &SockoptContext, offset: usize) -> Option<i32> {
    match offset {
        0 => word(ctx, 0),
        8 => word(ctx, 8),
        _ => word(ctx, 16),
    }
    .map(u32::cast_signed)
}

/// Whether the value is the uplink's name, which is short enough to fit in one.
#[inline(always)]
fn names(ctx: &SockoptContext, policy: &PolicyRecord) -> bool {
    const LONGEST: usize = 15;
    let mut at = 0;
    let (start, end) = value(ctx);
    while at < LONGEST {
        if start + at + 1 > end {
            // As long as the value goes.
            return at > 0 && policy.interface[at] == 0;
        }
        // SAFETY: within the bounds just compared, as the verifier wants it.
        let byte = unsafe { ((start + at) as *const u8).read() };
        if byte != policy.interface[at] {
            return false;
        }
        if byte == 0 {
            return at > 0;
        }
        at += 1;
    }
    policy.interface[LONGEST] == 0
}
