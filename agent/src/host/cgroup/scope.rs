//! A scope: a cgroup that exists for one command.
//!
//! Its directory is locked by flock(2) while a process is responsible for it: first the wrapper that made it, then the
//! keeper. An empty scope without a lock is a leftover of killed processes. Any command that finds it removes it.

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag, openat},
    sys::stat::Mode,
};

use super::{Cgroup, Error, Hierarchy};
use crate::model::cgroup_path::CgroupPath;

const PREFIX: &str = "steer-exec-";

/// Whether a cgroup is a scope, by its name.
pub fn is_scope(path: &CgroupPath) -> bool {
    path.name().starts_with(PREFIX)
}

/// Whether a cgroup is a scope that the daemon made for a user.
pub fn is_of_user(path: &CgroupPath, uid: u32) -> bool {
    path.name().starts_with(&for_user(uid))
}

fn for_user(uid: u32) -> String {
    format!("{PREFIX}user{uid}-")
}

/// A scope, with its lock.
#[derive(Debug)]
pub struct Scope {
    /// The cgroup.
    pub cgroup: Cgroup,
    lock: Flock<fs::File>,
}

impl Scope {
    /// Creates a scope in `parent`, named after this process. It never uses a name again: whoever is responsible for an earlier scope may
    /// still remove it by its path.
    pub fn create(hierarchy: &Hierarchy, parent: &CgroupPath) -> Result<Self, Error> {
        Self::create_called(hierarchy, parent, PREFIX)
    }

    /// The same, for a command of a user.
    pub fn create_for(hierarchy: &Hierarchy, parent: &CgroupPath, uid: u32) -> Result<Self, Error> {
        Self::create_called(hierarchy, parent, &for_user(uid))
    }

    fn create_called(hierarchy: &Hierarchy, parent: &CgroupPath, prefix: &str) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.child(&format!("{prefix}{pid}-{number}"));
            match fs::create_dir(hierarchy.directory(&path)) {
                // `None`: another process removed it as abandoned before it was locked.
                Ok(()) => {
                    if let Some(scope) = Self::claim(hierarchy, &path)? {
                        return Ok(scope);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(Error::File { action: "create", file: hierarchy.directory(&path), source });
                }
            }
        }
    }

    /// Locks a cgroup. `None`: another process holds the lock, or the cgroup is gone.
    fn claim(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<Self>, Error> {
        let file = hierarchy.directory(path);
        let failed = |action: &'static str| {
            let file = file.clone();
            move |source: io::Error| Error::File { action, file, source }
        };
        let cgroup = match hierarchy.open(path) {
            Ok(cgroup) => cgroup,
            Err(Error::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let directory: fs::File = cgroup.fd().try_clone_to_owned().map_err(failed("open"))?.into();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            // The previous holder of the lock may have removed the cgroup.
            Ok(lock) if fs::metadata(&file).is_ok_and(|now| now.ino() == cgroup.id) => Ok(Some(Self { cgroup, lock })),
            Ok(_) | Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed("lock")(errno.into())),
        }
    }

    /// The descriptor that holds the lock. A process that inherits it shares the lock. The lock ends with the last copy.
    pub fn lock_fd(&self) -> i32 {
        self.lock.as_raw_fd()
    }

    /// Moves another process into it. False if the process has ended.
    pub fn take(&self, hierarchy: &Hierarchy, pid: u32) -> Result<bool, Error> {
        match self.write(&pid.to_string()) {
            Ok(()) => Ok(true),
            Err(nix::Error::ESRCH) => Ok(false),
            Err(errno) => Err(self.failed(hierarchy, errno)),
        }
    }

    fn write(&self, pid: &str) -> nix::Result<()> {
        let procs = openat(self.cgroup.fd(), "cgroup.procs", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::write(procs, pid.as_bytes()).map(drop)
    }

    fn failed(&self, hierarchy: &Hierarchy, errno: nix::Error) -> Error {
        let file = hierarchy.directory(&self.cgroup.path).join("cgroup.procs");
        match errno {
            nix::Error::EOPNOTSUPP => Error::Threaded { file },
            errno => Error::File { action: "enter", file, source: errno.into() },
        }
    }

    /// Moves the calling process into it, by its descriptor: a cgroup that another process put in its place is not entered.
    /// Fails if the process is elsewhere afterwards.
    pub fn enter(&self, hierarchy: &Hierarchy) -> Result<(), Error> {
        self.write("0").map_err(|errno| self.failed(hierarchy, errno))?;
        let own = hierarchy.own()?;
        if hierarchy.id(&own)? == self.cgroup.id { Ok(()) } else { Err(Error::MovedAway { own }) }
    }
}

/// Where a scope for a process in `own` is made: in the nearest cgroup above it, or itself, that only root may change, as all
/// above that. Where a user may write to `cgroup.procs`, that user can move processes out. A user manager of systemd does the same.
pub fn place(hierarchy: &Hierarchy, own: &CgroupPath) -> Result<CgroupPath, Error> {
    let mut place = None;
    for path in own.self_and_ancestors().into_iter().rev() {
        let manager = path.name().starts_with("user@") && path.name().ends_with(".service");
        if manager || !is_roots(&hierarchy.directory(&path))? {
            break;
        }
        place = Some(path);
    }
    place.ok_or_else(|| Error::NotRoots { own: own.clone() })
}

/// Whether only root may change a cgroup, as far as owners and modes tell.
fn is_roots(directory: &Path) -> Result<bool, Error> {
    const OTHERS_WRITE: u32 = 0o022;
    for file in [directory.to_owned(), directory.join("cgroup.procs")] {
        let metadata = fs::metadata(&file).map_err(|source| Error::File { action: "read", file, source })?;
        if metadata.uid() != 0 || metadata.mode() & OTHERS_WRITE != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether any process is in a cgroup or below it; false if it is gone.
pub fn is_populated(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<bool, Error> {
    let file = hierarchy.directory(path).join("cgroup.events");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        Err(source) => Err(Error::File { action: "read", file, source }),
    }
}

/// Removes a cgroup and all below it. False if one of them has a process. True if it is already gone.
pub fn remove(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<bool, Error> {
    for child in hierarchy.children(path)? {
        if !remove(hierarchy, &child.path)? {
            return Ok(false);
        }
    }
    let file = hierarchy.directory(path);
    match fs::remove_dir(&file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(source) => Err(Error::File { action: "remove", file, source }),
    }
}

/// Removes a scope that is empty and not locked. False if the cgroup is not such a scope.
pub fn remove_abandoned(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<bool, Error> {
    if !is_scope(path) {
        return Ok(false);
    }
    // Held until it is removed, so that only one process removes it.
    let Some(_claimed) = Scope::claim(hierarchy, path)? else { return Ok(false) };
    Ok(!is_populated(hierarchy, path)? && remove(hierarchy, path)?)
}

/// Removes the abandoned scopes directly in `parent`.
pub fn clean_up(hierarchy: &Hierarchy, parent: &CgroupPath) -> Result<(), Error> {
    for child in hierarchy.children(parent)? {
        remove_abandoned(hierarchy, &child.path)?;
    }
    Ok(())
}
