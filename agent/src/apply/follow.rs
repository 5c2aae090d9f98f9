//! The network namespaces of containers, whose links are followed beside those of the daemon's own.
//!
//! **Invariant:** a namespace is held open only while a policy made by hand belongs to it, so that it goes with its container;
//! and one that cannot be followed keeps nobody else's from being followed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd as _,
};

use steer_common::Owner;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};

use crate::{
    host::{
        cgroup::Hierarchy,
        link::{self, Table},
        netns,
    },
    kernel::{self, Datapath, Error, PolicyEntry},
};

/// How many changes may wait. More wait in the kernel, which says so when it drops some.
const WAITING: usize = 64;

/// What happened to the links of a namespace, given by its cookie.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) netns_cookie: u64,
    pub(crate) links: Result<link::Change, link::Error>,
}

/// The namespaces that are followed, by cookie.
pub(crate) struct Namespaces {
    followed: BTreeMap<u64, Followed>,
    changes: mpsc::Sender<Change>,
}

/// A namespace that is followed.
struct Followed {
    netns: File,
    table: Table,
    watching: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Namespaces {
    /// Follows none. What happens to those that are followed comes out of the other end.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(WAITING);
        (Self { followed: BTreeMap::new(), changes }, receiver)
    }

    /// Follows exactly those to which policies made by hand belong, apart from `own`.
    pub(crate) fn follow(&mut self, datapath: &Datapath, hierarchy: &Hierarchy, own: u64) -> Result<(), Error> {
        let mut wanted: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for entry in datapath.policies()?.into_iter().filter(|entry| is_elsewhere(entry, own)) {
            wanted.entry(entry.record.netns_cookie).or_default().push(entry.slot);
        }
        self.followed.retain(|cookie, _| wanted.contains_key(cookie));
        for (cookie, slots) in wanted {
            if self.followed.contains_key(&cookie) {
                continue;
            }
            let attached = datapath.attachments_to(&slots)?;
            let watched = find(hierarchy, &attached, cookie).map_err(link::Error::Socket).and_then(|netns| {
                // Nobody is in it any more, or not yet.
                let Some(netns) = netns else { return Ok(None) };
                let watching = self.watch(&netns, cookie)?;
                Ok(Some(Followed { netns, table: Table::default(), watching }))
            });
            match watched {
                Ok(followed) => self.followed.extend(followed.map(|followed| (cookie, followed))),
                Err(error) => log::error!("the links of a container's network namespace are NOT followed: {error}"),
            }
        }
        Ok(())
    }

    fn watch(&self, netns: &File, netns_cookie: u64) -> Result<JoinHandle<()>, link::Error> {
        let runtime = Handle::current();
        let watch = netns::inside(netns.as_fd(), || {
            let _inside = runtime.enter();
            link::Watch::new()
        });
        let mut watch = watch.map_err(link::Error::Socket)??;
        let changes = self.changes.clone();
        Ok(tokio::spawn(async move {
            loop {
                let links = watch.next().await;
                let ended = links.is_err();
                // Nobody listens any more once the daemon ends.
                if changes.send(Change { netns_cookie, links }).await.is_err() || ended {
                    return;
                }
            }
        }))
    }

    /// Takes a change in. The links of the namespace, and how to get there, when a name may resolve differently than before.
    pub(crate) fn apply(&mut self, change: Change) -> Result<Option<(&Table, &File)>, link::Error> {
        let cookie = change.netns_cookie;
        let links = change.links.inspect_err(|_| {
            self.followed.remove(&cookie);
        })?;
        // Reports may come late, when it is no longer followed.
        let followed = self.followed.get_mut(&cookie);
        Ok(followed.and_then(|followed| followed.table.apply(links).then_some((&followed.table, &followed.netns))))
    }
}

/// Whether it is a policy made by hand, of another network namespace, that has an uplink there.
fn is_elsewhere(entry: &PolicyEntry, own: u64) -> bool {
    let steers = !entry.exempts() && !entry.interface().is_empty();
    steers && entry.is_owned_by(Owner::Manual) && entry.record.netns_cookie != own
}

/// The network namespace with this cookie, by any process of these cgroups that is in it. The error is that of the last process
/// that could not be looked at, where none of the others is in it.
fn find(hierarchy: &Hierarchy, attached: &BTreeSet<u64>, cookie: u64) -> io::Result<Option<File>> {
    let mut failed = None;
    for path in attached.iter().filter_map(|&cgroup_id| hierarchy.path_of(cgroup_id)) {
        for pid in hierarchy.processes(&path) {
            match netns_of(pid) {
                Ok(Some((netns, found))) if found == cookie => return Ok(Some(netns)),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// The network namespace of a process, and its cookie; `None` once it has ended.
fn netns_of(pid: u32) -> io::Result<Option<(File, u64)>> {
    let netns = match File::open(format!("/proc/{pid}/ns/net")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        netns => netns?,
    };
    let cookie = netns::inside(netns.as_fd(), kernel::netns_cookie)?.map_err(io::Error::other)?;
    Ok(Some((netns, cookie)))
}
