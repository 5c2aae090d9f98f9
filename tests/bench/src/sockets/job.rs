//! The job of a worker: it makes sockets.
//!
//! **Invariant:** the timed section contains only the system calls under test and two readings of the clock.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    SockFlag, getsockopt, setsockopt, socket,
    sockopt::{BindToDevice, Mark},
};
use serde::{Deserialize, Serialize};

use super::variant::{DEVICE, Kind};
use crate::worker::{self, Place};

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// Whether each socket is bound by `setsockopt`.
    pub(super) bind: bool,
    pub(super) ops: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) elapsed: Duration,
    /// The interface of one more socket, which is made before the clock is read.
    pub(super) device: String,
    /// Its mark.
    pub(super) mark: u32,
}

/// The main function of a worker process.
pub(crate) fn serve(place: &Place) -> Result<()> {
    worker::serve(|| {
        place.join()?;
        Ok(|job: Job| job.run().with_context(|| format!("{job:?}")))
    })
}

impl Job {
    fn run(self) -> nix::Result<Answer> {
        let first = self.socket()?;
        let device = getsockopt(&first, BindToDevice)?.to_string_lossy().into_owned();
        let mark = getsockopt(&first, Mark)?;
        drop(first);
        let wanted = OsString::from(DEVICE);
        let start = Instant::now();
        if self.bind {
            for _ in 0..self.ops {
                setsockopt(&self.socket()?, BindToDevice, &wanted)?;
            }
        } else {
            for _ in 0..self.ops {
                drop(self.socket()?);
            }
        }
        Ok(Answer { elapsed: start.elapsed(), device, mark })
    }

    fn socket(self) -> nix::Result<OwnedFd> {
        socket(self.kind.family(), self.kind.socket_type(), SockFlag::SOCK_CLOEXEC, None)
    }
}
