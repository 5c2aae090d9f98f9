//! The same with io_uring instead of one system call per operation.
//!
//! **Invariant:** one operation is in flight at a time, and all memory that it points to lives until it completes.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried, compat};
use crate::sys;
use io_uring::{IoUring, Parameters, opcode, squeue, types::Fd};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{io, os::fd::AsRawFd};

impl EscapeArgs {
    /// Makes the socket, connects, sends and receives through the ring.
    pub(super) fn uring_tcp(&self, sqpoll: bool) -> Tried {
        let mut ring = ring(sqpoll)?;
        let socket = make_socket(&mut ring, self.domain(), Type::STREAM)?;
        let fd = socket.as_raw_fd();
        let to = SockAddr::from(self.server());
        run(&mut ring, &opcode::Connect::new(Fd(fd), to.as_ptr().cast(), to.len()).build()).at(Step::Connect)?;
        let len = u32::try_from(REQUEST.len()).unwrap_or(u32::MAX);
        run(&mut ring, &opcode::Send::new(Fd(fd), REQUEST.as_ptr(), len).build()).at(Step::Send)?;
        self.give_patience(&socket)?;
        self.answer(&socket)
    }

    /// A packet socket that is not made with `socket(2)`.
    pub(super) fn uring_packet(&self) -> Tried {
        let socket = make_socket(&mut ring(false)?, Domain::PACKET, Type::RAW)?;
        let to = sys::packet_address(self.other_index()?, self.ethertype(), [0xff; 6]);
        socket.send_to(&self.frame_to_server(), &to).at(Step::Send)?;
        Ok("sent".to_owned())
    }

    pub(super) fn uring_bind_to_device(&self) -> Tried {
        let mut ring = ring(false)?;
        let socket = self.socket(Type::DGRAM, None)?;
        let option = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        set_socket_option(&mut ring, &socket, option, self.other.as_bytes())?;
        self.talk_to(&socket, self.server())
    }

    /// A message with the other interface in the control data.
    pub(super) fn uring_pktinfo(&self) -> Tried {
        let mut ring = ring(false)?;
        let socket = self.socket(Type::DGRAM, None)?;
        let index = self.other_index()?;
        sys::with_pktinfo_message(REQUEST, self.server(), index, |message| {
            run(&mut ring, &opcode::SendMsg::new(Fd(socket.as_raw_fd()), message).build())
        })
        .at(Step::Send)?;
        self.answer(&socket)
    }
}

fn ring(sqpoll: bool) -> Tried<IoUring> {
    let mut builder = IoUring::builder();
    if sqpoll {
        builder.setup_sqpoll(100);
    }
    builder.build(4).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => Halt::Inapplicable(format!("io_uring is not available ({error})")),
        _ => Halt::Refused(Step::Place, error),
    })
}

/// A ring that is set up by a 32 bit system call.
pub(super) fn compat_ring() -> Tried<IoUring> {
    const ENTRIES: u32 = 4;
    let mut bytes = [0; size_of::<Parameters>()];
    let fd = match compat::uring_setup(ENTRIES, &mut bytes) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            return Err(Halt::Inapplicable(format!("io_uring is not available ({error})")));
        }
        fd => fd.at(Step::Place)?,
    };
    // SAFETY: the kernel has written the parameters there, and they have no invalid values.
    let parameters = unsafe { bytes.as_ptr().cast::<Parameters>().read_unaligned() };
    // SAFETY: a new ring with these parameters.
    unsafe { IoUring::from_fd(fd, parameters) }.at(Step::Place)
}

/// Sets an option without `setsockopt(2)`; since Linux 6.7.
pub(super) fn set_socket_option(
    ring: &mut IoUring,
    socket: &Socket,
    (level, name): (i32, i32),
    value: &[u8],
) -> Tried<()> {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let (level, name) = (level.cast_unsigned(), name.cast_unsigned());
    let operation = opcode::SetSockOpt::new(Fd(socket.as_raw_fd()), level, name, value.as_ptr().cast(), len).build();
    match run(ring, &operation) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Err(Halt::Inapplicable("this kernel's io_uring cannot set socket options".to_owned()))
        }
        set => set.map(drop).at(Step::Option),
    }
}

fn make_socket(ring: &mut IoUring, domain: Domain, kind: Type) -> Tried<Socket> {
    match run(ring, &opcode::Socket::new(domain.into(), kind.into(), 0).build()) {
        // Before Linux 5.19 the operation does not exist.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(Halt::Inapplicable("this kernel's io_uring cannot make sockets".to_owned()))
        }
        made => Ok(Socket::from(sys::received(made.at(Step::Socket)?))),
    }
}

/// Submits one operation and waits for it.
fn run(ring: &mut IoUring, operation: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: the caller keeps what the operation points to until this returns, which it does after completion.
    unsafe { ring.submission().push(operation) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
