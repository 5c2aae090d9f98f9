//! A container's uplink: granted as the host allows, and in force before its program is executed, or refused.
//!
//! **Invariant:** nothing here asks the daemon. A container is steered by files and pins alone, within a bounded time; and
//! what was not done to its end leaves nothing.

mod annotations;
pub mod classify;
mod grant;
pub mod hook;
pub mod nri;
pub mod oci;
pub mod plugin;
mod process;

use std::{io, time::Duration};

use steer_common::{Owner, PolicyRecord};
use thiserror::Error;

pub use annotations::{Asked, PREFIX, annotation_of_variable};
pub use grant::{Asker, Decision, decide};

use crate::{
    apply::takeover,
    host::cgroup::{self, Hierarchy},
    kernel::{self, Datapath, Lock, Pins},
    model::{
        cgroup_path::CgroupPath,
        config::{Config, Manner, Missing, UNCLASSIFIED},
        policy::Target,
    },
};
use process::Process;

/// Why a container is not steered, and so does not start.
#[derive(Debug, Error)]
pub enum Error {
    /// An annotation means nothing.
    #[error("annotation {name} = {value:?}: {problem}")]
    Annotation {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The host does not allow it.
    #[error("the container asks for {asked}: {why}")]
    Refused {
        /// What it asks for.
        asked: String,
        /// Why it does not get it.
        why: String,
    },
    /// The uplink is not there.
    #[error(
        "policy {policy}: {source}; the container does not start without (`missing = \"close\"` in [containers] lets it start closed)"
    )]
    Missing {
        /// By what it was to be steered.
        policy: String,
        /// What is there.
        source: crate::host::link::Error,
    },
    /// It has no cgroup of its own.
    #[error(
        "process {pid} is in the root cgroup, whose policy would hold for the whole machine; give the container a cgroup of its own"
    )]
    RootCgroup {
        /// Its process.
        pid: u32,
    },
    /// It has no cgroup of its own.
    #[error("the container is in {path}, as is what starts it, in {own}; give it a cgroup of its own")]
    RuntimesCgroup {
        /// The container's cgroup.
        path: CgroupPath,
        /// That of this process.
        own: CgroupPath,
    },
    /// Its network namespace cannot be entered.
    #[error("enter {file}: {source} (needs CAP_SYS_ADMIN)")]
    Netns {
        /// By which file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// The hierarchy.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The pins.
    #[error(transparent)]
    Datapath(#[from] kernel::Error),
}

/// A container.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// One of its processes, as seen from here.
    pub pid: u32,
    /// Its id. A cgroup that bears one that a runtime generated is all of the container: its processes may be in cgroups below, as
    /// those of systemd in a container, and those of crun where systemd makes the cgroups.
    pub id: &'a str,
    /// Whether its program may have made sockets already.
    pub runs: bool,
}

/// What is to become of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is steered.
    By(Decision),
    /// No policy around it holds for it.
    Exempt,
    /// Nothing gets out of it.
    Closed,
}

impl Fate {
    /// What is asked for, as far as it is granted. Nothing asked: nothing is done, except that below `parent` of `[containers]`
    /// the container is let out of what holds it.
    pub fn of(
        config: &Config,
        container: Container<'_>,
        asked: Option<(&Asked, Asker)>,
    ) -> Result<Option<Self>, Error> {
        let held = |parent: &CgroupPath| {
            let cgroup = Hierarchy::find()?.of_process(container.pid)?;
            Ok::<_, Error>((cgroup != *parent && cgroup.is_in(parent)).then_some(Self::Exempt))
        };
        match (asked, &config.containers.parent) {
            (Some((asked, by)), _) => Ok(Some(Self::By(decide(config, asked, by)?))),
            (None, Some(parent)) => held(parent),
            (None, None) => Ok(None),
        }
    }

    fn decision(&self) -> Decision {
        let decision =
            |name: &str, interface, manner| Decision { name: name.to_owned(), target: Target { interface, manner } };
        match self {
            Self::By(decision) => decision.clone(),
            Self::Exempt => decision("none", None, Manner::default()),
            Self::Closed => decision(UNCLASSIFIED, Some(String::new()), Manner::CLOSED),
        }
    }
}

/// Lets a container have its fate, from before its program is executed. Doing it again changes it. Returns its cgroup.
pub fn steer(pins: &Pins, config: &Config, container: Container<'_>, fate: &Fate) -> Result<CgroupPath, Error> {
    let hierarchy = Hierarchy::find()?;
    let process = Process::look_at(&hierarchy, container)?;
    let decision = fate.decision();
    let record = record(config, &process, &decision)?;
    let pins = &pins.clone().with_patience(config.containers.timeout);
    let lock = pins.create_and_lock()?;
    let attached = attach(pins, &lock, &hierarchy, &process, &record, container.runs);
    // What is attached is so, whatever fails afterwards.
    let afterwards = match attached {
        Ok(()) => pins.tell_daemon(&lock),
        Err(_) => kernel::tidy(pins, lock, &hierarchy),
    };
    if let Err(error) = afterwards {
        log::warn!("{error}");
    }
    attached.map(|()| process.cgroup.path)
}

/// Forgets the containers that are gone. Nothing pinned is no error.
pub fn forget(pins: &Pins, patience: Duration) -> Result<(), Error> {
    let pins = pins.clone().with_patience(patience);
    let Some(lock) = pins.lock()? else { return Ok(()) };
    pins.tell_daemon(&lock)?;
    Ok(kernel::tidy(&pins, lock, &Hierarchy::find()?)?)
}

/// The policy as a record of the container's network namespace, with the uplink's index there.
fn record(config: &Config, process: &Process, decision: &Decision) -> Result<PolicyRecord, Error> {
    let Decision { name, target } = decision;
    let ifindex = match target.interface.as_deref() {
        None | Some("") => None,
        Some(interface) => match (process.links()?.require(interface), config.containers.missing) {
            (Ok(ifindex), _) => Some(ifindex),
            (Err(_), Missing::Close) => None,
            (Err(source), Missing::Refuse) => return Err(Error::Missing { policy: name.clone(), source }),
        },
    };
    Ok(target.record(name, Owner::Manual, ifindex, process.netns_cookie))
}

fn attach(
    pins: &Pins,
    lock: &Lock,
    hierarchy: &Hierarchy,
    process: &Process,
    record: &PolicyRecord,
    runs: bool,
) -> Result<(), Error> {
    let mut datapath = Datapath::open_or_load(pins, lock)?;
    datapath.sweep_gone(lock, hierarchy)?;
    // On the host's network, a policy that the daemon has in force is followed when its configuration changes.
    let (slot, manual) = match datapath.configured_as(record)? {
        Some(slot) => {
            let existing = datapath.attachment(process.cgroup.id)?;
            (slot, existing.is_none_or(|existing| existing.is_manual() || existing.record.policy != slot))
        }
        None => (datapath.put_policies(lock, std::slice::from_ref(record))?[0], true),
    };
    datapath.attach(lock, hierarchy, &process.cgroup, slot, manual)?;
    if runs {
        let (id, cookie) = (process.cgroup.id, process.netns_cookie);
        let taken = process.inside(|| {
            let datapath = Datapath::open(pins)?;
            let taken = datapath.map(|datapath| takeover::take_over(lock, &datapath, hierarchy, cookie, &[id].into()));
            Ok::<_, kernel::Error>(taken.unwrap_or_default())
        })??;
        for taken in taken.iter().filter(|taken| !taken.is_nothing()) {
            log::info!("{taken}");
        }
    }
    Ok(())
}
