//! The worker's queue, collapsed: the newest table of links, the newest report of each namespace, and each cgroup's name once.
//!
//! The worker takes turns. Each turn begins with the links of the daemon's own namespace, so that an uplink that is gone is
//! closed before a new cgroup is attached. Then it takes one item of one class. The classes take turns. Within a class,
//! namespaces and the directories of cgroups take turns.
//!
//! **Invariant:** every queue here is bounded, and no change is lost at a bound: the directory is listed again, or the request
//! is refused.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::Hash,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    apply::{follow, uplinks::Key},
    host::{cgroup::Directory, link::Table, probe::Outcome},
    kernel::Alarm,
    run::api::Request,
};

/// How many names of one directory are kept. If more change, the directory is listed.
const NAMES: usize = 256;
/// How many requests can be queued.
const REQUESTS: usize = 16;
/// How many alarms can be queued.
const ALARMS: usize = 64;
/// The number of classes of items.
const CLASSES: usize = 5;

/// The next turn of the worker.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The links of the daemon's own namespace, if they have changed.
    pub(super) links: Option<Table>,
    /// Whether rules, routes or addresses of it have changed.
    pub(super) routes: bool,
    /// Results of probes.
    pub(super) probed: Vec<(Key, Outcome)>,
    /// Members whose connections fail.
    pub(super) alarms: Vec<Alarm>,
    /// Whether it is time to probe, or to choose between uplinks again.
    pub(super) choose: bool,
    /// Whether to look which uplinks are used.
    pub(super) look_at_use: bool,
    /// The item.
    pub(super) item: Option<Item>,
}

/// An item of work.
#[derive(Debug)]
pub(super) enum Item {
    /// The links of a container's namespace.
    Namespace(follow::Change),
    /// A cgroup was created or removed.
    Cgroup(Directory, String),
    /// Some names of a directory were not kept: those after the given name are listed.
    List(Directory, Option<String>),
    /// A directory was removed.
    Close(Directory),
    /// The files are read. `always`: they are applied even if they have not changed.
    Files { always: bool },
    /// All state is read and applied again.
    CatchUp,
    /// Removed cgroups may have been released.
    Released,
    /// A request of the API.
    Request(Request),
}

/// The queue.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "kinds of work that either wait or not")]
pub(super) struct Work {
    links: Option<Table>,
    routes: bool,
    /// Each member has at most one result here: its next round starts when this one was taken in.
    probed: Vec<(Key, Outcome)>,
    alarms: Vec<Alarm>,
    choose: bool,
    look_at_use: bool,
    namespaces: Turns<u64, follow::Change>,
    cgroups: Turns<Directory, Names>,
    files: Option<bool>,
    catch_up: bool,
    released: bool,
    requests: VecDeque<Request>,
    /// The class that is checked first for the next item.
    class: usize,
    stopped: bool,
}

impl Work {
    /// The links of the daemon's own namespace have changed.
    pub(super) fn links(&mut self, links: Table) {
        self.links = Some(links);
    }

    /// Rules, routes or addresses of the daemon's own namespace have changed.
    pub(super) fn routes(&mut self) {
        self.routes = true;
    }

    /// A round of probes has ended.
    pub(super) fn probed(&mut self, key: Key, outcome: Outcome) {
        self.probed.push((key, outcome));
    }

    /// Many connections by a member fail. The kernel repeats an alarm, so those past the bound are not lost.
    pub(super) fn alarm(&mut self, alarm: Alarm) {
        if self.alarms.len() < ALARMS {
            self.alarms.push(alarm);
        }
    }

    /// The links of a container's namespace have changed.
    pub(super) fn namespace(&mut self, change: follow::Change) {
        let waiting = self.namespaces.entry(change.netns_cookie);
        *waiting = Some(change);
    }

    /// A cgroup of this name was created or removed.
    pub(super) fn cgroup(&mut self, directory: Directory, name: String) {
        self.cgroups.entry(directory).get_or_insert_default().changed(name);
    }

    /// These names of a directory were listed. After `next` there are more.
    pub(super) fn listed(&mut self, directory: Directory, names: Vec<String>, next: Option<String>) {
        if names.is_empty() && next.is_none() {
            return;
        }
        let waiting = self.cgroups.entry(directory).get_or_insert_default();
        waiting.kept.extend(names);
        waiting.next = next;
    }

    /// A directory was removed.
    pub(super) fn close(&mut self, directory: Directory) {
        self.cgroups.entry(directory).get_or_insert_default().closed = true;
    }

