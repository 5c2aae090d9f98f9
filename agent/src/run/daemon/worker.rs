//! The worker: one thread that makes all changes, a turn at a time.
//!
//! It may block on the lock, on the kernel, and on files. The loop does not.
//!
//! **Invariant:** only this thread makes changes, and it holds the daemon's lock while it runs. A turn that fails is logged and
//! leaves the previous state in force. The worker then reads and applies all state again until that succeeds.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use super::{
    answering::Answering,
    work::{Item, Queue, Timers, Turn},
};
use crate::{
    apply::converge::Steering,
    host::{link::Table, policy_files::Store, probe},
    kernel::{DaemonLock, Error},
    model::{
        config::{Config, DaemonConfig},
        policy::Policies,
    },
    run::api::View,
};

/// The delay after a failure until all state is read again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The delay after a change of cgroups until it is read which groups of uplinks are used.
const LOOK_AT_USE_DELAY: Duration = Duration::from_millis(100);

/// The worker's state.
pub(super) struct Worker {
    pub(super) steering: Steering,
    pub(super) store: Store,
    /// `[daemon]` as it was at the start.
    pub(super) daemon: DaemonConfig,
    pub(super) queue: Arc<Queue>,
    /// Sends probes.
    pub(super) runtime: Handle,
    /// The published view of the state.
    pub(super) view: watch::Sender<View>,
    /// Whether the first turn has left something to try again.
    pub(super) is_behind: bool,
    /// Held until the worker ends.
    pub(super) _daemon_lock: DaemonLock,
}

