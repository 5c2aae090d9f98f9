//! The two paths that steer the daemon itself: the configuration file, and the pin directory that `steer off` removes.
//!
//! **Invariant:** a file that is still being written is not reported: half a configuration can be a valid one.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::Instant;

use crate::datapath::{CHANGED_BY_HAND, DAEMON_DIRECTORY};

/// How long a file must have stayed the same.
const SETTLED: Duration = Duration::from_millis(20);

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The configuration has been written or replaced.
    Config,
    /// The pin directory is gone.
    Pins,
    /// A command has attached or detached something.
    ByHand,
}

pub(super) struct Watch {
    events: EventStream<[u8; 4096]>,
    pins: WatchDescriptor,
    commands: WatchDescriptor,
    file: PathBuf,
    /// Names under which the file is seen: its own, and that of what it links to.
    names: [OsString; 2],
    changing: Option<(Fingerprint, Instant)>,
}

/// Differs whenever the file has been written or replaced.
#[derive(PartialEq, Eq)]
struct Fingerprint(Option<(u64, u64, i64, i64)>);

impl Fingerprint {
    fn of(file: &Path) -> Self {
        let metadata = fs::metadata(file).ok();
        Self(metadata.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec())))
    }
}

impl Watch {
    /// Watches the directory of the file, for editors and packagers replace files instead of writing them.
    pub(super) fn new(config_file: &Path, pins: &Path) -> io::Result<Self> {
        let file = std::path::absolute(config_file)?;
        let target = file.canonicalize()?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::ONLYDIR;
        for path in [&file, &target] {
            inotify.watches().add(path.parent().unwrap_or(Path::new("/")), mask)?;
        }
        let daemon_directory = pins.join(DAEMON_DIRECTORY);
        let pins = inotify.watches().add(pins, WatchMask::DELETE | WatchMask::ONLYDIR)?;
        let commands = inotify.watches().add(daemon_directory, WatchMask::DELETE | WatchMask::ONLYDIR)?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        Ok(Self {
            events: inotify.into_event_stream([0; 4096])?,
            pins,
            commands,
            names: [name(&file), name(&target)],
            file,
            changing: None,
        })
    }

    /// Waits for the next change. May be cancelled.
    pub(super) async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some((before, settled)) = &self.changing {
                tokio::time::sleep_until(*settled).await;
                let now = Fingerprint::of(&self.file);
                if now == *before {
                    self.changing = None;
                    return Ok(Change::Config);
                }
                self.changing = Some((now, Instant::now() + SETTLED));
                continue;
            }
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            let name = event.name.as_deref();
            // The daemon's own directory goes first; that of the pins is not reported, for this process holds it.
            if event.wd == self.pins && name == Some(OsStr::new(DAEMON_DIRECTORY)) {
                return Ok(Change::Pins);
            }
            if event.wd == self.commands {
                if name == Some(OsStr::new(CHANGED_BY_HAND)) {
                    return Ok(Change::ByHand);
                }
                continue;
            }
            if event.wd != self.pins && self.names.iter().any(|own| Some(own.as_os_str()) == name) {
                self.changing = Some((Fingerprint::of(&self.file), Instant::now() + SETTLED));
            }
        }
    }
}
