//! What comes and goes in the hierarchy, by inotify on the directories in which a match can appear.
//!
//! Two halves, so that reports are read without waiting for those who act on them: [`Reports`] names a directory by a number,
//! [`Watch`] adds directories and knows their paths.
//!
//! **Invariant:** a directory is watched before it is listed, so a cgroup that appears in between is reported twice and
//! never missed. When the kernel drops events, [`Report::Lost`] says so, and its user must look at everything again.

use std::{collections::HashMap, io};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask, Watches};

use super::{Error, Hierarchy};
use crate::model::cgroup_path::CgroupPath;

/// A watched directory: the number of its watch, which is not used again for another directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Directory(pub(crate) i32);

/// One change of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The cgroup of this name in this directory appeared, or is gone.
    Changed(Directory, String),
    /// The directory is gone. Nothing more is reported of it.
    Closed(Directory),
    /// Events were lost: anything may have changed.
    Lost,
}

/// Reads the reports.
pub struct Reports {
    events: EventStream<[u8; 4096]>,
    /// Whether the log says already that there are names that cannot be looked at.
    told: bool,
}

/// Adds directories, and knows their paths.
pub struct Watch {
    watches: Watches,
    paths: HashMap<Directory, CgroupPath>,
}

/// Watches nothing yet. Needs a tokio runtime.
pub fn watch() -> Result<(Watch, Reports), Error> {
    let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096])).map_err(Error::Watch)?;
    let watch = Watch { watches: events.watches(), paths: HashMap::new() };
    Ok((watch, Reports { events, told: false }))
}

impl Watch {
    /// Reports from now on what comes and goes directly in `path`. Doing it again, or for a cgroup that is gone, is no error.
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
    /// Waits for the next one. May be cancelled.
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
                // Whoever makes many of them shall not fill the log.
                Err(name) if !self.told => {
                    self.told = true;
                    log::error!(
                        "cgroup {} is NOT looked at: its name is not UTF-8; others are not logged",
                        name.display()
                    );
                }
                Err(_name) => {}
            }
        }
    }
}
