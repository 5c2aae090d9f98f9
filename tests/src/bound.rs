//! What a new socket of a cgroup is bound to, asked of the kernel in the shortest way.

use std::{
    fs,
    io::{PipeWriter, Read as _, pipe},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::Netns;

use crate::Cgroup;

/// What became of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It is bound to the interface with this index; 0 is none, -1 one that cannot be.
    To(i32),
    /// It was refused with this error.
    Refused(i32),
}

impl Cgroup {
    /// Makes an IPv4 socket in it, in a network namespace.
    pub fn new_socket(&self, netns: &Netns) -> anyhow::Result<Bound> {
        let (mut reader, writer) = pipe()?;
        let mut command = Command::new("true");
        let procs = self.directory().join("cgroup.procs");
        command.stdin(Stdio::null());
        // It runs after what `enter` adds: in the namespace.
        netns.enter(&mut command);
        // SAFETY: opens and writes a file, and makes two system calls; the path was allocated before.
        unsafe {
            command.pre_exec(move || {
                fs::write(&procs, "0")?;
                tell(&writer)
            })
        };
        let mut child = command.spawn().with_context(|| format!("start a process in {}", self.path()))?;
        drop(command);
        let mut told = [0; 8];
        reader.read_exact(&mut told).context("no answer")?;
        ensure!(child.wait()?.success(), "the process failed");
        let number = |bytes: &[u8]| bytes.try_into().map(i32::from_ne_bytes);
        Ok(match number(&told[..4])? {
            0 => Bound::To(number(&told[4..])?),
            error => Bound::Refused(error),
        })
    }
}

/// Makes a socket, and writes the error, or 0 and the index it is bound to.
fn tell(writer: &PipeWriter) -> std::io::Result<()> {
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let mut answer = [0_i32; 2];
    if socket < 0 {
        answer[0] = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    } else {
        let mut length = 4;
        // SAFETY: value and length live through the call, and are of the sizes given.
        unsafe {
            libc::getsockopt(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, (&raw mut answer[1]).cast(), &raw mut length)
        };
    }
    // SAFETY: eight bytes that live through the call.
    let written = unsafe { libc::write(writer.as_raw_fd(), answer.as_ptr().cast(), 8) };
    if written == 8 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
