//! A container's uplink: the host grants it and it is in force before the container's program is executed, or the start is refused.
//!
//! **Invariant:** nothing here uses the daemon. Files and pins are enough to steer a container, within a bounded time. A failed
//! attempt leaves nothing.

pub mod classify;
pub mod hook;
pub mod nri;
pub mod oci;
pub mod plugin;
mod process;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use steer_common::Owner;
use thiserror::Error;

use crate::{
    apply::{
        manual::{self, Wanted},
        permit::{self, Asker, Grant, Origin},
        resolve::{self, Namespace},
        routes::{self, Leftovers},
        takeover,
    },
    host::{
        cgroup::{self, Hierarchy},
        link::Table,
    },
    kernel::{self, Datapath, Lock, Pins, Policy},
    model::{
        cgroup_path::CgroupPath,
        config::{Config, Missing, UNCLASSIFIED},
        policy::Policies,
        spec::{Target, annotations::Request},
    },
};
use process::Process;

/// How long the daemon may take to attach what the configuration names in a container's cgroup. A runtime waits for the hook.
const DAEMON_PATIENCE: Duration = Duration::from_millis(500);
/// How long a hook waits for the kernel to release a container's cgroup.
const RELEASE_PATIENCE: Duration = Duration::from_millis(500);
/// How often it checks.
const GLANCE: Duration = Duration::from_millis(10);

/// Why a container is not steered, and so does not start.
#[derive(Debug, Error)]
pub enum Error {
    /// The host does not allow it.
    #[error(transparent)]
    Refused(#[from] permit::Refused),
    /// The uplink does not exist.
    #[error(
        "policy {policy}: {source}; the container does not start without its uplink (`missing = \"close\"` in [containers] lets it start closed)"
    )]
    Missing {
        /// The policy.
        policy: String,
        /// The state of the uplink.
        source: resolve::Absent,
    },
    /// The container has no cgroup of its own.
    #[error(
        "process {pid} is in the root cgroup, whose policy would hold for the whole machine; give the container a cgroup of its own"
    )]
    RootCgroup {
        /// Its process.
        pid: u32,
    },
    /// The container has no cgroup of its own.
    #[error("the container is in {path}, and so is the process that starts it, in {own}; give it a cgroup of its own")]
    RuntimesCgroup {
        /// The container's cgroup.
        path: CgroupPath,
        /// The cgroup of this process.
        own: CgroupPath,
    },
    /// The process that the runtime reported is no more.
    #[error("process {pid} of the container: {source}; it has ended")]
    Ended {
        /// Its id, which another process may have now.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
    /// The process may be another one than the runtime reported.
    #[error(
        "process {pid} is in {path}, whose name does not contain the container's id {id}: it may be another process, which got the \
         id of one that has ended; it is left alone"
    )]
    Stranger {
        /// Its id.
        pid: u32,
        /// Its cgroup.
        path: CgroupPath,
        /// The container's id.
        id: String,
    },
    /// The process has left the container's cgroup.
    #[error("process {pid} of the container has moved from {path} to {now} meanwhile")]
    Moved {
        /// Its id.
        pid: u32,
        /// The cgroup that was steered.
        path: CgroupPath,
        /// Its cgroup now.
        now: CgroupPath,
    },
    /// The container's network namespace cannot be entered.
    #[error("enter {file}: {source} (needs CAP_SYS_ADMIN)")]
    Netns {
        /// The file of the namespace.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// The cgroup hierarchy failed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The attachment failed.
    #[error(transparent)]
    Attach(#[from] manual::Error),
    /// The pins failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// A container.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// One of its processes, as seen from here.
    pub pid: u32,
    /// Its id. If the name of a cgroup contains an id that a runtime generated, that cgroup is the whole container. The container's
    /// processes may be in cgroups below it, as with systemd in a container, or with crun where systemd makes the cgroups.
    pub id: &'a str,
    /// How far its start is.
    pub phase: Phase,
}

/// How far the start of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The runtime waits for the hook, so its process exists.
    Starts,
    /// It was created before steer could act. Its process may have ended since it was reported.
    Created,
    /// The same, and its program may have made sockets.
    Runs,
}

/// What is done with a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The container gets a policy.
    Steer(Grant),
    /// The container has no request. It is released from the policy of `parent` of `[containers]`, and from no other.
    Release,
    /// The container is closed: nothing leaves it.
    Close,
}

impl Action {
    /// The action for a request, if the host grants it. `None` if nothing is to be done.
    pub fn of(
        config: &Config,
        container: Container<'_>,
        asked: Option<(&Request, Asker)>,
    ) -> Result<Option<Self>, Error> {
        match (asked, &config.containers.parent) {
            (Some((asked, by)), _) => Ok(Some(Self::Steer(permit::grant(config, asked, by)?))),
            (None, Some(parent)) => {
                let cgroup = Hierarchy::find()?.of_process(container.pid)?;
                Ok((cgroup != *parent && cgroup.is_in(parent)).then_some(Self::Release))
            }
            (None, None) => Ok(None),
        }
    }

