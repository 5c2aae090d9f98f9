//! Announcements: before a command attaches a cgroup that has cgroups in it, the daemon attaches those that its configuration names. Until
//! then the attachment around may hold them, where it has the same policy.
//!
//! ```text
//! DIR/daemon/inside_CGROUP_ID_PID        flock(2) on it is held by the command
//! DIR/daemon/inside_CGROUP_ID_PID/ready  the daemon has attached them
//! ```
//!
//! **Invariant:** an announcement is in force until its command has attached the cgroup, or has ended. It steers nothing.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    Error, Lock, Pins,
    pins::{file_name, list, try_flock},
};

const PREFIX: &str = "inside_";
const READY: &str = "ready";
/// No cgroup has this id: what is announced for it steers nothing, and is only answered.
const NO_CGROUP: u64 = 0;

/// A command's announcement, which ends when it is dropped.
#[derive(Debug)]
pub struct Announcement {
    directory: PathBuf,
    _flock: Flock<fs::File>,
}

impl Pins {
    /// Announces that a cgroup gets an attachment, and notifies the daemon. `Ok(None)`: no daemon runs.
    pub fn announce(&self, lock: &Lock, cgroup_id: u64) -> Result<Option<Announcement>, Error> {
        if !self.daemon_runs()? {
            return Ok(None);
        }
        let directory = self.daemon().join(format!("{PREFIX}{cgroup_id}_{}", std::process::id()));
        match fs::create_dir(&directory) {
            // It is that of a process that had this id.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", &directory, error));
            }
            _ => remove(&directory.join(READY))?,
        }
        let Some(flock) = try_flock(&directory, FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        self.notify_daemon(lock)?;
        Ok(Some(Announcement { directory, _flock: flock }))
    }

    /// Asks the daemon to say when it has done what is asked of it under this lock, and notifies it. `Ok(None)`: no daemon runs.
    pub fn ask_for_answer(&self, lock: &Lock) -> Result<Option<Announcement>, Error> {
        self.announce(lock, NO_CGROUP)
    }

    /// The announced cgroups, for the daemon. Removes the announcements of commands that were killed.
    pub fn announced(&self, _lock: &Lock) -> Result<BTreeSet<u64>, Error> {
        let mut announced = BTreeSet::new();
        for directory in list(&self.daemon())? {
            let Some(cgroup_id) = cgroup_id(&directory) else { continue };
            match try_flock(&directory, FlockArg::LockSharedNonblock) {
                Ok(None) => drop(announced.insert(cgroup_id)),
                Ok(Some(_)) => {
                    remove(&directory.join(READY))?;
                    remove(&directory)?;
                }
                // The command has just ended.
                Err(_) if !directory.exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(announced)
    }

    /// Tells the commands that what the configuration names in these cgroups is attached.
    pub fn confirm(&self, _lock: &Lock, announced: &BTreeSet<u64>) -> Result<(), Error> {
        for directory in list(&self.daemon())? {
            if !cgroup_id(&directory).is_some_and(|cgroup_id| announced.contains(&cgroup_id)) {
                continue;
            }
            let ready = directory.join(READY);
            match fs::create_dir(&ready) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                    return Err(failed("create", &ready, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Announcement {
    /// Whether the daemon has attached what the configuration names in the cgroup, and has done what it was notified of.
    pub fn is_confirmed(&self) -> bool {
        self.directory.join(READY).exists()
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let removed = remove(&self.directory.join(READY)).and_then(|()| remove(&self.directory));
        if let Err(error) = removed {
            log::warn!("{error}");
        }
    }
}

fn cgroup_id(directory: &Path) -> Option<u64> {
    let name = file_name(directory);
    let (cgroup_id, _) = name.strip_prefix(PREFIX)?.split_once('_')?;
    cgroup_id.parse().ok()
}

fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", directory, error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Pin { action, path: path.to_owned(), source }
}
