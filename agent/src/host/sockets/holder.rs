//! Finds the process that has a socket open, and duplicates its descriptor.
//!
//! **Invariant:** returns a descriptor only for the requested socket, even if the process has closed and opened descriptors
//! meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::Path,
};

use nix::{errno::Errno, sys::stat::fstat};

use super::patience::Owner;
use crate::{host::pidfd::Pidfd, model::quote::shown};

/// A process that has a socket open.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pid: i32,
    fd: i32,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\" (process {})", shown(&self.name), self.pid)
    }
}

impl Holder {
    /// Who may hold up calls on the socket.
    pub(crate) fn owner(&self) -> Owner {
        Owner::Process(self.pid)
    }

    /// The socket with this inode; `None` if the process has closed it, or has ended. Needs CAP_SYS_PTRACE (Linux 5.6).
    pub(crate) fn socket(&self, inode: u32) -> io::Result<Option<socket2::Socket>> {
        let fd = match Pidfd::open(self.pid.cast_unsigned()).and_then(|process| process.copy(self.fd)) {
            Ok(fd) => fd,
            Err(Errno::ESRCH | Errno::EBADF) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let is_it = fstat(&fd)?.st_ino == u64::from(inode);
        Ok(is_it.then(|| socket2::Socket::from(fd)))
    }
}

/// The processes that have sockets open.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// By the inode of the socket; one process for each. The kernel's own sockets have none.
    pub(crate) by_inode: BTreeMap<u32, Holder>,
    /// Whether some process could not be read, because this process lacks CAP_SYS_PTRACE.
    pub(crate) hidden: bool,
}

/// Finds the holders of the sockets with these inodes. First reads the processes of the cgroups with these directories,
/// which hold most of them. Then reads all others: a socket stays in its cgroup when its process moves, and can be passed
/// to another process.
pub(crate) fn find<'a>(directories: impl Iterator<Item = &'a Path>, inodes: BTreeSet<u32>) -> Holders {
    find_until(directories, inodes, &|| false)
}

/// As [`find`]. Where `stop` is true meanwhile, some holders are missing.
pub(crate) fn find_until<'a>(
    directories: impl Iterator<Item = &'a Path>,
    inodes: BTreeSet<u32>,
    stop: &dyn Fn() -> bool,
) -> Holders {
    find_among(inside(directories).chain(everywhere()), inodes, stop)
}

/// As [`find`], but only among the processes of the cgroups with these directories.
pub(crate) fn find_inside<'a>(directories: impl Iterator<Item = &'a Path>, inodes: BTreeSet<u32>) -> Holders {
    find_among(inside(directories), inodes, &|| false)
}

fn everywhere() -> impl Iterator<Item = i32> {
    let all = std::iter::once_with(|| fs::read_dir("/proc").into_iter().flatten().flatten()).flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
}

fn inside<'a>(directories: impl Iterator<Item = &'a Path>) -> impl Iterator<Item = i32> {
    directories.flat_map(|directory| {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
    })
}

fn find_among(processes: impl Iterator<Item = i32>, mut inodes: BTreeSet<u32>, stop: &dyn Fn() -> bool) -> Holders {
    let mut holders = Holders::default();
    for pid in processes {
        if inodes.is_empty() || stop() {
            break;
        }
        let sockets = match sockets_until(pid, stop) {
            Ok(sockets) => sockets,
            Err(error) => {
                // Any other error means that the process has ended.
                holders.hidden |= error.kind() == io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        for (fd, inode) in sockets {
            if inodes.remove(&inode) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                holders.by_inode.insert(inode, Holder { pid, fd, name: name.trim_end().to_owned() });
            }
        }
    }
    holders
}

/// The sockets that a process has open: descriptor and inode.
pub(crate) fn sockets_of(pid: i32) -> io::Result<Vec<(i32, u32)>> {
    sockets_until(pid, &|| false)
}

fn sockets_until(pid: i32, stop: &dyn Fn() -> bool) -> io::Result<Vec<(i32, u32)>> {
    /// How many descriptors are read before it is asked again.
    const AT_ONCE: usize = 256;
    let mut sockets = Vec::new();
    for (number, entry) in fs::read_dir(format!("/proc/{pid}/fd"))?.enumerate() {
        if number % AT_ONCE == 0 && stop() {
            break;
        }
        let entry = entry?;
        let target = match fs::read_link(entry.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            target => target?,
        };
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let fd = entry.file_name().to_str().and_then(|fd| fd.parse().ok());
        sockets.extend(fd.zip(inode));
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::UdpSocket, os::fd::AsFd as _};

    use nix::sys::stat::fstat;

    use super::{find, find_until};

    #[test]
    fn finds_this_process() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let inode = u32::try_from(fstat(socket.as_fd()).expect("its inode").st_ino).expect("32 bits");
        // No socket has the number 0.
        let holders = find(std::iter::empty(), BTreeSet::from([0, inode])).by_inode;
        assert_eq!(holders.keys().collect::<Vec<_>>(), [&inode]);
        assert_eq!(u32::try_from(holders[&inode].pid), Ok(std::process::id()));
        assert!(find_until(std::iter::empty(), BTreeSet::from([inode]), &|| true).by_inode.is_empty());
    }
}