/// The worker's messages to the loop.
pub(super) struct Working {
    /// The initial state is in force.
    pub(super) ready: oneshot::Receiver<()>,
    /// The worker has ended: after a failed start, when steer was switched off, or because it was stopped.
    pub(super) ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl Worker {
    /// Starts the thread, which first applies the configuration.
    pub(super) fn start(mut self, links: Table) -> std::io::Result<Working> {
        let (is_ready, ready) = oneshot::channel();
        let (has_ended, ended) = oneshot::channel();
        let queue = Arc::clone(&self.queue);
        self.steering.links_come_first(move || queue.links_wait());
        let work = move || {
            let worked = self.carry_out_all(links).map(|()| {
                // The receiver is gone when the loop has ended.
                let _ = is_ready.send(());
                self.work();
            });
            let _ = has_ended.send(worked.map_err(Into::into));
        };
        thread::Builder::new().name("worker".to_owned()).spawn(work)?;
        Ok(Working { ready, ended })
    }

    fn carry_out_all(&mut self, links: Table) -> Result<(), Error> {
        self.links_changed(links)?;
        match self.steering.converge() {
            // The policy is closed. Everything else is in force.
            Err(error @ Error::NoMark { .. }) => {
                log::error!("{error}; retrying in {} s", RETRY_DELAY.as_secs());
                self.is_behind = true;
            }
            converged => converged?,
        }
        self.show_policies();
        self.steering.take_over_untreated()?;
        self.steering.replace_other_versions()
    }

    /// Takes turns until it is to end.
    fn work(&mut self) {
        let mut retry = if self.is_behind { Some(Instant::now() + RETRY_DELAY) } else { self.look_again() };
        let (mut look_at_use, mut patience) = (Some(Instant::now()), None);
        loop {
            self.probe();
            let choose = self.steering.next_choice().map(|left| Instant::now() + left);
            let choose = choose.map(|at| patience.map_or(at, |earliest: Instant| at.max(earliest)));
            let timers = Timers { retry, release: self.steering.next_check(), choose, look_at_use };
            let Some(turn) = self.queue.next(timers) else {
                // The next daemon does not know which sockets were left.
                if let Err(error) = self.steering.take_over_untreated() {
                    log::warn!("existing sockets were not changed: {error}");
                }
                return;
            };
            if turn.look_at_use {
                look_at_use = None;
            } else if turn.item.is_some() {
                look_at_use.get_or_insert_with(|| Instant::now() + LOOK_AT_USE_DELAY);
            }
            let catches_up = matches!(turn.item, Some(Item::CatchUp));
            match self.take_turn(turn) {
                Ok(()) if catches_up => retry = None,
                Ok(()) => {}
                Err(Error::SwitchedOff { .. }) => return log::info!("ending; steer was switched off"),
                Err(error) => {
                    log::error!("{error}; retrying in {} s", RETRY_DELAY.as_secs());
                    retry = Some(Instant::now() + RETRY_DELAY);
                    patience = retry;
                }
            }
            retry = retry.or(self.look_again());
            let behind = retry.is_some();
            self.view.send_if_modified(|view| std::mem::replace(&mut view.behind, behind) != behind);
        }
    }

    /// Starts the rounds of probes that are due. Each ends by itself, and its result comes as work.
    fn probe(&mut self) {
        for (key, round) in self.steering.rounds() {
            let queue = Arc::clone(&self.queue);
            self.runtime.spawn(async move {
                let outcome = probe::ask(round).await;
                queue.add(|work| work.probed(key, outcome));
            });
        }
    }

    /// Shows the blind spots. While a cgroup cannot be watched, all state is read again at intervals, which finds new cgroups.
    fn look_again(&self) -> Option<Instant> {
        let spots = self.steering.blind_spots();
        self.view.send_if_modified(|view| {
            let differs = view.blind_spots.iter().ne(spots.iter());
            if differs {
                view.blind_spots = spots.iter().cloned().collect();
            }
            differs
        });
        spots.is_unwatched().then(|| Instant::now() + RETRY_DELAY)
    }

    fn take_turn(&mut self, turn: Turn) -> Result<(), Error> {
        let Turn { links, routes, probed, alarms, choose, look_at_use, item } = turn;
        let followed = match links {
            // This writes the routes, too.
            Some(links) => self.links_changed(links),
            None if routes => self.steering.routes_changed(),
            None => Ok(()),
        };
        let is_news = choose || !probed.is_empty() || !alarms.is_empty();
        let chosen = if is_news { self.steering.probed(&probed, &alarms) } else { Ok(()) };
        if !probed.is_empty() {
            self.view.send_modify(|view| view.probed = self.steering.probe_results().into());
        }
        let looked = if look_at_use { self.steering.look_at_use() } else { Ok(()) };
        let done = item.map_or(Ok(()), |item| self.carry_out(item));
        let treated = self.steering.take_over_untreated();
        followed.and(chosen).and(looked).and(done).and(treated)
    }

    fn carry_out(&mut self, item: Item) -> Result<(), Error> {
        match item {
            Item::Namespace(change) => self.steering.namespace_changed(&change),
            Item::Cgroup(directory, name) => self.steering.cgroup_changed(directory, &name),
            Item::List(directory, after) => {
                let (names, next) = self.steering.list(directory, after.as_deref())?;
                self.queue.add(|work| work.listed(directory, names, next));
                Ok(())
            }
            Item::Close(directory) => {
                self.steering.close(directory);
                Ok(())
            }
            Item::Files { always } => self.reload(always),
            Item::CatchUp => self.steering.catch_up(),
            Item::Released => self.steering.forget_released(),
            Item::Request(request) => {
                let (store, daemon) = (&self.store, &self.daemon);
                Answering { store, daemon, steering: &mut self.steering, view: &self.view }.answer(request)
            }
        }
    }

    fn links_changed(&mut self, links: Table) -> Result<(), Error> {
        self.view.send_modify(|view| view.links = Arc::new(links.clone()));
        self.steering.links_changed(links)
    }

    fn show_policies(&self) {
        show_policies(&self.view, &self.steering);
    }

    /// Reads the files. A bad file is reported and changes nothing. Unchanged policies are applied again only if `always` is set.
    fn reload(&mut self, always: bool) -> Result<(), Error> {
        let (store, daemon, steering) = (&self.store, &self.daemon, &mut self.steering);
        let file = store.file().display();
        match store.read() {
            // The file is more likely truncated than meant to be empty; an empty one would end all steering.
            Ok(config) if config.policies.is_empty() && steering.has_policies() => log::error!(
                "{file} has no policy and was not reloaded; the previous policies stay in force (`steer off` ends steering)"
            ),
            Ok(config) => {
                if let Some(emptied) = steering.policies().emptied_by(&config) {
                    log::error!("{}", describe_emptied(emptied));
                    return Ok(());
                }
                warn_of_start_only(daemon, &config);
                let policies = Policies::new(config);
                if always || policies != *steering.policies() {
                    steering.set_policies(policies);
                    show_policies(&self.view, steering);
                    steering.converge()?;
                    log::info!("reloaded {file}");
                }
            }
            Err(error) => {
                for line in error.to_string().lines() {
                    log::error!("{line}");
                }
                log::error!("{file} was not reloaded; the previous policies stay in force");
            }
        }
        Ok(())
    }
}

/// What is reported of a file that has lost all its policies, or of a directory of files that is gone.
pub(in crate::run) fn describe_emptied(file: &str) -> String {
    let intended = if Path::new(file).exists() { "remove the file" } else { "make it again, empty" };
    format!(
        "{file} has lost all its policies and was not reloaded; the previous policies stay in force. If that is intended, {intended}, or end \
         steering with `steer off`"
    )
}

/// Says that `[daemon]` applies from the next start on, if it has changed.
pub(super) fn warn_of_start_only(daemon: &DaemonConfig, config: &Config) {
    if config.daemon != *daemon {
        log::warn!("[daemon] has changed; restart the daemon to apply it: it is read at the start only");
    }
}

/// Shows the policies as read last.
pub(super) fn show_policies(view: &watch::Sender<View>, steering: &Steering) {
    let policies: Arc<[_]> = steering.policies().configured().into();
    let uplinks: Arc<[_]> = steering.policies().uplinks().into();
    view.send_modify(|view| (view.policies, view.uplinks) = (policies, uplinks));
}