    /// The files may have changed.
    pub(super) fn files(&mut self, always: bool) {
        *self.files.get_or_insert_default() |= always;
    }

    /// Everything may have changed.
    pub(super) fn catch_up(&mut self) {
        self.catch_up = true;
    }

    /// Adds a request. Returns it if too many are queued.
    pub(super) fn request(&mut self, request: Request) -> Result<(), Request> {
        if self.requests.len() == REQUESTS {
            return Err(request);
        }
        self.requests.push_back(request);
        Ok(())
    }

    fn take(&mut self) -> Option<Turn> {
        let (links, routes) = (self.links.take(), std::mem::take(&mut self.routes));
        let (probed, choose) = (std::mem::take(&mut self.probed), std::mem::take(&mut self.choose));
        let alarms = std::mem::take(&mut self.alarms);
        let look_at_use = std::mem::take(&mut self.look_at_use);
        let item = (self.class..self.class + CLASSES).find_map(|class| {
            let item = self.take_of(class % CLASSES)?;
            self.class = (class + 1) % CLASSES;
            Some(item)
        });
        let is_any = links.is_some()
            || routes
            || !probed.is_empty()
            || !alarms.is_empty()
            || choose
            || look_at_use
            || item.is_some();
        is_any.then_some(Turn { links, routes, probed, alarms, choose, look_at_use, item })
    }

    fn take_of(&mut self, class: usize) -> Option<Item> {
        match class {
            0 => self.namespaces.next().map(|(_, change)| Item::Namespace(change)),
            1 => {
                let (directory, mut names) = self.cgroups.next()?;
                let item = names.take(directory);
                if !names.is_empty() {
                    *self.cgroups.entry(directory) = Some(names);
                }
                item
            }
            2 => match self.files.take() {
                Some(always) => Some(Item::Files { always }),
                None => std::mem::take(&mut self.catch_up).then_some(Item::CatchUp),
            },
            3 => std::mem::take(&mut self.released).then_some(Item::Released),
            _ => self.requests.pop_front().map(Item::Request),
        }
    }
}

/// The queued work of one directory of cgroups.
#[derive(Default)]
struct Names {
    kept: BTreeSet<String>,
    /// Where the listing continues.
    next: Option<String>,
    /// Some names were not kept: the directory is listed from the start, after the names that were kept.
    list: bool,
    closed: bool,
}

impl Names {
    fn changed(&mut self, name: String) {
        // The listing finds all names after the first one that was not kept.
        if self.list || self.kept.len() >= NAMES && !self.kept.contains(&name) {
            self.list = true;
        } else {
            self.kept.insert(name);
        }
    }

    fn take(&mut self, directory: Directory) -> Option<Item> {
        if let Some(name) = self.kept.pop_first() {
            return Some(Item::Cgroup(directory, name));
        }
        if let Some(next) = self.next.take() {
            return Some(Item::List(directory, Some(next)));
        }
        if std::mem::take(&mut self.list) {
            return Some(Item::List(directory, None));
        }
        std::mem::take(&mut self.closed).then_some(Item::Close(directory))
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.next.is_none() && !self.list && !self.closed
    }
}

/// Values by key. The keys take turns.
struct Turns<K, V> {
    order: VecDeque<K>,
    values: HashMap<K, Option<V>>,
}

