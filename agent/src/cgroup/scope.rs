//! A cgroup of one's own, for the life of a command.
//!
//! Its directory is locked by flock(2) as long as somebody looks after it: the wrapper that made it, then the keeper. An
//! empty one that nobody has locked was left behind by killed processes, and whoever meets it removes it.

use std::{fs, io, os::fd::AsRawFd as _};

use nix::fcntl::{Flock, FlockArg};

use super::{Cgroup, CgroupPath, Error, Hierarchy};

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
            Ok(lock) => Ok(Some(Self { cgroup, lock })),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
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
        fs::write(&file, "0").map_err(|source| Error::File { action: "enter", file, source })
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

/// Removes an empty cgroup with all that are in it. One that is gone already is no error.
pub fn remove(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
    for child in hierarchy.children(path)? {
        remove(hierarchy, &child.path)?;
    }
    let file = hierarchy.directory(path);
    match fs::remove_dir(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", file, source: error })
        }
        _ => Ok(()),
    }
}

/// The scopes directly in `parent` that are empty and that nobody looks after, locked so that only the caller removes them.
pub fn abandoned_in(hierarchy: &Hierarchy, parent: &CgroupPath) -> Result<Vec<Scope>, Error> {
    let mut abandoned = Vec::new();
    for child in hierarchy.children(parent)? {
        if is_scope(&child.path)
            && let Some(scope) = Scope::claim(hierarchy, &child.path)?
            && !is_populated(hierarchy, &child.path)?
        {
            abandoned.push(scope);
        }
    }
    Ok(abandoned)
}
