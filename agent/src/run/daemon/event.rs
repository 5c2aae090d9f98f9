//! All events that the daemon waits for, as one closed enum.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

use super::files;
use crate::{
    apply::follow,
    host::{
        cgroup,
        link::{self, Table},
        policy_files::Store,
        resolved, route,
    },
    kernel::{Alarm, Alarms, Pins},
    run::api,
};

/// An event.
#[derive(Debug)]
pub(super) enum Event {
    /// The links have changed, or the resolvers of links.
    Links(Table),
    /// The links could not be read. The read is retried.
    LinksUnread(link::Error),
    /// Rules, routes or addresses have changed.
    Routes,
    /// The links in the network namespace of a container.
    NamespaceLinks(follow::Change),
    Cgroups(cgroup::Report),
    /// Many connections by a member of a group of uplinks fail.
    Alarm(Alarm),
    Files(files::Change),
    Hangup,
    Terminate,
    /// A request of the API.
    Request(api::Request),
}

/// The sources of events.
pub(super) struct Sources {
    links: link::Watch,
    routes: route::Notified,
    cgroups: cgroup::Reports,
    namespace_links: mpsc::Receiver<follow::Change>,
    /// The last reading of the links, and the resolvers that the host has for them.
    table: Table,
    resolvers: mpsc::Receiver<Arc<resolved::LinkResolvers>>,
    files: mpsc::Receiver<files::Change>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    requests: mpsc::Receiver<api::Request>,
    alarms: Alarms,
}

impl Sources {
    pub(super) fn new(
        store: &Store,
        pins: &Pins,
        cgroups: cgroup::Reports,
        namespace_links: mpsc::Receiver<follow::Change>,
        requests: mpsc::Receiver<api::Request>,
        asks_resolvers: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let on = |kind: SignalKind| signal(kind).context("install a signal handler");
        Ok(Self {
            links: link::Watch::new()?,
            routes: route::Notified::new().context("watch rules and routes")?,
            cgroups,
            namespace_links,
            table: Table::default(),
            resolvers: resolved::watch(asks_resolvers).context("watch the resolvers of links")?,
            files: files::watch(store, pins.root()).context("watch the configuration and the pins")?,
            hangup: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            requests,
            alarms: Alarms::open(pins)?.context("the pins just made are gone")?,
        })
    }

    /// The links, once they have been read. `None` if the daemon is to end.
    pub(super) async fn first_links(&mut self) -> anyhow::Result<Option<Table>> {
        tokio::select! {
            links = self.links.next() => {
                self.table = links?.clone();
                Ok(Some(self.table.clone()))
            }
            _ = self.terminate.recv() => Ok(None),
            _ = self.interrupt.recv() => Ok(None),
        }
    }

    /// Waits for the next event. Where several are ready, any of them may be next.
    pub(super) async fn next(&mut self) -> anyhow::Result<Event> {
        tokio::select! {
            _ = self.terminate.recv() => Ok(Event::Terminate),
            _ = self.interrupt.recv() => Ok(Event::Terminate),
            _ = self.hangup.recv() => Ok(Event::Hangup),
            links = self.links.next() => match links {
                Ok(links) => {
                    let known = self.table.take_resolvers();
                    self.table = links.clone();
                    self.table.set_resolvers(known);
                    Ok(Event::Links(self.table.clone()))
                }
                Err(error) => Ok(Event::LinksUnread(error)),
            },
            changed = self.routes.changed() => changed.map(|()| Event::Routes).context("watch rules and routes"),
            Some(resolvers) = self.resolvers.recv() => {
                self.table.set_resolvers(Some(resolvers));
                Ok(Event::Links(self.table.clone()))
            }
            Some(change) = self.namespace_links.recv() => Ok(Event::NamespaceLinks(change)),
            alarm = self.alarms.next() => Ok(Event::Alarm(alarm?)),
            report = self.cgroups.next() => Ok(Event::Cgroups(report?)),
            change = self.files.recv() => Ok(Event::Files(change.context("the thread that watches files has ended")?)),
            // The channel closes if the API could not be started.
            Some(request) = self.requests.recv() => Ok(Event::Request(request)),
        }
    }
}
