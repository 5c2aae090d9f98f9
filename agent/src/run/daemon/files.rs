//! Watches the policy files, and the pin directory that `steer off` removes.
//!
//! A separate thread reads them, because a file system may block a reader.
//!
//! **Invariant:** a file that is still being written is not reported, because a partial configuration can be valid.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    host::policy_files::{self, Store},
    kernel::{CHANGED_MANUALLY, DAEMON_DIRECTORY},
};

/// How long a file must be unchanged before it is reported.
const SETTLED: Duration = Duration::from_millis(20);

/// Queued changes for the daemon's loop, which takes them immediately.
const WAITING: usize = 4;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The configuration has been written or replaced.
    Config,
    /// The pin directory is gone.
    Pins,
    /// A command has attached or detached something.
    Manual,
}

/// Watches on a separate thread, which ends when it fails or when the receiver is dropped. Returns the receiver of changes.
pub(super) fn watch(store: &Store, pins: &Path) -> io::Result<mpsc::Receiver<Change>> {
    let (changes, receiver) = mpsc::channel(WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut watch = {
        let _inside = runtime.enter();
        Watch::new(store, pins)?
    };
    let report = async move {
        loop {
            match watch.next().await {
                Ok(change) => match changes.send(change).await {
                    Ok(()) => {}
                    Err(_nobody_listens) => return,
                },
                Err(error) => return log::error!("watch the configuration and the pins: {error}"),
            }
        }
    };
    thread::Builder::new().name("files".to_owned()).spawn(move || runtime.block_on(report))?;
    Ok(receiver)
}

struct Watch {
    events: EventStream<[u8; 4096]>,
    pins: WatchDescriptor,
    commands: WatchDescriptor,
    /// Directories in which every file with the right ending is a policy file.
    directories: Vec<WatchDescriptor>,
    store: Store,
    /// What was last reported. It is compared because a symbolic link within the path can lead to another file, as where
    /// Kubernetes replaces the files that it mounts.
    known: Fingerprint,
    changing: Option<(Fingerprint, Instant)>,
}

/// The state of the files. It differs whenever a file was written, replaced, added or removed.
#[derive(PartialEq, Eq)]
struct Fingerprint(Vec<(PathBuf, Option<Version>)>);

/// Inode, size, and time of the last change.
type Version = (u64, u64, i64, i64);

impl Fingerprint {
    fn of(store: &Store) -> Self {
        let identity = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok();
            (path, metadata.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec())))
        };
        Self(store.files().unwrap_or_default().into_iter().map(identity).collect())
    }
}

impl Watch {
    /// Watches the directory of the file, because editors and package managers replace files instead of writing them, and the
    /// directories of policies. Creates these directories where that is possible.
    fn new(store: &Store, pins: &Path) -> io::Result<Self> {
        let file = std::path::absolute(store.file())?;
        let target = file.canonicalize()?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::ONLYDIR;
        for path in [&file, &target] {
            inotify.watches().add(path.parent().unwrap_or(Path::new("/")), mask)?;
        }
        let mut directories = Vec::new();
        for directory in store.directories() {
            let watched = fs::create_dir_all(directory)
                .and_then(|()| inotify.watches().add(directory, mask | WatchMask::MOVED_FROM));
            match watched {
                Ok(watched) => directories.push(watched),
                Err(error) => log::warn!("changes in {} will be seen on SIGHUP only: {error}", directory.display()),
            }
        }
        let daemon_directory = pins.join(DAEMON_DIRECTORY);
        let pins = inotify.watches().add(pins, WatchMask::DELETE | WatchMask::ONLYDIR)?;
        let commands = inotify.watches().add(daemon_directory, WatchMask::DELETE | WatchMask::ONLYDIR)?;
        Ok(Self {
            events: inotify.into_event_stream([0; 4096])?,
            pins,
            commands,
            directories,
            known: Fingerprint::of(store),
            store: store.clone(),
            changing: None,
        })
    }

    /// Waits for the next change.
    async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some((before, settled)) = &self.changing {
                tokio::time::sleep_until(*settled).await;
                let now = Fingerprint::of(&self.store);
                if now == *before {
                    self.changing = None;
                    self.known = now;
                    return Ok(Change::Config);
                }
                self.changing = Some((now, Instant::now() + SETTLED));
                continue;
            }
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            let name = event.name.as_deref();
            // The daemon's own directory is removed first. The removal of the pins' directory is not reported while this process has it
            // open.
            if event.wd == self.pins && name == Some(OsStr::new(DAEMON_DIRECTORY)) {
                return Ok(Change::Pins);
            }
            if event.wd == self.commands {
                if name == Some(OsStr::new(CHANGED_MANUALLY)) {
                    return Ok(Change::Manual);
                }
                continue;
            }
            let is_policy = self.directories.contains(&event.wd) && name.is_some_and(policy_files::is_policy_file);
            let now = Fingerprint::of(&self.store);
            if is_policy || event.wd != self.pins && now != self.known {
                self.changing = Some((now, Instant::now() + SETTLED));
            }
        }
    }
}
