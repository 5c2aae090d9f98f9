//! Everything the daemon waits for, as one closed enum.

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::files;
use crate::{
    apply::follow,
    host::{cgroup, link, policy_files::Store},
    kernel::Pins,
    run::api,
};

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    Links(link::Change),
    /// Those in the network namespace of a container.
    TheirLinks(follow::Change),
    Cgroups(cgroup::Change),
    ConfigChanged,
    Hangup,
    Terminate,
    PinsRemoved,
    ChangedByHand,
    /// The API asks.
    Asked(api::Request),
    /// Something failed a moment ago.
    Behind,
}

/// Where events come from.
pub(super) struct Sources {
    pub(super) links: link::Watch,
    pub(super) cgroups: cgroup::Watch,
    their_links: mpsc::Receiver<follow::Change>,
    files: files::Watch,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    requests: mpsc::Receiver<api::Request>,
}

impl Sources {
    pub(super) fn new(
        store: &Store,
        pins: &Pins,
        their_links: mpsc::Receiver<follow::Change>,
        requests: mpsc::Receiver<api::Request>,
    ) -> anyhow::Result<Self> {
        let on = |kind: SignalKind| signal(kind).context("install a signal handler");
        Ok(Self {
            links: link::Watch::new()?,
            cgroups: cgroup::Watch::new()?,
            their_links,
            files: files::Watch::new(store, pins.root()).context("watch the configuration and the pins")?,
            hangup: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            requests,
        })
    }

    /// Waits for the next event. Links come before cgroups: an uplink that is gone must be closed first.
    pub(super) async fn next(&mut self) -> anyhow::Result<Event> {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Ok(Event::Terminate),
            _ = self.interrupt.recv() => Ok(Event::Terminate),
            change = self.links.next() => Ok(Event::Links(change?)),
            Some(change) = self.their_links.recv() => Ok(Event::TheirLinks(change)),
            file = self.files.next() => Ok(match file? {
                files::Change::Config => Event::ConfigChanged,
                files::Change::Pins => Event::PinsRemoved,
                files::Change::ByHand => Event::ChangedByHand,
            }),
            _ = self.hangup.recv() => Ok(Event::Hangup),
            change = self.cgroups.next() => Ok(Event::Cgroups(change?)),
            // Last: whoever asks much waits. None once nobody can ask any more, as when the API could not be started.
            Some(request) = self.requests.recv() => Ok(Event::Asked(request)),
        }
    }
}
