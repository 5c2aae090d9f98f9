//! The address in the context of a call: its destination, the source of an answer, or the address to bind to.
//!
//! **Invariant:** IPv4 addresses are mapped here, whichever hook they come from, so each check exists once.

use aya_ebpf::programs::SockAddrContext;
use steer_common::{AddressWords, is_mapped, mapped};

/// Which of a pair of hooks runs. Each may read only its own part of the context.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    V4,
    V6,
}

/// 127.0.0.0/8 and ::1.
#[inline(always)]
pub(crate) fn is_loopback(address: &AddressWords) -> bool {
    if is_mapped(address) {
        u32::from_be(address[3]) >> 24 == 127
    } else {
        address[0] | address[1] | address[2] == 0 && address[3] == 1_u32.to_be()
    }
}

/// 0.0.0.0 and ::, which as a destination mean this host.
#[inline(always)]
pub(crate) fn is_unspecified(address: &AddressWords) -> bool {
    address[3] == 0 && (is_mapped(address) || address[0] | address[1] | address[2] == 0)
}

#[inline(always)]
pub(crate) fn address(ctx: &SockAddrContext, hook: Hook) -> AddressWords {
    match hook {
        // SAFETY: a four byte load that the verifier allows in the IPv4 hooks.
        Hook::V4 => mapped(unsafe { (*ctx.sock_addr).user_ip4 }),
        Hook::V6 => {
            // SAFETY: four byte loads that the verifier allows in the IPv6 hooks.
            let word = |index: usize| unsafe { (*ctx.sock_addr).user_ip6[index] };
            [word(0), word(1), word(2), word(3)]
        }
    }
}

/// Replaces the address. In the IPv4 hooks the new one must be mapped.
#[inline(always)]
pub(crate) fn set_address(ctx: &SockAddrContext, hook: Hook, address: &AddressWords) {
    match hook {
        // SAFETY: a four byte store that the verifier allows in the IPv4 hooks.
        Hook::V4 => unsafe { (*ctx.sock_addr).user_ip4 = address[3] },
        Hook::V6 => {
            // SAFETY: four byte stores that the verifier allows in the IPv6 hooks.
            let set = |index: usize| unsafe { (*ctx.sock_addr).user_ip6[index] = address[index] };
            set(0);
            set(1);
            set(2);
            set(3);
        }
    }
}

#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: a four byte load; the port is in its first two bytes, in network byte order.
    let port = unsafe { (*ctx.sock_addr).user_port };
    u16::from_be_bytes([port.to_ne_bytes()[0], port.to_ne_bytes()[1]])
}

/// Whether a call of `bind` is that of a TCP socket which is to have a port that others know.
#[inline(always)]
pub(crate) fn is_listener(ctx: &SockAddrContext) -> bool {
    const SOCK_STREAM: u32 = 1;
    // SAFETY: a four byte load.
    let kind = unsafe { (*ctx.sock_addr).type_ };
    kind == SOCK_STREAM && port(ctx) != 0
}
