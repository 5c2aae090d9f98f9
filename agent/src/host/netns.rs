//! The identity of a network namespace.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::link::Error;

const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace, as `bpf_get_netns_cookie` returns it to programs. `None`: this
/// kernel has no `SO_NETNS_COOKIE` (before Linux 5.14).
pub fn own_cookie() -> Result<Option<u64>, Error> {
    // A unix socket belongs to a namespace too, and no policy can refuse it.
    let socket = unix_socket().map_err(Error::Cookie)?;
    let mut cookie = 0_u64;
    let mut length =
        libc::socklen_t::try_from(size_of::<u64>()).map_err(|error| Error::Cookie(io::Error::other(error)))?;
    // SAFETY: value and length point to live variables of the sizes given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(Error::Cookie(error)),
    }
}

/// Runs `look` inside a network namespace, on a separate thread, so the caller stays in its own. Needs CAP_SYS_ADMIN.
pub fn inside<T: Send>(netns: impl AsFd + Send, look: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let looking = scope.spawn(|| Ok(setns(netns, CloneFlags::CLONE_NEWNET).map(|()| look())?));
        looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The network namespaces of all processes, and those that are mounted, without that of the calling thread.
pub fn others() -> io::Result<Vec<File>> {
    let mut seen = BTreeSet::from([File::open("/proc/thread-self/ns/net")?.metadata()?.ino()]);
    let mut found = Vec::new();
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let entries = fs::read_dir("/proc")?.flatten();
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    let processes = processes.map(|entry| entry.path().join("ns/net"));
    for path in processes.chain(mounted(&fs::read_to_string("/proc/thread-self/mountinfo")?)) {
        // Any error means that the process has ended, or that the mount is gone or hidden.
        if let Ok(netns) = File::open(path)
            && seen.insert(netns.metadata()?.ino())
        {
            found.push(netns);
        }
    }
    Ok(found)
}

/// The paths at which network namespaces are mounted, such as those of `ip netns`. `mountinfo` is that of proc(5).
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let mut fields = line.split(' ');
        let root = fields.nth(3)?;
        // Paths with a space are written with an escape, and not looked for.
        (root.starts_with("net:[")).then(|| fields.next().map(PathBuf::from)).flatten()
    };
    mountinfo.lines().filter_map(path).collect()
}

fn unix_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::mounted;

    #[test]
    fn mounted_namespaces() {
        let mountinfo = "25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw\n\
                         531 64 0:4 net:[4026532267] /run/netns/blue rw shared:1 - nsfs nsfs rw\n\
                         532 64 0:4 mnt:[4026532268] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n";
        assert_eq!(mounted(mountinfo), [PathBuf::from("/run/netns/blue")]);
    }
}
