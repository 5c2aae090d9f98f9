//! 32 bit system calls of a 64 bit program, which take other paths through the kernel.
//!
//! **Invariant:** where there are none, the attempts are not applicable.

use super::{At, EscapeArgs, Step, Tried, uring};
use crate::sys;
use socket2::{Socket, Type};
use std::{
    io,
    os::fd::{AsRawFd as _, RawFd},
};

#[cfg(target_arch = "aarch64")]
#[path = "compat/aarch64.rs"]
mod machine;
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
#[path = "compat/none.rs"]
mod machine;
#[cfg(target_arch = "x86_64")]
#[path = "compat/x86_64.rs"]
mod machine;

use machine::{SETSOCKOPT, SOCKET};

/// It has the same number on all architectures.
const IO_URING_SETUP: u32 = 425;

/// An argument of a call.
pub(super) enum Argument<'a> {
    Number(u32),
    /// A descriptor of this process.
    Descriptor(RawFd),
    /// Memory that the kernel reads and writes.
    Memory(&'a mut [u8]),
}

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
        let socket = machine::call(SOCKET, &mut arguments.map(Argument::Number)).at(Step::Socket)?;
        let socket = Socket::from(sys::received(socket));
        let to = sys::packet_address(self.other_index()?, self.ethertype(), [0xff; 6]);
        socket.send_to(&self.frame_to_server(), &to).at(Step::Send)?;
        Ok("sent".to_owned())
    }
}

fn set_socket_option(socket: &Socket, level: i32, name: i32, value: &[u8], by_socketcall: bool) -> Tried<()> {
    let fd = socket.as_raw_fd();
    let set = if by_socketcall {
        machine::socketcall(fd, level, name, value)
    } else {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let [level, name, length] = [level.cast_unsigned(), name.cast_unsigned(), length].map(Argument::Number);
        let mut value = value.to_vec();
        machine::call(SETSOCKOPT, &mut [Argument::Descriptor(fd), level, name, Argument::Memory(&mut value), length])
    };
    set.map(drop).at(Step::Option)
}

/// Makes a ring with these parameters, which the kernel completes.
pub(super) fn uring_setup(entries: u32, parameters: &mut [u8]) -> io::Result<RawFd> {
    machine::call(IO_URING_SETUP, &mut [Argument::Number(entries), Argument::Memory(parameters)])
}
