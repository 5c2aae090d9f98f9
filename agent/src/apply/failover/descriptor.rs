//! Moves or ends a socket through a copy of its process's descriptor.
//!
//! **Invariant:** a socket is put on the new line before it is connected again. If that fails, it is not connected: its program
//! gets an error, and nothing leaves by the old line.

use std::{
    io,
    net::{IpAddr, Shutdown},
    os::fd::AsRawFd as _,
};

use socket2::SockAddr;

use super::{Line, decision::holds};
use crate::host::sockets::Host;

/// The peer of a datagram socket, with its scope; `None` if its program has disconnected it.
pub(super) fn peer(own: &socket2::Socket) -> io::Result<Option<SockAddr>> {
    match own.peer_addr() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        peer => peer.map(Some),
    }
}

/// Connects a datagram socket to its peer again, by the new line, from an address of that line. Its receive buffer stays. Returns the
/// address of the old line that its program had bound it to, if so: it is then as it was.
///
/// Between two of the system calls it has no peer, and `send` gives EDESTADDRREQ. A bound socket is unbound then, too: only the guards
/// stop a program that calls `sendto` with an address on a connected socket at this moment. Without them, one datagram of 160 such
/// sockets that sent all the time left by the default route (Linux 6.18). It is not bound before, because what it
/// sent then would have the old line's address.
pub(super) fn reconnect(
    own: &socket2::Socket,
    peer: &SockAddr,
    from: Line,
    to: Line,
    host: &Host,
) -> io::Result<Option<IpAddr>> {
    disconnect(own)?;
    if let Err(error) = to.take(own) {
        // It must not stay unbound.
        from.take(own)?;
        return Err(error);
    }
    // Without a peer, a socket has only the address that its program bound it to.
    let held = own.local_addr()?.as_socket().map(|local| local.ip().to_canonical());
    let held = held.filter(|&local| holds(local, from, host));
    if held.is_some() {
        from.take(own)?;
    }
    own.connect(peer).map(|()| held)
}

/// Ends a connection at once; no system call of its program waits any longer. A raw socket loses its peer, and gets no packets any
/// more.
pub(super) fn end(own: &socket2::Socket, to: Option<Line>) -> io::Result<()> {
    match disconnect(own) {
        // Linux 6.4 to 6.7 refuse it while another thread waits. That thread is woken by this.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => own.shutdown(Shutdown::Both)?,
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
