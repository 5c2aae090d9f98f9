//! Where the kernel objects are pinned, and the locks that order changes.
//!
//! ```text
//! DIR                      flock(2) on it orders all changes
//! DIR/daemon               flock(2) on it is held by the one daemon
//! DIR/events               flock(2) on it is held by the one reader of the events
//! DIR/abiVERSION/maps/NAME
//! DIR/abiVERSION/programs/NAME
//! DIR/abiVERSION/links/CGROUP_ID/NAME
//! ```
//!
//! **Invariant:** `links/CGROUP_ID/NAME` exists exactly as long as steer is responsible for that cgroup. The layout does
//! not depend on [`ABI_VERSION`]: any version can list and detach the links of any other.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use steer_common::ABI_VERSION;

use super::{Error, bpffs::Located};

/// Name of the directory whose lock a daemon holds.
pub const DAEMON_DIRECTORY: &str = "daemon";
/// Name of the directory in it that is created and removed after a manual change.
pub const CHANGED_MANUALLY: &str = "changed";
/// Name of the directory whose lock the reader of the events holds.
const READER_DIRECTORY: &str = "events";
/// How long a process that checks for a daemon may hold its lock.
const CHECK_PATIENCE: Duration = Duration::from_millis(500);
const ABI_PREFIX: &str = "abi";
/// How long a change waits for another one to finish, by default.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The pin directory of one steer instance.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// Keeps `root` open if it is not visible in this mount namespace.
    anchor: Option<Arc<OwnedFd>>,
    /// How long a change waits for another one to finish.
    patience: Duration,
}

/// Held while changing anything below the pin directory.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<fs::File>,
    /// Identity of the directory. The daemon compares it to notice that `steer off` removed its directory.
    pub(crate) inode: u64,
}

/// Held by a daemon for its life.
#[derive(Debug)]
pub struct DaemonLock {
    _flock: Flock<fs::File>,
}

/// Held by the reader of the events. While it is held, nothing but `steer off` removes the maps, so no event is lost with them.
#[derive(Debug)]
pub(super) struct ReaderLock {
    _flock: Flock<fs::File>,
}

impl Pins {
    /// Pins below a directory, which need not exist.
    pub fn new(located: Located) -> Self {
        Self { root: located.path, anchor: located.anchor.map(Arc::new), patience: LOCK_PATIENCE }
    }

    /// The same pins with another limit for how long a change waits for another one.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The descriptor that a process must inherit, so that [`Self::root`] works there.
    pub fn anchor(&self) -> Option<i32> {
        self.anchor.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The pin directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn abi(&self) -> PathBuf {
        self.root.join(format!("{ABI_PREFIX}{ABI_VERSION}"))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.abi().join("maps").join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.abi().join("programs").join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.abi().join("links")
    }

    pub(super) fn attachment(&self, cgroup_id: u64) -> PathBuf {
        self.links().join(cgroup_id.to_string())
    }

    pub(super) fn daemon(&self) -> PathBuf {
        self.root.join(DAEMON_DIRECTORY)
    }

    pub(super) fn reader(&self) -> PathBuf {
        self.root.join(READER_DIRECTORY)
    }

    /// Directories of pinned state, of all ABI versions.
    pub(super) fn versions(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(list(&self.root)?.into_iter().filter(|path| file_name(path).starts_with(ABI_PREFIX)).collect())
    }

    /// Directories of pinned state of other ABI versions.
    pub(super) fn other_abis(&self) -> Result<Vec<PathBuf>, Error> {
        let own = self.abi();
        Ok(self.versions()?.into_iter().filter(|path| *path != own).collect())
    }

    /// Creates the directories.
    pub(super) fn create(&self) -> Result<(), Error> {
        for directory in [self.map(""), self.program(""), self.links()] {
            fs::create_dir_all(&directory).map_err(|source| Error::Pin {
                action: "create",
                path: directory,
                source,
            })?;
        }
        Ok(())
    }

    /// Waits for the lock that allows changes. `Ok(None)`: there is no pin directory.
    pub fn lock(&self) -> Result<Option<Lock>, Error> {
        let deadline = Instant::now() + self.patience;
        loop {
            let file = match fs::File::open(&self.root) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::Pin { action: "open", path: self.root.clone(), source }),
            };
            let inode = file.metadata().map_err(|source| self.failed("read", source))?.ino();
            let Some(locked) = lock_until(file, deadline) else {
                let (path, patience) = (self.root.clone(), self.patience);
                return Err(Error::Locked { path, patience, holder: self.lock_holder() });
            };
            let flock = locked.map_err(|errno| self.failed("lock", errno.into()))?;
            // `steer off` may have removed the directory between the open and the lock.
            if fs::metadata(&self.root).is_ok_and(|now| now.ino() == inode) {
                return Ok(Some(Lock { _flock: flock, inode }));
            }
        }
    }

    /// As [`Self::lock`], but creates the directory if it is missing.
    pub fn create_and_lock(&self) -> Result<Lock, Error> {
        loop {
            fs::create_dir_all(&self.root).map_err(|source| self.failed("create", source))?;
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock of the one daemon of this pin directory. `Ok(None)`: another daemon holds it.
    pub fn daemon_lock(&self, _lock: &Lock) -> Result<Option<DaemonLock>, Error> {
        Ok(claim(&self.daemon())?.map(|flock| DaemonLock { _flock: flock }))
    }

    /// Whether a daemon is running.
    pub fn daemon_runs(&self) -> Result<bool, Error> {
        is_claimed(&self.daemon())
    }

    /// Takes the lock of the one reader of the events.
    pub(super) fn reader_lock(&self) -> Result<ReaderLock, Error> {
        let flock = claim(&self.reader())?.ok_or_else(|| Error::Read { path: self.root.clone() })?;
        Ok(ReaderLock { _flock: flock })
    }

    /// Whether a process reads the events.
    pub(super) fn is_read(&self) -> Result<bool, Error> {
        is_claimed(&self.reader())
    }

    /// Notifies the daemon, if there is one, of a manual change: it sees that the directory is created and removed.
    pub fn notify_daemon(&self, _lock: &Lock) -> Result<(), Error> {
        let path = self.daemon().join(CHANGED_MANUALLY);
        if !self.daemon_runs()? {
            return Ok(());
        }
        let notified = fs::create_dir(&path).and_then(|()| fs::remove_dir(&path));
        notified.map_err(|source| Error::Pin { action: "notify the daemon by", path, source })
    }

    /// The process that holds the lock, where the kernel shows it (proc(5), `/proc/locks`).
    pub fn lock_holder(&self) -> Option<u32> {
        let metadata = fs::metadata(&self.root).ok()?;
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        holder(&fs::read_to_string("/proc/locks").ok()?, &format!("{major:02x}:{minor:02x}:{}", metadata.ino()))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Pin { action, path: self.root.clone(), source }
    }
}

/// The process that holds a flock(2) lock on this file, from the text of `/proc/locks`. Waiting processes have an arrow.
fn holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let mut is = |wanted: &str| words.next() == Some(wanted);
        let held = is("FLOCK") && is("ADVISORY") && is("WRITE");
        let (pid, locked) = (words.next()?, words.next()?);
        (held && locked == file).then(|| pid.parse().ok())?
    })
}