impl<K, V> Default for Turns<K, V> {
    fn default() -> Self {
        Self { order: VecDeque::new(), values: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Turns<K, V> {
    /// The entry of a key. A new key is last in the order.
    fn entry(&mut self, key: K) -> &mut Option<V> {
        let Self { order, values } = self;
        values.entry(key).or_insert_with(|| {
            order.push_back(key);
            None
        })
    }

    fn next(&mut self) -> Option<(K, V)> {
        let key = self.order.pop_front()?;
        let value = self.values.remove(&key)??;
        Some((key, value))
    }
}

/// When the worker adds work itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timers {
    /// All state is read and applied again.
    pub(super) retry: Option<Instant>,
    /// Removed cgroups are checked.
    pub(super) release: Option<Instant>,
    /// Members of groups are probed, or chosen again.
    pub(super) choose: Option<Instant>,
    /// Which uplinks are used is read again.
    pub(super) look_at_use: Option<Instant>,
}

impl Timers {
    /// Adds the work that is due. Returns the time until the next is.
    fn add_due(&mut self, work: &mut Work) -> Option<Duration> {
        let now = Instant::now();
        let is_due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        work.catch_up |= is_due(&mut self.retry);
        work.released |= is_due(&mut self.release);
        work.choose |= is_due(&mut self.choose);
        work.look_at_use |= is_due(&mut self.look_at_use);
        let next = [self.retry, self.release, self.choose, self.look_at_use].into_iter().flatten().min();
        next.map(|next| next.saturating_duration_since(now))
    }
}

/// The queue, shared by the loop, which adds work, and the worker, which takes it.
#[derive(Default)]
pub(super) struct Queue {
    work: Mutex<Work>,
    changed: Condvar,
}

impl Queue {
    /// Adds work.
    pub(super) fn add<T>(&self, add: impl FnOnce(&mut Work) -> T) -> T {
        let added = add(&mut self.work());
        self.changed.notify_one();
        added
    }

    /// Whether links of the daemon's own namespace wait for the next turn. At the end there is none.
    pub(super) fn links_wait(&self) -> bool {
        let work = self.work();
        work.links.is_some() && !work.stopped
    }

    /// Lets the worker end after its current turn.
    pub(super) fn stop(&self) {
        self.add(|work| work.stopped = true);
    }

    /// Waits for the next turn. `None` if the worker is to end.
    pub(super) fn next(&self, mut timers: Timers) -> Option<Turn> {
        let mut work = self.work();
        loop {
            if work.stopped {
                return None;
            }
            let left = timers.add_due(&mut work);
            if let Some(turn) = work.take() {
                return Some(turn);
            }
            work = match left {
                None => self.changed.wait(work).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::{Directory, Item, NAMES, REQUESTS, Request, Work};
    use crate::host::link::Table;

    const STORM: Directory = Directory(1);
    const QUIET: Directory = Directory(2);

    fn next(work: &mut Work) -> Option<String> {
        let turn = work.take()?;
        let links = if turn.links.is_some() { "links " } else { "" };
        let item = match turn.item {
            None => String::new(),
            Some(Item::Cgroup(directory, name)) => format!("{}/{name}", directory.0),
            Some(Item::List(directory, after)) => format!("{} after {}", directory.0, after.unwrap_or_default()),
            Some(Item::Close(directory)) => format!("{} closed", directory.0),
            Some(Item::Files { always }) => format!("files {always}"),
            Some(Item::CatchUp) => "catch up".to_owned(),
            Some(Item::Released) => "released".to_owned(),
            Some(Item::Request(_)) => "request".to_owned(),
            Some(Item::Namespace(change)) => change.netns_cookie.to_string(),
        };
        Some(format!("{links}{item}"))
    }

    fn request() -> Request {
        Request::Reload(oneshot::channel().0)
    }

    #[test]
    fn classes_and_directories_take_turns_and_links_come_first() {
        let mut work = Work::default();
        for name in 0..100 {
            work.cgroup(STORM, format!("{name:03}"));
        }
        work.cgroup(QUIET, "new".to_owned());
        work.files(false);
        work.files(true);
        work.catch_up();
        assert!(work.request(request()).is_ok());
        work.links(Table::default());
        work.links(Table::default());
        let taken: Vec<_> = std::iter::from_fn(|| next(&mut work)).collect();
        let first = ["links 1/000", "files true", "request", "2/new", "catch up", "1/001", "1/002"];
        assert_eq!(taken[..first.len()], first);
        assert_eq!(taken.len(), first.len() + 97);
    }

    #[test]
    fn names_past_the_bound_are_listed_and_the_directory_closed_last() {
        let mut work = Work::default();
        for name in 0..NAMES + 10 {
            work.cgroup(STORM, format!("{name:03}"));
        }
        work.close(STORM);
        for name in 0..NAMES {
            assert_eq!(next(&mut work), Some(format!("1/{name:03}")));
            work.cgroup(STORM, "later".to_owned());
        }
        assert_eq!(next(&mut work).as_deref(), Some("1 after "));
        work.listed(STORM, vec!["a".to_owned(), "b".to_owned()], Some("b".to_owned()));
        work.cgroup(STORM, "a".to_owned());
        work.cgroup(STORM, "c".to_owned());
        let taken: Vec<_> = std::iter::from_fn(|| next(&mut work)).collect();
        assert_eq!(taken, ["1/a", "1/b", "1/c", "1 after b", "1 closed"]);
    }

    #[test]
    fn the_number_of_queued_requests_is_bounded() {
        let mut work = Work::default();
        assert!((0..REQUESTS).all(|_| work.request(request()).is_ok()));
        assert!(work.request(request()).is_err());
    }
}
