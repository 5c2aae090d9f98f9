//! Follows the links, rules and routes of the network namespaces of containers, in addition to those of the daemon's own namespace.
//!
//! A separate thread searches for each namespace, one at a time. A task then follows the namespace and reports all of its links
//! at once: a new report replaces one that waits.
//!
//! **Invariant:** a namespace is held open only while a policy of `attach`, `exec` or a container belongs to it, so that it ends
//! with its container. A namespace that cannot be followed, or whose links change all the time, does not delay the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    sync::Arc,
    thread,
    time::Duration,
};

use steer_common::Owner;
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    host::{
        cgroup::Hierarchy,
        link::{self, Table},
        netns, route,
    },
    kernel::{self, Datapath, Error, PolicyEntry},
    model::cgroup_path::CgroupPath,
};

/// The capacity of the channel to the daemon's loop, which takes reports at once.
const WAITING: usize = 16;
/// How many processes are checked to find a namespace.
const PROCESSES: usize = 4096;
/// The shortest interval between reports of one namespace, except for bursts.
const INTERVAL: Duration = Duration::from_millis(10);
/// How many reports may follow each other without a delay.
const BURST: u32 = 16;

/// The current links of a namespace, which its cookie identifies.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) netns_cookie: u64,
    pub(crate) netns: Arc<File>,
    pub(crate) links: Table,
}

/// The namespaces that are followed, by cookie.
pub(crate) struct Namespaces {
    followed: BTreeMap<u64, Followed>,
    changes: mpsc::Sender<Change>,
    runtime: Handle,
    /// Held during a search: there is one at a time.
    searching: Arc<Mutex<()>>,
}

/// A namespace that is followed, or searched for.
struct Followed {
    /// The last report.
    last: Option<Change>,
    following: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Namespaces {
    /// Follows no namespace yet. The receiver gets the links of those that are followed. Needs a tokio runtime.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(WAITING);
        let (followed, runtime, searching) = (BTreeMap::new(), Handle::current(), Arc::default());
        (Self { followed, changes, runtime, searching }, receiver)
    }

    /// Follows exactly the namespaces that have manual policies, except `own`.
    pub(crate) fn follow(&mut self, datapath: &Datapath, hierarchy: &Hierarchy, own: u64) -> Result<(), Error> {
        let mut wanted: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for entry in datapath.policies()?.into_iter().filter(|entry| is_elsewhere(entry, own)) {
            wanted.entry(entry.record.netns_cookie).or_default().push(entry.slot);
        }
        // A task that has ended found no process in the namespace: start it again.
        self.followed.retain(|cookie, followed| wanted.contains_key(cookie) && !followed.following.is_finished());
        for (cookie, slots) in wanted {
            if self.followed.contains_key(&cookie) {
                continue;
            }
            let attached = datapath.attachments_to(&slots)?;
            let cgroups = attached.iter().filter_map(|&cgroup_id| hierarchy.path_of(cgroup_id)).collect();
            let task = follow(cookie, cgroups, Arc::clone(&self.searching), self.changes.clone());
            self.followed.insert(cookie, Followed { last: None, following: self.runtime.spawn(task) });
        }
        Ok(())
    }

    /// Stores a report. False if the namespace is no longer followed: reports may arrive late.
    pub(crate) fn take_in(&mut self, change: &Change) -> bool {
        let followed = self.followed.get_mut(&change.netns_cookie);
        followed.map(|followed| followed.last = Some(change.clone())).is_some()
    }

    /// The last report of each namespace.
    pub(crate) fn known(&self) -> Vec<Change> {
        self.followed.values().filter_map(|followed| followed.last.clone()).collect()
    }
}

/// Whether this is a manual policy with an uplink in another network namespace.
fn is_elsewhere(entry: &PolicyEntry, own: u64) -> bool {
    let steers = !entry.exempts() && !entry.interface().is_empty();
    steers && entry.is_owned_by(Owner::Manual) && entry.record.netns_cookie != own
}

