//! A cgroup of one's own, for the life of a command.
//!
//! Its directory is locked by flock(2) as long as somebody looks after it: the wrapper that made it, then the keeper. An
//! empty one that nobody has locked was left behind by killed processes, and whoever meets it removes it.

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};

use nix::fcntl::{Flock, FlockArg};

use super::{Cgroup, Error, Hierarchy};
use crate::model::cgroup_path::CgroupPath;

const PREFIX: &str = "steer-exec-";

/// Whether a cgroup is of the kind made here.
pub fn is_scope(path: &CgroupPath) -> bool {
    path.name().starts_with(PREFIX)
}

/// A cgroup made here, with the lock that says it is looked after.
#[derive(Debug)]
pub struct Scope {
    /// The cgroup.
    pub cgroup: Cgroup,
    lock: Flock<fs::File>,
}

impl Scope {
    /// Makes a new cgroup in `parent`, named after this process.
    pub fn create(hierarchy: &Hierarchy, parent: &CgroupPath) -> Result<Self, Error> {
        let pid = std::process::id();
        let mut number = 0;
        loop {
            let path = parent.child(&format!("{PREFIX}{pid}-{number}"));
            match fs::create_dir(hierarchy.directory(&path)) {
                Ok(()) => match Self::claim(hierarchy, &path)? {
                    Some(scope) => return Ok(scope),
                    // Taken for an abandoned one before it was locked.
                    None => number += 1,
                },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => {
                    return Err(Error::File { action: "create", file: hierarchy.directory(&path), source });
                }
            }
        }
    }

    /// Takes the lock of a cgroup that nobody looks after. `None`: somebody does, or it is gone.
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
            // Whoever had the lock may have removed it meanwhile.
            Ok(lock) if fs::metadata(&file).is_ok_and(|now| now.ino() == cgroup.id) => Ok(Some(Self { cgroup, lock })),
            Ok(_) | Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed("lock")(errno.into())),
        }
    }

    /// The descriptor that holds the lock. A process that inherits it shares the lock, which ends with the last copy.
    pub fn lock_fd(&self) -> i32 {
        self.lock.as_raw_fd()
    }

    /// Moves the calling process into it.
    pub fn enter(&self, hierarchy: &Hierarchy) -> Result<(), Error> {
        let file = hierarchy.directory(&self.cgroup.path).join("cgroup.procs");
        match fs::write(&file, "0") {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::Threaded { file }),
            Err(source) => Err(Error::File { action: "enter", file, source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Whether any process is in a cgroup or below it; false when it is gone.
pub fn is_populated(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<bool, Error> {
    let file = hierarchy.directory(path).join("cgroup.events");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        Err(source) => Err(Error::File { action: "read", file, source }),
    }
}

/// Removes a cgroup with all that are in it. False when a process is in one of them; true also when it is gone already.
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

/// Removes a cgroup that was made here, is empty, and that nobody looks after. False when it is not such a one.
pub fn remove_abandoned(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<bool, Error> {
    if !is_scope(path) {
        return Ok(false);
    }
    // Held until it is removed, so that only one of those who find it removes it.
    let Some(_claimed) = Scope::claim(hierarchy, path)? else { return Ok(false) };
    Ok(!is_populated(hierarchy, path)? && remove(hierarchy, path)?)
}

/// Removes the abandoned cgroups directly in `parent`.
pub fn clean_up(hierarchy: &Hierarchy, parent: &CgroupPath) -> Result<(), Error> {
    for child in hierarchy.children(parent)? {
        remove_abandoned(hierarchy, &child.path)?;
    }
    Ok(())
}
