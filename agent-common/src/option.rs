//! The socket options that the guard checks, by level and number (`linux/socket.h`, `in.h`, `in6.h`).

/// Level of IPv4.
pub const SOL_IP: i32 = 0;
/// Level of all sockets.
pub const SOL_SOCKET: i32 = 1;
/// Level of TCP.
pub const SOL_TCP: i32 = 6;
/// Level of IPv6.
pub const SOL_IPV6: i32 = 41;
/// Binds to an interface by name.
pub const SO_BINDTODEVICE: i32 = 25;
/// Marks packets, for routing rules.
pub const SO_MARK: i32 = 36;
/// Binds to an interface by index.
pub const SO_BINDTOIFINDEX: i32 = 62;
/// Adds another protocol on top of TCP.
pub const TCP_ULP: i32 = 31;
/// Allows a source that this host does not have. An IPv6 socket takes it, too.
pub const IP_FREEBIND: i32 = 15;
/// The same, and sends from it.
pub const IP_TRANSPARENT: i32 = 19;
/// The same for IPv6.
pub const IPV6_TRANSPARENT: i32 = 75;
/// The same for IPv6, without a privilege.
pub const IPV6_FREEBIND: i32 = 78;
/// Leaves a group.
pub const IP_DROP_MEMBERSHIP: i32 = 36;
/// Sets which sources of a group of either family are received, on an interface given by index. The last of the options
/// that change memberships so.
pub const MCAST_MSFILTER: i32 = 48;
/// Refuses one source of a group, on an interface given by index.
pub const MCAST_BLOCK_SOURCE: i32 = 43;
/// The first of the options that change the sources of a group, on an interface given by address.
pub const IP_UNBLOCK_SOURCE: i32 = 37;
/// Refuses one source of a group.
pub const IP_BLOCK_SOURCE: i32 = 38;
/// Leaves a group's source.
pub const IP_DROP_SOURCE_MEMBERSHIP: i32 = 40;
/// Sets which sources of a group are received. The last of these options.
pub const IP_MSFILTER: i32 = 41;
/// Makes the process the multicast router of its network namespace, for either family (`linux/mroute.h`, `mroute6.h`).
pub const MRT_INIT: i32 = 200;
/// Adds an interface to the multicast router.
pub const MRT_ADD_VIF: i32 = 202;
/// Adds a multicast route.
pub const MRT_ADD_MFC: i32 = 204;
/// The last number that can be an option of multicast routing. Linux 6.18 uses those up to 212, and none after them.
pub const MRT_LAST: i32 = 255;
/// Leaves an IPv6 group.
pub const IPV6_DROP_MEMBERSHIP: i32 = 21;
/// Leaves an IPv6 anycast group.
pub const IPV6_LEAVE_ANYCAST: i32 = 28;
/// Joins a group on an interface given by index, address, or route.
pub const IP_ADD_MEMBERSHIP: i32 = 35;
/// The same for one source.
pub const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
/// Joins a group of either family, on an interface given by index.
pub const MCAST_JOIN_GROUP: i32 = 42;
/// The same for one source.
pub const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
/// Joins an IPv6 group on an interface given by index.
pub const IPV6_ADD_MEMBERSHIP: i32 = 20;
/// Joins an IPv6 anycast group.
pub const IPV6_JOIN_ANYCAST: i32 = 27;

/// The kernel's name of an option; `None` for options not listed here.
pub const fn name(level: i32, option: i32) -> Option<&'static str> {
    Some(match (level, option) {
        (SOL_SOCKET, SO_BINDTODEVICE) => "SO_BINDTODEVICE",
        (SOL_SOCKET, SO_MARK) => "SO_MARK",
        (SOL_SOCKET, SO_BINDTOIFINDEX) => "SO_BINDTOIFINDEX",
        (SOL_TCP, TCP_ULP) => "TCP_ULP",
        (SOL_IP, IP_FREEBIND) => "IP_FREEBIND",
        (SOL_IP, IP_TRANSPARENT) => "IP_TRANSPARENT",
        (SOL_IPV6, IPV6_TRANSPARENT) => "IPV6_TRANSPARENT",
        (SOL_IPV6, IPV6_FREEBIND) => "IPV6_FREEBIND",
        (SOL_IP, IP_ADD_MEMBERSHIP) => "IP_ADD_MEMBERSHIP",
        (SOL_IP, IP_DROP_MEMBERSHIP) => "IP_DROP_MEMBERSHIP",
        (SOL_IP, IP_ADD_SOURCE_MEMBERSHIP) => "IP_ADD_SOURCE_MEMBERSHIP",
        (SOL_IP | SOL_IPV6, MCAST_JOIN_GROUP) => "MCAST_JOIN_GROUP",
        (SOL_IP | SOL_IPV6, MCAST_JOIN_SOURCE_GROUP) => "MCAST_JOIN_SOURCE_GROUP",
        (SOL_IP | SOL_IPV6, MCAST_BLOCK_SOURCE) => "MCAST_BLOCK_SOURCE",
        (SOL_IP | SOL_IPV6, MCAST_MSFILTER) => "MCAST_MSFILTER",
        (SOL_IP, IP_UNBLOCK_SOURCE) => "IP_UNBLOCK_SOURCE",
        (SOL_IP, IP_BLOCK_SOURCE) => "IP_BLOCK_SOURCE",
        (SOL_IP, IP_DROP_SOURCE_MEMBERSHIP) => "IP_DROP_SOURCE_MEMBERSHIP",
        (SOL_IP, IP_MSFILTER) => "IP_MSFILTER",
        (SOL_IP, MRT_INIT) => "MRT_INIT",
        (SOL_IP, MRT_ADD_VIF) => "MRT_ADD_VIF",
        (SOL_IP, MRT_ADD_MFC) => "MRT_ADD_MFC",
        (SOL_IPV6, MRT_INIT) => "MRT6_INIT",
        (SOL_IPV6, MRT_ADD_VIF) => "MRT6_ADD_MIF",
        (SOL_IPV6, MRT_ADD_MFC) => "MRT6_ADD_MFC",
        (SOL_IPV6, IPV6_ADD_MEMBERSHIP) => "IPV6_ADD_MEMBERSHIP",
        (SOL_IPV6, IPV6_DROP_MEMBERSHIP) => "IPV6_DROP_MEMBERSHIP",
        (SOL_IPV6, IPV6_LEAVE_ANYCAST) => "IPV6_LEAVE_ANYCAST",
        (SOL_IPV6, IPV6_JOIN_ANYCAST) => "IPV6_JOIN_ANYCAST",
        _ => return None,
    })
}
