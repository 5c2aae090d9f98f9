//! The process at the other end of a unix socket.
//!
//! **Invariant:** what is read is about the process that connected. A process id alone may belong to another process a moment later.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::pidfd::Pidfd;

/// `SO_PEERPIDFD` (Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// A process that has connected.
#[derive(Debug)]
pub struct Peer {
    /// Its id.
    pub pid: u32,
    /// Its user, when it connected.
    pub uid: u32,
    process: Pidfd,
}

/// What a process may do, by its user and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its real, effective, saved and file system user.
    pub uids: Vec<u32>,
    /// All its groups.
    pub gids: Vec<u32>,
}

impl Peer {
    /// The process that connected this socket. Fails if it has ended, or is not visible here.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, PeerCredentials)?;
        let pid = u32::try_from(credentials.pid()).unwrap_or_default();
        if pid == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process is in another PID namespace"));
        }
        let process = match pidfd(socket) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Pidfd::open(pid)?,
            opened => opened?,
        };
        let peer = Self { pid, uid: credentials.uid(), process };
        if peer.has_ended()? { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(peer) }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> io::Result<bool> {
        self.process.has_ended()
    }

    /// Its users and groups now.
    pub fn credentials(&self) -> io::Result<Credentials> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let credentials = parse(&status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        if self.has_ended()? { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(credentials) }
    }
}

fn pidfd(socket: &impl AsFd) -> io::Result<Pidfd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: value and length point to live variables of the sizes given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nothing else owns a descriptor that the kernel has just created.
    Ok(Pidfd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Parses /proc/PID/status.
fn parse(status: &str) -> Option<Credentials> {
    let numbers = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().map(|number| number.parse().ok()).collect::<Option<Vec<u32>>>()
    };
    let gids = [numbers("Gid:")?, numbers("Groups:")?].concat();
    Some(Credentials { uids: numbers("Uid:")?, gids })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{Peer, parse};

    #[test]
    fn this_process() {
        let (one, _other) = UnixStream::pair().expect("sockets");
        let peer = Peer::of(&one).expect("a peer");
        assert_eq!(peer.pid, std::process::id());
        let credentials = peer.credentials().expect("credentials");
        assert_eq!((credentials.uids.len(), credentials.uids[0]), (4, peer.uid));
        assert!(!peer.has_ended().expect("asked"));
    }

    #[test]
    fn status() {
        let read = parse("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\nGroups:\t5 6 \n").expect("right");
        assert_eq!((read.uids, read.gids), (vec![1, 2, 3, 4], vec![5, 5, 5, 5, 5, 6]));
        assert_eq!(parse("Uid:\tx\nGid:\t5\nGroups:\n"), None);
    }
}
