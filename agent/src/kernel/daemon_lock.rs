//! The lock of the one daemon of a pin directory: who holds it, how it is notified, and its end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    Error, Lock, Pins,
    pins::{lock_holder, try_flock, try_lock},
};
use crate::host::pidfd::Pidfd;

/// Name of the directory whose lock a daemon holds.
pub const DAEMON_DIRECTORY: &str = "daemon";
/// Name of the directory in it that is created and removed after a manual change.
pub const CHANGED_MANUALLY: &str = "changed";
/// How long a process that checks for a daemon may hold its lock.
const CHECK_PATIENCE: Duration = Duration::from_millis(500);
/// How often a command checks whether the daemon has ended.
const GLANCE: Duration = Duration::from_millis(2);

/// Held by a daemon for its life.
#[derive(Debug)]
pub struct DaemonLock {
    _flock: Flock<fs::File>,
}

/// A daemon that runs, also after its pins are gone.
#[derive(Debug)]
pub struct RunningDaemon {
    path: PathBuf,
    /// The directory with the daemon's lock.
    directory: fs::File,
    /// Its process, where the kernel shows it (Linux 5.3, proc(5)).
    process: Option<(u32, Pidfd)>,
}

impl Pins {
    /// Takes the lock of the one daemon of this pin directory. `Ok(None)`: another daemon holds it.
    pub fn daemon_lock(&self, _lock: &Lock) -> Result<Option<DaemonLock>, Error> {
        Ok(claim(&self.daemon())?.map(|flock| DaemonLock { _flock: flock }))
    }

    /// Whether a daemon is running.
    pub fn daemon_runs(&self) -> Result<bool, Error> {
        Ok(self.held()?.is_some())
    }

    /// The daemon, if one is running.
    pub fn running_daemon(&self) -> Result<Option<RunningDaemon>, Error> {
        let Some(directory) = self.held()? else { return Ok(None) };
        let pid = lock_holder(&directory);
        let process = pid.and_then(|pid| Some((pid, Pidfd::open(pid).ok()?)));
        // The id may belong to another process by now.
        let process = process.filter(|_| lock_holder(&directory) == pid);
        Ok(Some(RunningDaemon { path: self.daemon(), directory, process }))
    }

    /// The directory of the daemon's lock, if a daemon holds it.
    fn held(&self) -> Result<Option<fs::File>, Error> {
        let path = self.daemon();
        match fs::File::open(&path) {
            Ok(directory) => Ok((!is_free(&directory, &path)?).then_some(directory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Pin { action: "open", path, source }),
        }
    }

    /// Notifies the daemon, if there is one, of a manual change: it sees that the directory is removed. A killed command may have
    /// left the directory.
    pub fn notify_daemon(&self, _lock: &Lock) -> Result<(), Error> {
        let path = self.daemon().join(CHANGED_MANUALLY);
        if !self.daemon_runs()? {
            return Ok(());
        }
        let notified = match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::remove_dir(&path),
        };
        notified.map_err(|source| Error::Pin { action: "notify the daemon by", path, source })
    }
}

impl RunningDaemon {
    /// Waits until it has ended. False if it has not after this time.
    pub fn ends_within(&self, patience: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + patience;
        loop {
            let has_ended = match &self.process {
                Some((_, process)) => process.has_ended().map_err(|source| self.failed(source))?,
                None => is_free(&self.directory, &self.path)?,
            };
            if has_ended || Instant::now() >= deadline {
                return Ok(has_ended);
            }
            thread::sleep(GLANCE);
        }
    }

    /// Its process, where the kernel shows it.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|(pid, _)| *pid)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Pin { action: "wait for the daemon of", path: self.path.clone(), source }
    }
}

/// Creates and locks a directory for the life of a process. `Ok(None)`: another process holds the lock.
pub(super) fn claim(path: &Path) -> Result<Option<Flock<fs::File>>, Error> {
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

/// Whether nobody holds the daemon's lock.
fn is_free(directory: &fs::File, path: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Pin { action: "lock", path: path.to_owned(), source };
    let directory = directory.try_clone().map_err(failed)?;
    Ok(try_lock(directory, FlockArg::LockSharedNonblock).map_err(failed)?.is_some())
}
