//! The system calls that no crate of ours wraps: reading plain-number socket options, and binding a packet socket.
//!
//! **Invariant:** all raw pointers handed to the kernel for these are made and dropped in this file.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `SO_BINDTOIFINDEX`; since Linux 5.1.
pub(crate) const SO_BINDTOIFINDEX: i32 = 62;
/// `SO_NETNS_COOKIE`; since Linux 5.14.
pub(crate) const SO_NETNS_COOKIE: i32 = 71;

/// A value that the kernel may fill in byte by byte.
///
/// # Safety
/// Every bit pattern must be a valid value of the type.
pub(crate) unsafe trait Plain: Copy + Default {}
// SAFETY: every bit pattern is an i32.
unsafe impl Plain for i32 {}
// SAFETY: every bit pattern is a u64.
unsafe impl Plain for u64 {}
// SAFETY: every pair of u32 is a pair of u32.
unsafe impl Plain for [u32; 2] {}

/// Reads a socket option.
pub(crate) fn socket_option<T: Plain>(socket: &impl AsFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut len = socklen::<T>();
    // SAFETY: `value` and `len` outlive the call, `len` is the size of `value`, and `Plain` lets any bytes stand in it.
    let code =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if code == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Makes a packet socket receive every protocol on one interface, or on all of them when `ifindex` is 0.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
pub(crate) fn bind_packet(socket: &impl AsFd, ifindex: i32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a whole sockaddr_ll that outlives the call, and the length is its size.
    let code =
        unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), socklen::<libc::sockaddr_ll>()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a freshly opened `/dev/net/tun` its name, without packet information in front of the packets.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
pub(crate) fn name_tun(tun: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as i16 },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is a whole, NUL-terminated ifreq that outlives the call.
    let code = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("an option or address is a few bytes")
}
