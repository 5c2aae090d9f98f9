//! The keeper of one `steer exec`: follows the uplink while the command runs, and then removes the cgroup. It removes the pins when the kernel
//! has released the cgroup: while sockets of it are open, they stay on the uplink.
//!
//! The owner of the caller's cgroup may kill all processes in it. Where the command is not in it, the keeper leaves it, too: it moves to
//! a cgroup of its own beside the command's.
//!
//! **Invariant:** clean-up is the same whether the command ended, was never started, or its wrapper was killed before it
//! started the command. Repeating it is no error.

use std::{
    fs,
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use steer_common::policy_flags;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
};

use crate::{
    apply::{
        resolve::{self, Namespace},
        routes::{self, Leftovers, Written},
        takeover,
        uplinks::{self, Groups},
    },
    host::{
        cgroup::{
            self, Hierarchy,
            scope::{self, Scope},
        },
        link, resolved, route,
    },
    kernel::{self, Datapath, Pins},
    model::{cgroup_path::CgroupPath, config::RouteConfig},
    observe::events::{Event, stopped},
    run::api::{client::Client, exec},
};

/// How often the cgroup is looked at, in addition to the changes that the kernel reports.
const RECHECK: Duration = Duration::from_secs(10);
/// The delay before the second check whether the kernel has released the cgroup. It doubles with each check.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// The longest delay between two checks.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Waits for the wrapper to become its command, then for the cgroup to be empty, then cleans up.
pub async fn keep(
    path: &CgroupPath,
    wrapper_fd: i32,
    lock_fd: i32,
    (terminal_fd, socket): (Option<i32>, &Path),
    pins: &Pins,
) -> anyhow::Result<()> {
    // SAFETY: `steer exec` made this descriptor for its keeper alone.
    let wrapper = unsafe { OwnedFd::from_raw_fd(wrapper_fd) };
    // SAFETY: likewise. Held until this process ends: the lock shows that the cgroup has a keeper.
    let _lock = unsafe { OwnedFd::from_raw_fd(lock_fd) };
    // SAFETY: likewise.
    let terminal = terminal_fd.map(|fd| unsafe { fs::File::from_raw_fd(fd) });
    let hierarchy = Hierarchy::find()?;
    let cgroup_id = hierarchy.open(path)?.id;
    let own = OwnCgroup::beside(&hierarchy, path).unwrap_or_else(|error| {
        log::warn!("the keeper of {path} stays in the cgroup of the caller: {error}");
        None
    });
    // The wrapper writes nothing. The end of the pipe is the signal.
    fs::File::from(wrapper).read_to_end(&mut Vec::new()).context("wait for the wrapper")?;
    let mut uplinks = Follower::new(asks_link(pins, cgroup_id));
    loop {
        wait_until_empty(&mut uplinks, &hierarchy, path, pins).await?;
        // No process can enter a removed cgroup.
        if scope::remove(&hierarchy, path)? {
            break;
        }
    }
    if let Some(terminal) = terminal
        && let Err(error) = say_what_was_stopped(&terminal, socket, pins, cgroup_id).await
    {
        log::debug!("say on the terminal of {path} what was stopped: {error}");
    }
    let mut delay = FIRST_DELAY;
    while !clean_up(&hierarchy, pins, cgroup_id)? {
        follow_until(&mut uplinks, &hierarchy, pins, tokio::time::sleep(delay)).await;
        delay = LONGEST_DELAY.min(delay * 2);
    }
    own.map_or(Ok(()), |own| own.remove(&hierarchy))
}

/// Whether the policy of the command has the resolvers of its link.
fn asks_link(pins: &Pins, cgroup_id: u64) -> bool {
    let policy = Datapath::open(pins).and_then(|datapath| datapath.map_or(Ok(None), |it| it.policy_of(cgroup_id)));
    policy.is_ok_and(|policy| policy.is_some_and(|policy| policy.flags & policy_flags::DNS_LINK != 0))
}

/// Says on the terminal of the command what of it was stopped, or would be. If nothing was, it says nothing.
async fn say_what_was_stopped(terminal: &fs::File, socket: &Path, pins: &Pins, cgroup_id: u64) -> anyhow::Result<()> {
    if kernel::stopped_in(pins, cgroup_id)?.is_empty() {
        return Ok(());
    }
    let mut events = Vec::new();
    match Client::find(socket).await {
        Some(daemon) => {
            let known = daemon.follow("/v1/events?once=true", |line| {
                events.extend(serde_json::from_slice::<Event>(line));
                Ok(())
            });
            // Without them, it says less.
            if let Err(error) = known.await {
                log::debug!("ask for the events of cgroup {cgroup_id}: {error}");
            }
        }
        None => events = stopped::unread(pins, cgroup_id),
    }
    Ok(stopped::say(terminal, &stopped::in_cgroup(pins, cgroup_id, &events)?)?)
}

