//! Moves or ends a socket through a copy of its process's descriptor.
//!
//! **Invariant:** a socket is put on the new line before it is connected again. If that fails, it is not connected: its program
//! gets an error, and nothing leaves by the old line.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _};

use super::{Line, decision::holds};
use crate::host::sockets::Host;

/// What became of a connected datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reconnected {
    /// It is connected to the same peer by the new line, and has a source address of it.
    Moved,
    /// It had no peer any more, and was put on the new line.
    Rebound,
    /// Its program had bound it to this address of the old line, so it is as it was.
    Held(SocketAddr),
}

/// Connects a datagram socket to its peer again, by the new line. Its receive buffer stays. Between two of the system calls it has
/// no peer, and `send` gives EDESTADDRREQ. A bound socket is unbound then, too: only the guards stop a program that calls
/// `sendto` with an address on a connected socket at this moment.
///
/// It is not bound before, because what it sent then would have the old line's address.
pub(super) fn reconnect(own: &socket2::Socket, from: Line, to: Line, host: &Host) -> io::Result<Reconnected> {
    let peer = match own.peer_addr() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return to.take(own).map(|()| Reconnected::Rebound);
        }
        peer => peer?,
    };
    disconnect(own)?;
    if let Err(error) = to.take(own) {
        // It must not stay unbound.
        from.take(own)?;
        return Err(error);
    }
    // Without a peer, a socket has only the address that its program bound it to.
    if let Some(local) = own.local_addr()?.as_socket()
        && holds(local.ip().to_canonical(), from, host)
    {
        from.take(own)?;
        own.connect(&peer)?;
        return Ok(Reconnected::Held(local));
    }
    own.connect(&peer).map(|()| Reconnected::Moved)
}

/// Ends a connection at once; no system call of its program waits any longer. A connected raw socket ends the same way: the kernel
/// never gives it packets again, so it cannot be connected again.
pub(super) fn end(own: &socket2::Socket, to: Option<Line>) -> io::Result<()> {
    match disconnect(own) {
        // Linux 6.4 to 6.7 refuse it while another thread waits. That thread is woken by this.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => own.shutdown(std::net::Shutdown::Both)?,
        ended => ended?,
    }
    to.map_or(Ok(()), |to| to.take(own))
}

/// `connect` with AF_UNSPEC.
fn disconnect(own: &socket2::Socket) -> io::Result<()> {
    // AF_UNSPEC is 0.
    let nowhere = [0_u8; size_of::<libc::sockaddr_storage>()];
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of the buffer, which is longer.
    let code = unsafe { libc::connect(own.as_raw_fd(), nowhere.as_ptr().cast(), length) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
