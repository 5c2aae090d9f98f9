//! setsockopt: what would undo the binding, or send by another link behind its back, is refused with EPERM.
//!
//! **Invariant:** the uplink's own index and name pass; so does every option that is not named here.

use aya_ebpf::{bindings::bpf_sock, macros::cgroup_sockopt, programs::SockoptContext};
use steer_common::{Counter, Kind, PolicyRecord};

use crate::{attachment, decider, policy};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_IPV6: i32 = 41;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_JOIN_ANYCAST: i32 = 27;

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
    REFUSE
}

/// Four bytes of the value; `None` if it is shorter.
#[inline(always)]
fn word(ctx: &SockoptContext, offset: usize) -> Option<u32> {
    // SAFETY: an eight byte load of the context.
    let start = unsafe { (*ctx.sockopt).__bindgen_anon_2.optval } as usize;
    // SAFETY: an eight byte load of the context.
    let end = unsafe { (*ctx.sockopt).__bindgen_anon_3.optval_end } as usize;
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
    // SAFETY: eight byte loads of the context.
    let (start, end) = unsafe {
        ((*ctx.sockopt).__bindgen_anon_2.optval as usize, (*ctx.sockopt).__bindgen_anon_3.optval_end as usize)
    };
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
