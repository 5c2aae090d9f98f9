//! 32 bit system calls of a 64 bit program (`int 0x80`), which take other paths through the kernel.
//!
//! **Invariant:** what such a call points to is below 4 GiB. Elsewhere than on x86-64 the attempts are not applicable.

use super::{At, EscapeArgs, Step, Tried, uring};
use crate::sys;
use socket2::{Socket, Type};
use std::{io, os::fd::AsRawFd};

/// Numbers of system calls on i386.
const SOCKETCALL: u32 = 102;
const SOCKET: u32 = 359;
const SETSOCKOPT: u32 = 366;
/// Number of `setsockopt` in `socketcall`.
const SYS_SETSOCKOPT: u32 = 14;

impl EscapeArgs {
    pub(super) fn compat_bind_to_device(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, self.other.as_bytes(), false)?;
        self.talk_to(&socket, self.server())
    }

    pub(super) fn compat_join(&self, by_socketcall: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let (name, request) = self.join_request(self.other_index()?);
        set_socket_option(&socket, self.level(), name, &request, by_socketcall)?;
        self.listen(&socket, Type::DGRAM)
    }

    /// The ring remembers that it was made by a 32 bit call.
    pub(super) fn compat_uring_join(&self) -> Tried {
        let mut ring = uring::compat_ring()?;
        let socket = self.socket(Type::DGRAM, None)?;
        let (name, request) = self.join_request(self.other_index()?);
        uring::set_socket_option(&mut ring, &socket, (self.level(), name), &request)?;
        self.listen(&socket, Type::DGRAM)
    }

    pub(super) fn compat_packet(&self) -> Tried {
        let arguments = [libc::AF_PACKET, libc::SOCK_RAW, 0].map(i32::cast_unsigned);
        let socket = call(SOCKET, [arguments[0], arguments[1], arguments[2], 0, 0]).at(Step::Socket)?;
        let socket = Socket::from(sys::received(socket));
        let to = sys::packet_address(self.other_index()?, self.ethertype(), [0xff; 6]);
        socket.send_to(&self.frame_to_server(), &to).at(Step::Send)?;
        Ok("sent".to_owned())
    }
}

fn set_socket_option(socket: &Socket, level: i32, name: i32, value: &[u8], by_socketcall: bool) -> Tried<()> {
    let arguments = [
        socket.as_raw_fd().cast_unsigned(),
        level.cast_unsigned(),
        name.cast_unsigned(),
        low_copy(value).at(Step::Place)?,
        u32::try_from(value.len()).unwrap_or(u32::MAX),
    ];
    let set = if by_socketcall {
        let bytes: Vec<u8> = arguments.iter().flat_map(|argument| argument.to_ne_bytes()).collect();
        call(SOCKETCALL, [SYS_SETSOCKOPT, low_copy(&bytes).at(Step::Place)?, 0, 0, 0])
    } else {
        call(SETSOCKOPT, arguments)
    };
    set.map(drop).at(Step::Option)
}

/// Copies bytes to memory below 4 GiB that is never freed. Returns its address.
#[cfg(target_arch = "x86_64")]
pub(super) fn low_copy(bytes: &[u8]) -> io::Result<u32> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT);
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes.len().max(1), protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has at least this many bytes, and nothing else uses it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast(), bytes.len()) };
    u32::try_from(memory as usize).map_err(io::Error::other)
}

/// A 32 bit system call.
#[cfg(target_arch = "x86_64")]
pub(super) fn call(number: u32, arguments: [u32; 5]) -> io::Result<i32> {
    let mut result = u64::from(number);
    // SAFETY: the callers pass addresses of memory that lives long enough. The kernel saves all registers but the named ones.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx", "int 0x80", "xchg {first}, rbx",
            first = inout(reg) u64::from(arguments[0]) => _,
            inout("rax") result,
            in("rcx") u64::from(arguments[1]), in("rdx") u64::from(arguments[2]),
            in("rsi") u64::from(arguments[3]), in("rdi") u64::from(arguments[4]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The lower half of the register.
    let result = i32::from_ne_bytes([0, 1, 2, 3].map(|byte| result.to_le_bytes()[byte]));
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn low_copy(_: &[u8]) -> io::Result<u32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn call(_: u32, _: [u32; 5]) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}
