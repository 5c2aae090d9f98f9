//! The two paths that steer the daemon itself: the configuration file, and the pin directory that `steer off` removes.

use std::{ffi::OsStr, io, path::Path};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};

use crate::datapath::DAEMON_DIRECTORY;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Something in the configuration's directory; the file is to be read again.
    Config,
    /// The pin directory is gone.
    Pins,
}

pub(super) struct Watch {
    events: EventStream<[u8; 4096]>,
    pins: WatchDescriptor,
}

impl Watch {
    /// Watches the directory of the file, for editors and packagers replace files instead of writing them.
    pub(super) fn new(config_file: &Path, pins: &Path) -> io::Result<Self> {
        let file = config_file.canonicalize()?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let inotify = Inotify::init()?;
        inotify
            .watches()
            .add(directory, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::ONLYDIR)?;
        let pins = inotify.watches().add(pins, WatchMask::DELETE | WatchMask::ONLYDIR)?;
        Ok(Self { events: inotify.into_event_stream([0; 4096])?, pins })
    }

    pub(super) async fn next(&mut self) -> io::Result<Change> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.wd != self.pins {
                return Ok(Change::Config);
            }
            // The daemon's own directory goes first; that of the pins is not reported, for this process holds it.
            if event.name.as_deref() == Some(OsStr::new(DAEMON_DIRECTORY)) {
                return Ok(Change::Pins);
            }
        }
    }
}
