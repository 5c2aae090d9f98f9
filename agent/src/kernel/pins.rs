//! Where the kernel objects are pinned, and the locks that order changes.
//!
//! ```text
//! DIR                      flock(2) on it orders all changes
//! DIR/daemon               flock(2) on it is held by the one daemon; in it, commands notify the daemon
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
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{self, Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use steer_common::ABI_VERSION;

use super::{
    Error,
    bpffs::{self, Located},
};
use crate::{host::file::lock_until, model::quote::quoted};

const ABI_PREFIX: &str = "abi";
/// How long a change waits for another one to finish, by default.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The pin directory of one steer instance.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// The path by which the user knows it.
    name: PathBuf,
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

impl Pins {
    /// The pins below a directory, which need not exist. `None`: no bpffs is mounted there, so nothing can be pinned.
    pub fn find(directory: &Path) -> Result<Option<Self>, Error> {
        check_link(directory)?;
        bpffs::locate(directory).map(|located| Self::new(located, directory)).transpose()
    }

    /// As [`Self::find`], but mounts the bpffs if it is missing.
    pub fn find_or_mount(directory: &Path) -> Result<Self, Error> {
        check_link(directory)?;
        Self::new(bpffs::locate_or_mount(directory)?, directory)
    }

    fn new(located: Located, directory: &Path) -> Result<Self, Error> {
        // It may be missing. A user who may not even look at it gets another error, from what is attempted there.
        fs::symlink_metadata(&located.path).map_or(Ok(()), |found| check_access(&located.path, &found))?;
        let name = path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        Ok(Self { root: located.path, name, anchor: located.anchor.map(Arc::new), patience: LOCK_PATIENCE })
    }

    /// The same pins with another limit for how long a change waits for another one.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same pins under the path by which the user knows them.
    #[must_use]
    pub fn with_name(self, name: PathBuf) -> Self {
        Self { name, ..self }
    }

    /// The path by which the user knows the pin directory. It identifies the instance of steer, wherever a process sees the
    /// directory.
    pub fn name(&self) -> &Path {
        &self.name
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
        self.root.join(super::daemon_lock::DAEMON_DIRECTORY)
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
            let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let file = match fs::File::options().read(true).custom_flags(flags).open(&self.root) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::Pin { action: "open", path: self.root.clone(), source }),
            };
            let metadata = file.metadata().map_err(|source| self.failed("read", source))?;
            // Another user may have created it since it was found missing.
            check_access(&self.root, &metadata)?;
            let inode = metadata.ino();
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
            let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
            created.map_err(|source| self.failed("create", source))?;
            if let Some(lock) = self.lock()? {
                return Ok(lock);
            }
        }
    }

    /// The process that holds the lock, where the kernel shows it (proc(5), `/proc/locks`).
    pub fn lock_holder(&self) -> Option<u32> {
        lock_holder(&fs::File::open(&self.root).ok()?)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Pin { action, path: self.root.clone(), source }
    }
}

/// Fails if the pin directory is a symbolic link, which may lead anywhere.
fn check_link(directory: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(directory).is_ok_and(|found| found.is_symlink()) {
        return Err(insecure(directory, "is a symbolic link".to_owned(), "rm"));
    }
    Ok(())
}

/// Fails unless only root, or this user, may enter the pin directory: any other user could lock it, or put other pins there.
fn check_access(directory: &Path, found: &fs::Metadata) -> Result<(), Error> {
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(insecure(directory, format!("belongs to user {owner}"), "rm -r"));
    }
    if mode & 0o077 != 0 {
        return Err(insecure(directory, format!("has mode {mode:04o}"), "chmod 0700"));
    }
    Ok(())
}

fn insecure(directory: &Path, what: String, command: &str) -> Error {
    let command = format!("{command} {}", quoted(&directory.display().to_string()));
    Error::Insecure { path: directory.to_owned(), what, command }
}

/// The process that holds a flock(2) lock on this file, where the kernel shows it (proc(5), `/proc/locks`).
pub(super) fn lock_holder(file: &fs::File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    holder(&fs::read_to_string("/proc/locks").ok()?, &format!("{major:02x}:{minor:02x}:{}", metadata.ino()))
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

/// Locks a directory. `Ok(None)`: another process holds the lock.
pub(super) fn try_flock(path: &Path, how: FlockArg) -> Result<Option<Flock<fs::File>>, Error> {
    let locked = fs::File::open(path).and_then(|directory| try_lock(directory, how));
    locked.map_err(|source| Error::Pin { action: "lock", path: path.to_owned(), source })
}

/// Locks a file or directory. `Ok(None)`: another process holds the lock.
pub(super) fn try_lock(file: fs::File, how: FlockArg) -> io::Result<Option<Flock<fs::File>>> {
    match Flock::lock(file, how) {
        Ok(flock) => Ok(Some(flock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
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
