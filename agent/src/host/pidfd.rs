//! Descriptors of processes. A process id may belong to another process a moment later; a descriptor does not (Linux 5.3).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// A process that is or was there.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl From<OwnedFd> for Pidfd {
    fn from(pidfd: OwnedFd) -> Self {
        Self(pidfd)
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Pidfd {
    /// The process that has this id now. ESRCH: none has it.
    pub fn open(pid: u32) -> nix::Result<Self> {
        // SAFETY: no pointers.
        new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(Self)
    }

    /// A copy of one of its descriptors (Linux 5.6). Needs CAP_SYS_PTRACE.
    pub fn copy(&self, fd: RawFd) -> nix::Result<OwnedFd> {
        // SAFETY: no pointers.
        new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) })
    }

    /// Whether it has ended. As long as it has not, everything that was read by its id is about this process.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut polled, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }
}

/// Takes the result of a system call that returns a new descriptor.
fn new_descriptor(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_too_large| Errno::EBADF)?;
    // SAFETY: nothing else owns a descriptor that the kernel has just created.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::Pidfd;

    #[test]
    fn a_process_that_has_ended() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let process = Pidfd::open(child.id()).expect("opened");
        assert!(!process.has_ended().expect("polled"));
        child.wait().expect("ended");
        assert!(process.has_ended().expect("polled"));
    }
}
