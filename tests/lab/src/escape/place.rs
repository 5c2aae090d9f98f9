//! Attempts from another place: another namespace, another cgroup, or another owner's socket.
//!
//! **Invariant:** the program changes only itself. The namespace and the cgroup that it makes are its own.

use super::{At, EscapeArgs, Halt, REQUEST, Step, Tried};
use crate::sys;
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};
use socket2::Socket;
use std::{
    fs,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

impl EscapeArgs {
    /// All capabilities, but only over resources of the new namespace.
    pub(super) fn user_namespace(&self) -> Tried {
        enter(CloneFlags::CLONE_NEWUSER)?;
        self.bind_to_device(&self.other)
    }

    /// An own network with only a loopback interface that is down.
    pub(super) fn network_namespace(&self) -> Tried {
        enter(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        self.udp_unconnected()
    }

    pub(super) fn sub_cgroup(&self, af_unspec: bool) -> Tried {
        let directory = own_cgroup()?.join(format!("escape-{}", std::process::id()));
        fs::create_dir(&directory).at(Step::Place)?;
        move_to(&directory)?;
        if af_unspec { self.udp_af_unspec() } else { self.udp() }
    }

    pub(super) fn leave_cgroup(&self) -> Tried {
        let own = own_cgroup()?;
        move_to(own.parent().unwrap_or(Path::new("/")))?;
        self.udp_unconnected()
    }

    /// Standard input is a UDP socket of another cgroup.
    pub(super) fn inherited(&self) -> Tried {
        let socket = io::stdin().as_fd().try_clone_to_owned().at(Step::Socket)?;
        self.use_foreign(socket)
    }

    /// Standard input is a UNIX socket that passes a UDP socket of another cgroup.
    pub(super) fn passed(&self) -> Tried {
        let mut control = nix::cmsg_space!([i32; 1]);
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let fd = io::stdin().as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty());
        let message = message.at(Step::Socket)?;
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().at(Step::Socket)?.next() else {
            return Err(Halt::Inapplicable("no socket was passed".to_owned()));
        };
        let fd = fds.first().copied().ok_or_else(|| Halt::Inapplicable("no socket was passed".to_owned()))?;
        self.use_foreign(sys::received(fd))
    }

    fn use_foreign(&self, socket: OwnedFd) -> Tried {
        let socket = Socket::from(socket);
        self.give_patience(&socket)?;
        socket.send_to(REQUEST, &self.server().into()).at(Step::Send)?;
        self.answer(&socket)
    }
}

fn enter(flags: CloneFlags) -> Tried<()> {
    unshare(flags).map_err(|errno| match errno {
        nix::errno::Errno::EPERM | nix::errno::Errno::ENOSPC | nix::errno::Errno::EINVAL => {
            Halt::Inapplicable(format!("this kernel does not allow user namespaces ({errno:?})"))
        }
        errno => Halt::Refused(Step::Place, errno.into()),
    })
}

fn move_to(cgroup: &Path) -> Tried<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").at(Step::Place)
}

/// The directory of this process's cgroup.
fn own_cgroup() -> Tried<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").at(Step::Place)?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(point)
    });
    let own = fs::read_to_string("/proc/self/cgroup").at(Step::Place)?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"));
    match (mount, path) {
        (Some(mount), Some(path)) => Ok(Path::new(mount).join(path)),
        _ => Err(Halt::Inapplicable("no cgroup2 is mounted".to_owned())),
    }
}
