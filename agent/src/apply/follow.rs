//! The network namespaces of containers, whose links are followed beside those of the daemon's own.
//!
//! Each is looked for on a thread of its own, one at a time, and then followed by a task that reports its links as a whole: a
//! report that waits is replaced by the next one.
//!
//! **Invariant:** a namespace is held open only while a policy made by `attach`, `exec` or a container belongs to it, so that it
//! goes with its container. One that cannot be followed, or whose links change without end, keeps nobody else's from being
//! followed.

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
        netns,
    },
    kernel::{self, Datapath, Error, PolicyEntry},
    model::cgroup_path::CgroupPath,
};

/// How many reports may be on their way to the daemon's loop, which takes them at once.
const WAITING: usize = 16;
/// How many processes are looked at to find a namespace.
const PROCESSES: usize = 4096;
/// The links of one namespace are reported this often at most, apart from a few changes in a row.
const INTERVAL: Duration = Duration::from_millis(10);
/// How many changes in a row are reported at once.
const IN_A_ROW: u32 = 16;

/// The links of a namespace, given by its cookie, as they are now.
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
    /// Held by the one search at a time.
    searching: Arc<Mutex<()>>,
}

/// A namespace that is followed, or looked for.
struct Followed {
    /// What was reported last.
    last: Option<Change>,
    following: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Namespaces {
    /// Follows none. The links of those that are followed come out of the other end. Needs a tokio runtime.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(WAITING);
        let (followed, runtime, searching) = (BTreeMap::new(), Handle::current(), Arc::default());
        (Self { followed, changes, runtime, searching }, receiver)
    }

    /// Follows exactly those to which such policies belong, apart from `own`.
    pub(crate) fn follow(&mut self, datapath: &Datapath, hierarchy: &Hierarchy, own: u64) -> Result<(), Error> {
        let mut wanted: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for entry in datapath.policies()?.into_iter().filter(|entry| is_elsewhere(entry, own)) {
            wanted.entry(entry.record.netns_cookie).or_default().push(entry.slot);
        }
        // What has ended found nobody in the namespace, and is tried again.
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

    /// Takes a report in. False when the namespace is no longer followed: reports may come late.
    pub(crate) fn take_in(&mut self, change: &Change) -> bool {
        let followed = self.followed.get_mut(&change.netns_cookie);
        followed.map(|followed| followed.last = Some(change.clone())).is_some()
    }

    /// What was reported last of each.
    pub(crate) fn known(&self) -> Vec<Change> {
        self.followed.values().filter_map(|followed| followed.last.clone()).collect()
    }
}

/// Whether it is a policy of another network namespace, not of the configuration, that has an uplink there.
fn is_elsewhere(entry: &PolicyEntry, own: u64) -> bool {
    let steers = !entry.exempts() && !entry.interface().is_empty();
    steers && entry.is_owned_by(Owner::Manual) && entry.record.netns_cookie != own
}

/// Finds a namespace by the processes of these cgroups, and reports its links until nobody listens.
async fn follow(cookie: u64, cgroups: BTreeSet<CgroupPath>, searching: Arc<Mutex<()>>, changes: mpsc::Sender<Change>) {
    let found = {
        let _one_at_a_time = searching.lock().await;
        search(cookie, cgroups).await
    };
    let (netns, mut links) = match found {
        Ok(Some(found)) => found,
        // Nobody is in it any more, or not yet.
        Ok(None) => return,
        Err(error) => return log::error!("the links of a container's network namespace are NOT followed: {error}"),
    };
    let netns = Arc::new(netns);
    let mut pace = Pace(Instant::now());
    loop {
        match links.next().await {
            Ok(links) => {
                let (netns, links) = (Arc::clone(&netns), links.clone());
                // Nobody listens any more once the daemon ends.
                if changes.send(Change { netns_cookie: cookie, netns, links }).await.is_err() {
                    return;
                }
            }
            Err(error) => log::error!("a container's network namespace: {error}; trying again"),
        }
        pace.keep().await;
    }
}

/// When the next report may be sent, were there no reports in a row.
struct Pace(Instant);

impl Pace {
    async fn keep(&mut self) {
        let now = Instant::now();
        self.0 = self.0.max(now) + INTERVAL;
        let ahead = INTERVAL * IN_A_ROW;
        if self.0 > now + ahead {
            sleep_until(self.0 - ahead).await;
        }
    }
}

/// Looks for a namespace, on a thread of its own, for the files of processes are slow to read. What follows its links is made
/// inside it.
async fn search(cookie: u64, cgroups: BTreeSet<CgroupPath>) -> Result<Option<(File, link::Watch)>, Error> {
    let (done, searched) = oneshot::channel();
    let runtime = Handle::current();
    let search = move || {
        let search = || {
            let hierarchy = Hierarchy::find()?;
            let Some(netns) = find(&hierarchy, &cgroups, cookie).map_err(link::Error::Socket)? else { return Ok(None) };
            let watch = netns::inside(netns.as_fd(), || {
                let _inside = runtime.enter();
                link::Watch::new()
            });
            let watch = watch.map_err(link::Error::Socket)??;
            Ok(Some((netns, watch)))
        };
        drop(done.send(search()));
    };
    thread::Builder::new().name("namespaces".to_owned()).spawn(search).map_err(link::Error::Socket)?;
    searched.await.unwrap_or(Ok(None))
}

/// The network namespace with this cookie, by any process of these cgroups that is in it. The error is that of the last process
/// that could not be looked at, where none of the others is in it.
fn find(hierarchy: &Hierarchy, cgroups: &BTreeSet<CgroupPath>, cookie: u64) -> io::Result<Option<File>> {
    let mut failed = None;
    // Most processes of a container share their namespace: each is entered once.
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
