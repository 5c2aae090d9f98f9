//! Everything the daemon waits for, as one closed enum.

use std::path::Path;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::files;
use crate::{cgroup, datapath::Pins, interface};

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    Links(interface::Change),
    Cgroups(cgroup::Change),
    ConfigChanged,
    Hangup,
    Terminate,
    PinsRemoved,
    ChangedByHand,
    /// Something failed a moment ago.
    Behind,
}

/// Where events come from.
pub(super) struct Sources {
    pub(super) links: interface::Watch,
    pub(super) cgroups: cgroup::Watch,
    files: files::Watch,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Sources {
    pub(super) fn new(config_file: &Path, pins: &Pins) -> anyhow::Result<Self> {
        let on = |kind: SignalKind| signal(kind).context("install a signal handler");
        Ok(Self {
            links: interface::Watch::new()?,
            cgroups: cgroup::Watch::new()?,
            files: files::Watch::new(config_file, pins.root()).context("watch the configuration and the pins")?,
            hangup: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next event. Links come before cgroups: an uplink that is gone must be closed first.
    pub(super) async fn next(&mut self) -> anyhow::Result<Event> {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Ok(Event::Terminate),
            _ = self.interrupt.recv() => Ok(Event::Terminate),
            change = self.links.next() => Ok(Event::Links(change?)),
            file = self.files.next() => Ok(match file? {
                files::Change::Config => Event::ConfigChanged,
                files::Change::Pins => Event::PinsRemoved,
                files::Change::ByHand => Event::ChangedByHand,
            }),
            _ = self.hangup.recv() => Ok(Event::Hangup),
            change = self.cgroups.next() => Ok(Event::Cgroups(change?)),
        }
    }
}
