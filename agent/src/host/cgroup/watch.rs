//! Reports new and removed cgroups, by inotify on the directories in which a match can appear.
//!
//! Two parts, so that reports are read without waiting for the code that acts on them: [`Reports`] names a directory by a
//! number, [`Watch`] adds directories and knows their paths.
//!
//! **Invariant:** a directory is watched before it is listed, so a cgroup that appears in between is reported twice, never
//! missed. [`Report::Lost`] reports that the kernel dropped events. The caller must then read everything again.

use std::{collections::HashMap, io};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask, Watches};

use super::{Error, Hierarchy};
use crate::model::{cgroup_path::CgroupPath, quote::shown};

/// A watched directory: the number of its watch, which is never reused for another directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Directory(pub(crate) i32);

/// One change of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The cgroup of this name in this directory appeared, or is gone.
    Changed(Directory, String),
    /// The directory is gone. It gets no more reports.
    Closed(Directory),
    /// Events were lost: anything may have changed.
    Lost,
}

/// Reads the reports.
pub struct Reports {
    events: EventStream<[u8; 4096]>,
    /// Whether a name that is not UTF-8 has been logged.
    is_logged: bool,
}

/// Adds directories, and knows their paths.
pub struct Watch {
    watches: Watches,
    paths: HashMap<Directory, CgroupPath>,
}

/// Starts without watched directories. Needs a tokio runtime.
pub fn watch() -> Result<(Watch, Reports), Error> {
    let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096])).map_err(Error::Watch)?;
    let watch = Watch { watches: events.watches(), paths: HashMap::new() };
    Ok((watch, Reports { events, is_logged: false }))
}

impl Watch {
    /// Starts to report new and removed cgroups directly in `path`. It is no error to repeat this, or if the cgroup is gone.
    pub fn add(&mut self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.watches.add(hierarchy.directory(path), mask) {
            Ok(descriptor) => {
                self.paths.insert(Directory(descriptor.get_watch_descriptor_id()), path.clone());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::Watch(error)),
        }
    }

    /// The path of a watched directory.
    pub fn path(&self, directory: Directory) -> Option<&CgroupPath> {
        self.paths.get(&directory)
    }

    /// Forgets a directory that is gone.
    pub fn close(&mut self, directory: Directory) {
        self.paths.remove(&directory);
    }
}

impl Reports {
    /// Waits for the next report. May be cancelled.
    pub async fn next(&mut self) -> Result<Report, Error> {
        loop {
            let event = match self.events.next().await {
                Some(event) => event.map_err(Error::Watch)?,
                None => return Err(Error::Watch(io::ErrorKind::UnexpectedEof.into())),
            };
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Ok(Report::Lost);
            }
            let directory = Directory(event.wd.get_watch_descriptor_id());
            if event.mask.contains(EventMask::IGNORED) {
                return Ok(Report::Closed(directory));
            }
            let Some(name) = event.name.filter(|_| event.mask.contains(EventMask::ISDIR)) else { continue };
            match name.into_string() {
                Ok(name) => return Ok(Report::Changed(directory, name)),
                // Logged only once, so that many such names do not fill the log.
                Err(name) if !self.is_logged => {
                    self.is_logged = true;
                    log::error!(
                        "ignored cgroup {}: its name is not UTF-8, so no policy can name it; more such names are not logged",
                        shown(&name)
                    );
                }
                Err(_name) => {}
            }
        }
    }
}