/// Waits in the kernel's queue, which is first come, first served. `None`: not locked before `deadline`.
fn lock_until(file: fs::File, deadline: Instant) -> Option<nix::Result<Flock<fs::File>>> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((file, nix::Error::EWOULDBLOCK)) => file,
        Ok(flock) => return Some(Ok(flock)),
        Err((_, errno)) => return Some(Err(errno)),
    };
    // Only a signal ends the wait early, so another thread waits. If it gets the lock too late, it releases it at once.
    let (locked, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut waiting = file;
        let flock = loop {
            match Flock::lock(waiting, FlockArg::LockExclusive) {
                Err((file, nix::Error::EINTR)) => waiting = file,
                flock => break flock.map_err(|(_, errno)| errno),
            }
        };
        drop(locked.send(flock));
    });
    receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

/// Creates and locks a directory for the life of a process. `Ok(None)`: another process holds the lock.
fn claim(path: &Path) -> Result<Option<Flock<fs::File>>, Error> {
    fs::create_dir_all(path).map_err(|source| Error::Pin { action: "create", path: path.to_owned(), source })?;
    let deadline = Instant::now() + CHECK_PATIENCE;
    loop {
        // A process that only checks holds the lock briefly.
        match try_flock(path, FlockArg::LockExclusiveNonblock)? {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            flock => return Ok(flock),
        }
    }
}

fn is_claimed(path: &Path) -> Result<bool, Error> {
    Ok(path.exists() && try_flock(path, FlockArg::LockSharedNonblock)?.is_none())
}

/// Locks a directory. `Ok(None)`: another process holds the lock.
fn try_flock(path: &Path, how: FlockArg) -> Result<Option<Flock<fs::File>>, Error> {
    let failed = |source| Error::Pin { action: "lock", path: path.to_owned(), source };
    match Flock::lock(fs::File::open(path).map_err(failed)?, how) {
        Ok(flock) => Ok(Some(flock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Entries of a directory, sorted; none when it does not exist.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Pin { action: "list", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    // The paths differ only in their last component.
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::holder;

    #[test]
    fn the_holder_of_a_lock() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1f:5 0 EOF
2: FLOCK  ADVISORY  WRITE 42 00:1f:5 0 EOF
2: -> FLOCK  ADVISORY  WRITE 43 00:1f:5 0 EOF
3: FLOCK  ADVISORY  READ 44 00:1f:6 0 EOF
";
        assert_eq!(holder(locks, "00:1f:5"), Some(42));
        assert_eq!(holder(locks, "00:1f:6"), None);
    }
}