/// Waits until the command has ended that a daemon runs for a user, and says on the terminal what of it was stopped. `descriptors`: the
/// pipe that brings the id of its cgroup, or nothing if it was not let in; the command; the terminal.
pub async fn tell(descriptors: [i32; 3], users_socket: &Path) -> anyhow::Result<()> {
    // SAFETY: `steer exec` made these descriptors for this process alone.
    let [wrapper, command, terminal] = descriptors.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut cgroup_id = String::new();
    fs::File::from(wrapper).read_to_string(&mut cgroup_id).context("wait for the wrapper")?;
    let Ok(cgroup_id) = cgroup_id.trim().parse() else { return Ok(()) };
    // SAFETY: the descriptor stays open and the same while the `AsyncFd` owns it.
    let command = unsafe { AsyncFd::register_with_interest(command, Interest::READABLE) }?;
    let _ended = command.readable().await?;
    let Some(daemon) = Client::find(users_socket).await else { return Ok(()) };
    let stopped: Vec<stopped::Stopped> = daemon.ask(exec::STOPPED_PATH, &exec::AskStopped { cgroup_id }).await?;
    Ok(stopped::say(&terminal.into(), &stopped)?)
}

/// A cgroup for the keeper alone. The next command removes that of a killed keeper.
struct OwnCgroup {
    scope: Scope,
    /// The cgroup of the caller.
    left: CgroupPath,
}

impl OwnCgroup {
    /// Moves this process to a new one beside a command's cgroup. `None`: the command's is in that of the caller, and ends with it.
    fn beside(hierarchy: &Hierarchy, command: &CgroupPath) -> Result<Option<Self>, cgroup::Error> {
        let left = hierarchy.own()?;
        let Some(place) = command.parent().filter(|place| *place != left) else { return Ok(None) };
        let own = Self { scope: Scope::create(hierarchy, &place)?, left };
        match own.scope.enter(hierarchy) {
            Ok(()) => Ok(Some(own)),
            Err(error) => scope::remove(hierarchy, &own.scope.cgroup.path).and(Err(error)),
        }
    }

    /// Moves back, or to the root if that is not possible any more, and removes it.
    fn remove(self, hierarchy: &Hierarchy) -> anyhow::Result<()> {
        let enter = |path: &CgroupPath| fs::write(hierarchy.directory(path).join("cgroup.procs"), "0");
        enter(&self.left).or_else(|_| enter(&CgroupPath::root())).context("leave the keeper's cgroup")?;
        scope::remove(hierarchy, &self.scope.cgroup.path)?;
        Ok(())
    }
}

/// Follows the uplink while any process is in the cgroup.
async fn wait_until_empty(
    uplinks: &mut Follower,
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    pins: &Pins,
) -> anyhow::Result<()> {
    let events = match fs::File::open(hierarchy.directory(path).join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("open cgroup.events"),
    };
    // cgroup.events signals a change by POLLPRI.
    // SAFETY: the file stays open and the same while the `AsyncFd` owns it.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }?;
    while scope::is_populated(hierarchy, path)? {
        let changed = async { events.ready(Interest::PRIORITY).await.map(|mut ready| ready.clear_ready()) };
        // The kernel reports no change of a cgroup that another process has removed.
        match follow_until(uplinks, hierarchy, pins, tokio::time::timeout(RECHECK, changed)).await {
            Ok(changed) => changed?,
            Err(_elapsed) => {}
        }
    }
    Ok(())
}

/// Follows the uplink until `end`. After a failure it reads the links again and retries.
async fn follow_until<T>(
    uplinks: &mut Follower,
    hierarchy: &Hierarchy,
    pins: &Pins,
    end: impl Future<Output = T>,
) -> T {
    let mut end = pin!(end);
    loop {
        tokio::select! {
            ended = &mut end => return ended,
            followed = follow(uplinks, hierarchy, pins) => {
                if let Err(error) = followed {
                    log::error!("{error:#}");
                    *uplinks = Follower::new(uplinks.asks_link);
                }
            }
        }
    }
}