/// Finds a namespace through the processes of these cgroups, and reports its links, also when only rules or routes have changed,
/// until the receiver is closed.
async fn follow(cookie: u64, cgroups: BTreeSet<CgroupPath>, searching: Arc<Mutex<()>>, changes: mpsc::Sender<Change>) {
    let found = {
        let _one_at_a_time = searching.lock().await;
        search(cookie, cgroups).await
    };
    let (netns, mut links, mut routes) = match found {
        Ok(Some(found)) => found,
        // No process is in it now.
        Ok(None) => return,
        Err(error) => return log::error!("the links of a container's network namespace are NOT followed: {error}"),
    };
    let netns = Arc::new(netns);
    let mut pace = Pace(Instant::now());
    let mut last = None;
    loop {
        let read = tokio::select! {
            links = links.next() => links.map(|links| last = Some(links.clone())),
            reported = routes.changed() => reported.map_err(link::Error::Socket),
        };
        match (read, &last) {
            (Ok(()), Some(links)) => {
                let (netns, links) = (Arc::clone(&netns), links.clone());
                // The receiver is closed when the daemon ends.
                if changes.send(Change { netns_cookie: cookie, netns, links }).await.is_err() {
                    return;
                }
            }
            // Without a reading of the links, every uplink would appear to be missing.
            (Ok(()), None) => {}
            (Err(error), _) => {
                log::error!("read the links and routes of a container's network namespace: {error}; trying again");
            }
        }
        pace.keep().await;
    }
}

/// When the next report is due without a burst.
struct Pace(Instant);

impl Pace {
    async fn keep(&mut self) {
        let now = Instant::now();
        self.0 = self.0.max(now) + INTERVAL;
        let ahead = INTERVAL * BURST;
        if self.0 > now + ahead {
            sleep_until(self.0 - ahead).await;
        }
    }
}

/// Searches for a namespace on a separate thread, because the files of processes are slow to read. Creates the watches of its
/// links and routes inside it.
async fn search(
    cookie: u64,
    cgroups: BTreeSet<CgroupPath>,
) -> Result<Option<(File, link::Watch, route::Notified)>, Error> {
    let (done, searched) = oneshot::channel();
    let runtime = Handle::current();
    let search = move || {
        let search = || {
            let hierarchy = Hierarchy::find()?;
            let Some(netns) = find(&hierarchy, &cgroups, cookie).map_err(link::Error::Socket)? else { return Ok(None) };
            let watch = netns::inside(netns.as_fd(), || {
                let _inside = runtime.enter();
                Ok::<_, link::Error>((link::Watch::new()?, route::Notified::new().map_err(link::Error::Socket)?))
            });
            let (links, routes) = watch.map_err(link::Error::Socket)??;
            Ok(Some((netns, links, routes)))
        };
        drop(done.send(search()));
    };
    thread::Builder::new().name("namespaces".to_owned()).spawn(search).map_err(link::Error::Socket)?;
    searched.await.unwrap_or(Ok(None))
}

/// The network namespace with this cookie, found through any process of these cgroups. If no process is in it, returns the
/// error of the last process that could not be checked.
fn find(hierarchy: &Hierarchy, cgroups: &BTreeSet<CgroupPath>, cookie: u64) -> io::Result<Option<File>> {
    let mut failed = None;
    // Most processes of a container share a namespace: enter each namespace once.
    let mut seen = BTreeSet::new();
    let processes = cgroups.iter().flat_map(|path| hierarchy.processes(path));
    for (count, pid) in processes.enumerate() {
        if count == PROCESSES {
            return Err(io::Error::other(format!("none of the first {PROCESSES} processes of its cgroups is in it")));
        }
        match open(pid) {
            Ok(Some((netns, inode))) if seen.insert(inode) => match cookie_of(&netns) {
                Ok(found) if found == cookie => return Ok(Some(netns)),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            },
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// The network namespace of a process, and its inode; `None` once it has ended.
fn open(pid: u32) -> io::Result<Option<(File, u64)>> {
    let netns = match File::open(format!("/proc/{pid}/ns/net")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        netns => netns?,
    };
    let inode = netns.metadata()?.ino();
    Ok(Some((netns, inode)))
}

fn cookie_of(netns: &File) -> io::Result<u64> {
    netns::inside(netns.as_fd(), kernel::netns_cookie)?.map_err(io::Error::other)
}
