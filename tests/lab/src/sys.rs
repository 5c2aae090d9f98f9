//! System calls that no used crate wraps: socket options as plain numbers and bytes, addresses of rare families, and
//! memory shared with the kernel.
//!
//! **Invariant:** all raw pointers for these calls are made and dropped in this file.

use socket2::SockAddr;
use std::{
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

/// `in6addr_any` as in C.
pub(crate) const IN6_ANY: libc::in6_addr = libc::in6_addr { s6_addr: [0; 16] };

/// `SO_BINDTOIFINDEX`; since Linux 5.1.
pub(crate) const SO_BINDTOIFINDEX: i32 = 62;
/// `SO_NETNS_COOKIE`; since Linux 5.14.
pub(crate) const SO_NETNS_COOKIE: i32 = 71;

/// A value whose bytes the kernel may fill in.
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
// SAFETY: any sixteen u64 are.
unsafe impl Plain for [u64; 16] {}

/// Reads a socket option.
pub(crate) fn socket_option<T: Plain>(socket: &impl AsFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut len = socklen::<T>();
    // SAFETY: `value` and `len` outlive the call, `len` is the size of `value`, and `Plain` lets any bytes stand in it.
    let code =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if code == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Sets a socket option to these bytes.
pub(crate) fn set_socket_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` outlives the call, and `len` is its size.
    let code = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address that disconnects a socket: its family is AF_UNSPEC.
pub(crate) fn unspecified() -> SockAddr {
    address(|_: &mut libc::sockaddr| ())
}

/// The address of a neighbour on a link, for a packet socket.
pub(crate) fn packet_address(ifindex: u32, ethertype: u16, mac: [u8; 6]) -> SockAddr {
    address(|packet: &mut libc::sockaddr_ll| {
        packet.sll_family = family(libc::AF_PACKET);
        packet.sll_protocol = ethertype.to_be();
        packet.sll_ifindex = ifindex.cast_signed();
        packet.sll_halen = 6;
        packet.sll_addr[..6].copy_from_slice(&mac);
    })
}

/// The name of a link, for the packet sockets that existed before AF_PACKET.
pub(crate) fn link_name(name: &str) -> SockAddr {
    address(|link: &mut libc::sockaddr| {
        link.sa_family = family(libc::AF_PACKET);
        for (to, from) in link.sa_data.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
    })
}

/// The address of the first queue of an interface, for an XDP socket.
pub(crate) fn xdp_address(ifindex: u32, flags: u16) -> SockAddr {
    address(|xdp: &mut libc::sockaddr_xdp| {
        xdp.sxdp_family = family(libc::AF_XDP);
        xdp.sxdp_flags = flags;
        xdp.sxdp_ifindex = ifindex;
    })
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).expect("families are small numbers")
}

/// An address of C's type `T`. All bytes are zero except those that `fill` writes.
fn address<T>(fill: impl FnOnce(&mut T)) -> SockAddr {
    const { assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>()) };
    let made = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        // SAFETY: the storage is zeroed, larger than T and aligned for every kind of address; T is one.
        fill(unsafe { &mut *storage.cast::<T>() });
        // SAFETY: `try_init` hands out a length to be written.
        unsafe { *len = socklen::<T>() };
        Ok(())
    };
    // SAFETY: `made` leaves an address of the length that it writes.
    unsafe { SockAddr::try_init(made) }.expect("nothing in it fails").1
}

/// The control data that names an interface for one IPv4 message.
pub(crate) fn pktinfo(ifindex: u32) -> libc::in_pktinfo {
    let any = libc::in_addr { s_addr: 0 };
    libc::in_pktinfo { ipi_ifindex: ifindex.cast_signed(), ipi_spec_dst: any, ipi_addr: any }
}

/// Calls a function with an IPv4 message that names an interface in its control data, as `sendmsg(2)` takes it.
pub(crate) fn with_pktinfo_message<R>(
    bytes: &[u8],
    to: SocketAddr,
    ifindex: u32,
    send: impl FnOnce(*const libc::msghdr) -> R,
) -> R {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        info: libc::in_pktinfo,
    }
    let len = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>();
    // SAFETY: a header of zeroes is valid. musl's has padding that a literal cannot name.
    let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
    header.cmsg_len = len as _;
    header.cmsg_level = libc::IPPROTO_IP;
    header.cmsg_type = libc::IP_PKTINFO;
    let mut control = Control { header, info: pktinfo(ifindex) };
    let to = SockAddr::from(to);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeroes is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    send(&raw const message)
}

/// Takes ownership of a descriptor that the kernel has just made for this process.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers have it from the message or the operation that made it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Memory that the kernel reads; it stays mapped until the process ends.
pub(crate) struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
}

impl SharedMemory {
    const PROTECTION: nix::sys::mman::ProtFlags =
        nix::sys::mman::ProtFlags::PROT_READ.union(nix::sys::mman::ProtFlags::PROT_WRITE);

    /// Memory that only this process uses at first.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let (length, flags) = (nonzero(len)?, nix::sys::mman::MapFlags::MAP_PRIVATE);
        // SAFETY: maps new memory, and lays it over nothing.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, length, Self::PROTECTION, flags) }?;
        Ok(Self { start: start.cast(), len })
    }

    /// A ring of a socket.
    pub(crate) fn of(socket: &impl AsFd, len: usize, offset: libc::off_t) -> io::Result<Self> {
        let (length, flags) = (nonzero(len)?, nix::sys::mman::MapFlags::MAP_SHARED);
        // SAFETY: maps new memory, and lays it over nothing.
        let start = unsafe { nix::sys::mman::mmap(None, length, Self::PROTECTION, flags, socket, offset) }?;
        Ok(Self { start: start.cast(), len })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Writes bytes at an offset.
    ///
    /// # Panics
    /// When they do not fit.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "out of the memory");
        // SAFETY: just looked at: `at` lies inside.
        let to = unsafe { self.start.as_ptr().add(at) };
        // SAFETY: the bytes fit, and the kernel reads them only after they are published.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Publishes all earlier writes to the kernel with a counter in the memory.
    ///
    /// # Panics
    /// When there is no counter at that offset.
    pub(crate) fn publish(&self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "no counter there");
        // SAFETY: just looked at: `at` lies inside.
        let counter = unsafe { self.start.as_ptr().add(at) };
        // SAFETY: aligned, mapped until the process ends, and the kernel only ever reads it as an atomic.
        unsafe { AtomicU32::from_ptr(counter.cast()) }.store(value, Ordering::Release);
    }
}

fn nonzero(len: usize) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
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

/// Sets the name of a newly opened `/dev/net/tun`, without packet information before the packets.
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
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: `request` is a whole, NUL-terminated ifreq that outlives the call.
    let code = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("an option or address is a few bytes")
}