    fn grant(&self) -> Grant {
        match self {
            Self::Steer(grant) => grant.clone(),
            Self::Release => Grant { name: "none".to_owned(), target: Target::exempt() },
            Self::Close => Grant { name: UNCLASSIFIED.to_owned(), target: Target::CLOSED },
        }
    }
}

/// Carries out an action, before the container's program is executed. Repeating it updates the policy. Returns the container's cgroup.
pub fn steer(pins: &Pins, config: &Config, container: Container<'_>, action: &Action) -> Result<CgroupPath, Error> {
    let hierarchy = Hierarchy::find()?;
    let process = Process::look_at(&hierarchy, container)?;
    let links = if *action == Action::Close { Table::default() } else { process.links()? };
    let namespace = process.namespace(&links, config.route.marks(), &config.uplinks);
    let policy = policy(config, namespace, &action.grant())?;
    let pins = &pins.clone().with_patience(config.containers.timeout);
    let announcement = match action {
        Action::Steer(_) | Action::Release => manual::announce(pins, &hierarchy, &process.cgroup, DAEMON_PATIENCE)?,
        Action::Close => None,
    };
    manual::change(pins, &hierarchy, |lock| {
        // It ends before the lock does.
        let _announcement = announcement;
        let mut datapath = Datapath::open_or_load(pins, lock)?;
        datapath.forget_released(lock)?;
        let path = &process.cgroup.path;
        let policies = Policies::new(config.clone());
        if *action == Action::Release
            && let Some(parent) = &config.containers.parent
            && !permit::container_without_request(&datapath, &hierarchy, (&policies, parent), path)?
        {
            return Ok(());
        }
        let origin = if *action == Action::Close { Origin::Closing } else { Origin::Container };
        let wanted = (origin, &Wanted::Own(Box::new(policy)));
        let existing = datapath.attachment(process.cgroup.id)?;
        let is_new = existing.is_none();
        if let Action::Steer(grant) = action
            && !existing.is_some_and(|existing| existing.is_manual())
        {
            let is_here = process.netns_cookie == kernel::netns_cookie()?;
            permit::container_with_request(&policies, path, grant, is_here).map_err(manual::Error::from)?;
        }
        manual::attach(&mut datapath, lock, &hierarchy, &process.cgroup, wanted, namespace)?;
        if let Err(error) = process.check_place(&hierarchy) {
            // The container is elsewhere, so this attachment is not its.
            if is_new {
                datapath.detach(lock, &hierarchy, process.cgroup.id)?;
            }
            return Err(error);
        }
        if container.phase == Phase::Runs { take_over_sockets(pins, lock, &hierarchy, &process) } else { Ok(()) }
    })?;
    Ok(process.cgroup.path)
}

/// Applies the policy to sockets that the container's program has made already, in the container's network namespace.
fn take_over_sockets(pins: &Pins, lock: &Lock, hierarchy: &Hierarchy, process: &Process) -> Result<(), Error> {
    let (id, cookie) = (process.cgroup.id, process.netns_cookie);
    let taken_over = process.inside(|| {
        let datapath = Datapath::open(pins)?;
        let taken = datapath.map(|datapath| takeover::take_over(lock, &datapath, hierarchy, cookie, &[id].into()));
        Ok::<_, kernel::Error>(taken.unwrap_or_default())
    })??;
    for taken in taken_over.iter().filter(|taken| !taken.is_nothing()) {
        log::info!("{taken}");
    }
    Ok(())
}

/// Forgets the containers that the kernel has released. If nothing is pinned, that is no error.
///
/// Without a daemon, it waits a moment for the kernel. A container whose sockets are open for longer is forgotten by the next command. Rules
/// do not wait for the end of connections: nobody would remove them.
pub fn forget(pins: &Pins, timeout: Duration) -> Result<(), Error> {
    let pins = pins.clone().with_patience(timeout);
    let hierarchy = Hierarchy::find()?;
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        let Some(lock) = pins.lock()? else { return Ok(()) };
        if pins.daemon_runs()? {
            return Ok(pins.notify_daemon(&lock)?);
        }
        let lingers = match Datapath::open(&pins)? {
            Some(mut datapath) => {
                let (remaining, _) = routes::clean_up(&mut datapath, &lock, &hierarchy, Leftovers::Go)?;
                !remaining.lingering.is_empty()
            }
            None => false,
        };
        if !lingers || Instant::now() >= deadline {
            return Ok(routes::tidy(&pins, lock, &hierarchy, Leftovers::Go).map(drop)?);
        }
        drop(lock);
        thread::sleep(GLANCE);
    }
}

/// The policy for the container's network namespace, with the uplink's index there.
fn policy(config: &Config, namespace: Namespace<'_>, grant: &Grant) -> Result<Policy, Error> {
    let Grant { name, target } = grant;
    match config.containers.missing {
        Missing::Close => Ok(resolve::policy(name, target, Owner::Manual, namespace)),
        Missing::Refuse => resolve::present(name, target, Owner::Manual, namespace)
            .map_err(|source| Error::Missing { policy: name.clone(), source }),
    }
}
