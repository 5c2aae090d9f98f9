//! The sockets whose traffic the programs see, or whose traffic stays on this host. A strict policy refuses all others.
//!
//! The lists name what passes, because families that the kernel adds later may also bypass the IP stack.

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_KEY: i32 = 15;
const AF_NETLINK: i32 = 16;
const AF_ALG: i32 = 38;
const AF_KCM: i32 = 41;

/// Families of the IP stack.
pub const IP: [i32; 2] = [AF_INET, AF_INET6];
/// Families whose traffic stays on this host. KCM carries IP sockets.
pub const LOCAL: [i32; 5] = [AF_UNIX, AF_NETLINK, AF_KEY, AF_ALG, AF_KCM];
/// A protocol of the IP families that does not pass: shared memory communications (SMC) begin as TCP and switch to RDMA where
/// they can (Linux 6.11).
pub const IPPROTO_SMC: i32 = 256;

/// A type of socket that makes the kernel change the family AF_INET to AF_PACKET, before security hooks run.
pub const SOCK_PACKET: i32 = 10;
/// The bits of a type without flags such as SOCK_CLOEXEC.
pub const TYPE_MASK: i32 = 0xf;

/// Whether the other programs enforce the policy for this socket, or its traffic stays on this host.
#[inline]
pub const fn passes(family: i32, protocol: i32) -> bool {
    match family {
        AF_INET | AF_INET6 => protocol != IPPROTO_SMC,
        AF_UNIX | AF_NETLINK | AF_KEY | AF_ALG | AF_KCM => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{IP, IPPROTO_SMC, LOCAL, passes};

    #[test]
    fn the_lists_are_what_passes() {
        for family in -1..256 {
            assert_eq!(passes(family, 0), IP.contains(&family) || LOCAL.contains(&family), "{family}");
            assert_eq!(passes(family, IPPROTO_SMC), LOCAL.contains(&family), "{family}");
        }
    }
}
