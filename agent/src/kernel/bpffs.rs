//! Finds or mounts the bpffs that holds the pins.
//!
//! Every mount of a bpffs is a separate instance. One in a private mount namespace, as `ip netns exec` makes, would end
//! with the namespace, and so would the enforcement. If this process sees no bpffs, it searches the mount namespaces of
//! the processes that started it, and mounts one in the namespace of the outermost.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::Mode,
        statfs::{FsType, statfs},
    },
    unistd::getppid,
};

use super::Error;

const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// A directory on a bpffs, and how this process reaches it.
#[derive(Debug)]
pub(super) struct Located {
    /// Where it is for this process.
    pub(super) path: PathBuf,
    /// Keeps the path usable if the directory is not visible in this mount namespace.
    pub(super) anchor: Option<OwnedFd>,
}

/// Finds the pin directory `directory`, if its bpffs is mounted.
pub(super) fn locate(directory: &Path) -> Option<Located> {
    if is_on_bpffs(directory) {
        return Some(Located { path: directory.to_owned(), anchor: None });
    }
    let below = directory.strip_prefix("/").ok()?;
    let existing = |seen: PathBuf| seen.ancestors().find(|path| path.exists()).map(Path::to_owned);
    ancestors().into_iter().find_map(|pid| {
        let seen = Path::new("/proc").join(pid.to_string()).join("root").join(below);
        let on_bpffs = |path: PathBuf| existing(path).filter(|path| is_on_bpffs(path));
        // The directory around it, so that it can be removed and made; itself, if it is a mount.
        let around = seen.parent().and_then(|around| on_bpffs(around.to_owned()));
        let there = around.or_else(|| on_bpffs(seen.clone()))?;
        let anchor = open(&there, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        let rest = seen.strip_prefix(&there).ok()?;
        let path = Path::new("/proc/self/fd").join(anchor.as_raw_fd().to_string()).join(rest);
        Some(Located { path, anchor: Some(anchor) })
    })
}

/// As [`locate`], but mounts the bpffs if it is missing: at `/sys/fs/bpf`, or at `directory` itself if it is elsewhere and
/// empty.
pub(super) fn locate_or_mount(directory: &Path) -> Result<Located, Error> {
    if let Some(found) = locate(directory) {
        return Ok(found);
    }
    let point = if directory.starts_with(MOUNT_POINT) { Path::new(MOUNT_POINT) } else { directory };
    let failed = |source| Error::Pin { action: "mount a bpffs at", path: point.to_owned(), source };
    // Only one process may mount at a time: a second mount would hide the pins in the first.
    let parent = fs::File::open(point.parent().unwrap_or(point)).map_err(failed)?;
    let _locked = Flock::lock(parent, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
    if let Some(found) = locate(directory) {
        return Ok(found);
    }
    if fs::read_dir(point).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(failed(io::Error::other("it is not empty, and not on a bpffs; use a directory below /sys/fs/bpf")));
    }
    in_outermost_mount_namespace(|| mount_bpffs(point)).map_err(failed)?;
    locate(directory).ok_or_else(|| failed(io::Error::other("it was mounted but is not visible")))
}

fn mount_bpffs(point: &Path) -> io::Result<()> {
    log::info!("mounting a bpffs at {}", point.display());
    fs::create_dir_all(point)?;
    Ok(mount(Some("bpf"), point, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?)
}

/// Runs `action` in the mount namespace of the outermost ancestor that this process may read. Uses a separate thread,
/// because the change cannot be undone.
fn in_outermost_mount_namespace(action: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let open_namespace = |pid: i32| fs::File::open(format!("/proc/{pid}/ns/mnt"));
    let namespace = ancestors().into_iter().rev().find_map(|pid| open_namespace(pid).ok());
    let namespace = namespace.map_or_else(|| fs::File::open("/proc/self/ns/mnt"), Ok)?;
    let enter_and_act = || {
        unshare(CloneFlags::CLONE_FS)?;
        setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        action()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_act).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

/// The processes that started this one, the nearest first.
fn ancestors() -> Vec<i32> {
    let parent_of = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        (parent > 0).then_some(parent)
    };
    std::iter::successors(Some(getppid().as_raw()).filter(|pid| *pid > 0), |pid| parent_of(*pid)).collect()
}

/// Whether a file system is mounted at exactly this directory.
pub(super) fn is_mount_point(directory: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    directory
        .parent()
        .is_some_and(|parent| device(directory).is_ok_and(|own| device(parent).is_ok_and(|its| own != its)))
}

/// Whether a path, or the place where it would be created, is on a bpffs.
fn is_on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find_map(|existing| statfs(existing).ok());
    existing.is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
