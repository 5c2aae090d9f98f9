//! The lock of the one reader of the events. While it is held, nothing but `steer off` removes the maps, so no event is lost with
//! them.

use std::{fs, path::PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{Error, Pins, daemon_lock::claim, pins::try_flock};

/// Name of the directory whose lock the reader holds.
const READER_DIRECTORY: &str = "events";

/// Held by the reader.
#[derive(Debug)]
pub(super) struct ReaderLock {
    _flock: Flock<fs::File>,
}

impl Pins {
    pub(super) fn reader(&self) -> PathBuf {
        self.root().join(READER_DIRECTORY)
    }

    /// Takes the lock.
    pub(super) fn reader_lock(&self) -> Result<ReaderLock, Error> {
        let flock = claim(&self.reader())?.ok_or_else(|| Error::Read { path: self.root().to_owned() })?;
        Ok(ReaderLock { _flock: flock })
    }

    /// Whether a process reads the events.
    pub(super) fn is_read(&self) -> Result<bool, Error> {
        let path = self.reader();
        Ok(path.exists() && try_flock(&path, FlockArg::LockSharedNonblock)?.is_none())
    }
}
