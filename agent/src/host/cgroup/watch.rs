//! What comes and goes in the hierarchy, by inotify on the directories in which a match can appear.
//!
//! **Invariant:** a directory is watched before it is listed, so a cgroup that appears in between is reported twice and
//! never missed. When the kernel drops events the watcher says so, and its user must look at everything again.

use std::{collections::HashMap, io};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::{Error, Hierarchy};
use crate::model::cgroup_path::CgroupPath;

/// One change of the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This cgroup appeared.
    Created(CgroupPath),
    /// This cgroup is gone.
    Removed(CgroupPath),
    /// Events were lost: anything may have changed.
    Lost,
}

/// Watches the directories it was told to.
pub struct Watch {
    events: EventStream<[u8; 4096]>,
    paths: HashMap<WatchDescriptor, CgroupPath>,
}

impl Watch {
    /// Watches nothing yet. Needs a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096])).map_err(Error::Watch)?;
        Ok(Self { events, paths: HashMap::new() })
    }

    /// Reports from now on what comes and goes directly in `path`. Doing it again, or for a cgroup that is gone, is no error.
    pub fn add(&mut self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.events.watches().add(hierarchy.directory(path), mask) {
            Ok(descriptor) => {
                self.paths.insert(descriptor, path.clone());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::Watch(error)),
        }
    }

    /// Waits for the next change.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let event = match self.events.next().await {
                Some(event) => event.map_err(Error::Watch)?,
                None => return Err(Error::Watch(io::ErrorKind::UnexpectedEof.into())),
            };
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Ok(Change::Lost);
            }
            if event.mask.contains(EventMask::IGNORED) {
                self.paths.remove(&event.wd);
                continue;
            }
            let (Some(parent), Some(name)) = (self.paths.get(&event.wd), event.name.as_deref()) else { continue };
            let Some(name) = name.to_str() else {
                log::error!("{} in {parent} is NOT looked at: its name is not UTF-8", name.display());
                continue;
            };
            if !event.mask.contains(EventMask::ISDIR) {
                continue;
            }
            let path = parent.child(name);
            return Ok(if event.mask.contains(EventMask::CREATE) {
                Change::Created(path)
            } else {
                Change::Removed(path)
            });
        }
    }
}