/// What follows the uplinks, or why that has failed.
struct Follower {
    /// Whether it follows the resolvers of links, too.
    asks_link: bool,
    now: anyhow::Result<Uplinks>,
}

impl Follower {
    fn new(asks_link: bool) -> Self {
        Self { asks_link, now: Uplinks::new(asks_link) }
    }
}

/// The state that is needed to follow the uplinks of this network namespace.
struct Uplinks {
    links: link::Watch,
    /// The last reading of the links, if there was one.
    table: Option<link::Table>,
    routes: route::Notified,
    netns_cookie: u64,
    /// The resolvers of links as they change, and what keeps them coming; nothing comes if the policy does not ask for them.
    resolvers: mpsc::Receiver<Arc<resolved::LinkResolvers>>,
    _asks_resolvers: watch::Sender<bool>,
    known: Option<Arc<resolved::LinkResolvers>>,
}

impl Uplinks {
    fn new(asks_link: bool) -> Result<Self, anyhow::Error> {
        let (asks_resolvers, asked) = watch::channel(asks_link);
        let resolvers = if asks_link {
            resolved::watch(asked).context("watch the resolvers of links")?
        } else {
            mpsc::channel(1).1
        };
        Ok(Self {
            links: link::Watch::new()?,
            table: None,
            routes: route::Notified::new().context("watch rules and routes")?,
            netns_cookie: kernel::netns_cookie()?,
            resolvers,
            _asks_resolvers: asks_resolvers,
            known: None,
        })
    }

    async fn follow(&mut self, hierarchy: &Hierarchy, pins: &Pins) -> anyhow::Result<()> {
        tokio::select! {
            links = self.links.next() => self.table = Some(links?.clone()),
            changed = self.routes.changed() => changed?,
            Some(known) = self.resolvers.recv() => self.known = Some(known),
        }
        // Without a reading of the links, every uplink would appear to be missing.
        let Some(table) = &mut self.table else { return Ok(()) };
        table.set_resolvers(self.known.clone());
        Ok(follow_uplinks(hierarchy, pins, table, self.netns_cookie)?)
    }
}

/// Waits for a change of links and applies it. After a failure it waits before the next attempt.
async fn follow(uplinks: &mut Follower, hierarchy: &Hierarchy, pins: &Pins) -> anyhow::Result<()> {
    let followed = match &mut uplinks.now {
        Ok(uplinks) => uplinks.follow(hierarchy, pins).await,
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    if followed.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    followed
}

/// Updates every policy of this network namespace, and then existing sockets. After `steer off` there is nothing to update,
/// which is no error.
fn follow_uplinks(
    hierarchy: &Hierarchy,
    pins: &Pins,
    table: &link::Table,
    netns_cookie: u64,
) -> Result<(), kernel::Error> {
    let Some(mut datapath) = Datapath::open(pins)? else { return Ok(()) };
    let lock = match datapath.lock() {
        Err(kernel::Error::SwitchedOff { .. }) => return Ok(()),
        lock => lock?,
    };
    let namespace = Namespace::own(table, netns_cookie, RouteConfig::default().marks(), &[]);
    let changed = resolve::follow(&mut datapath, &lock, namespace)?;
    let switches = Groups::default().follow(&mut datapath, &lock, namespace, &mut Written::default())?;
    routes::follow(&mut datapath, &lock, namespace, &mut Written::default())?;
    uplinks::report(&uplinks::move_sockets(&lock, &mut datapath, hierarchy, &switches)?);
    takeover::follow_uplinks(&lock, &datapath, hierarchy, netns_cookie, &changed).map(drop)
}

/// Removes everything that belongs to a removed cgroup. Returns false while the kernel has not released it, or while its last
/// connections need rules, but for a daemon, which removes these itself.
fn clean_up(hierarchy: &Hierarchy, pins: &Pins, cgroup_id: u64) -> anyhow::Result<bool> {
    if let Some(lock) = pins.lock()? {
        if let Some(mut datapath) = Datapath::open(pins)? {
            if !datapath.is_released(cgroup_id)? {
                return Ok(false);
            }
            datapath.forget(&lock, cgroup_id)?;
        }
        let daemon_runs = pins.daemon_runs()?;
        return Ok(!routes::tidy(pins, lock, hierarchy, Leftovers::Stay)? || daemon_runs);
    }
    Ok(true)
}
