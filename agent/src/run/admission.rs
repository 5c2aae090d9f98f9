//! Lets a user's process into a cgroup of its own that a policy steers: `steer exec --policy` without privilege.
//!
//! The daemon makes the cgroup where only root may change cgroups, attaches the policy, starts the keeper, and moves the process. The
//! process then becomes its command. A user can still start programs outside of it: this is no jail for the user.
//!
//! **Invariant:** a process is moved only after the policy holds its new cgroup, and only if it is the one that asked.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use super::command;
use crate::{
    apply::{
        manual::Wanted,
        permit::user::{self, Refused},
        resolve::Namespace,
    },
    host::{
        cgroup::{
            self, Hierarchy,
            scope::{self, Scope},
        },
        link::Table,
        peer::Peer,
    },
    kernel::{self, Datapath, Pins},
    model::config::{Config, Policy},
};

/// How many commands of a user may run in one place, so that no user takes all slots of the maps.
const COMMANDS: usize = 64;

/// A process that was let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Admitted {
    /// Its cgroup.
    pub cgroup: String,
    /// The cgroup's id.
    pub cgroup_id: u64,
    /// Whether the kernel cannot stop sockets past the IP stack, so that the process has to refuse them to itself.
    pub needs_filter: bool,
}

/// Why a process was not let in.
#[derive(Debug, Error)]
pub enum Error {
    /// It may not.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It has ended.
    #[error("process {0} has ended")]
    Ended(u32),
    /// It is in another network namespace, where the uplink is not.
    #[error("process {0} is in another network namespace than the daemon")]
    OtherNetwork(u32),
    /// Too many commands run.
    #[error("{COMMANDS} commands of user {uid} run in {place} already; expected fewer")]
    TooMany {
        /// The user.
        uid: u32,
        /// The cgroup that theirs are in.
        place: String,
    },
    /// The cgroups.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// Another step.
    #[error("{0:#}")]
    Step(#[from] anyhow::Error),
}

impl Error {
    /// Whether asking again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::OtherNetwork(_) | Self::TooMany { .. })
    }
}

/// Lets a process in. `policies` are those in force; `config` tells of marks and groups, and `links` are the daemon's.
pub fn admit(
    pins: &Pins,
    peer: &Peer,
    name: &str,
    (policies, config, links): (&[Policy], &Config, &Table),
) -> Result<Admitted, Error> {
    let pid = peer.pid;
    let policy = user::policy(policies, name, peer)?;
    let hierarchy = Hierarchy::find()?;
    let path = hierarchy.of_process(pid)?;
    if netns_of(&pid.to_string())? != netns_of("self")? {
        return Err(Error::OtherNetwork(pid));
    }
    if let Some(datapath) = Datapath::open(pins)? {
        user::leaving(&datapath, &hierarchy, &path, pid)??;
    }
    let place = scope::place(&hierarchy, &path)?;
    scope::clean_up(&hierarchy, &place)?;
    let running = hierarchy.children(&place)?.iter().filter(|child| scope::is_of_user(&child.path, peer.uid)).count();
    if running >= COMMANDS {
        return Err(Error::TooMany { uid: peer.uid, place: place.to_string() });
    }
    let scope = Scope::create_for(&hierarchy, &place, peer.uid)?;
    // The keeper begins when this descriptor closes, at the end.
    let _keeper = command::start_keeper(&scope, pins, None)?;
    let namespace = Namespace::own(links, kernel::netns_cookie()?, config.route.marks(), &config.uplinks);
    let needs_filter = command::attach(&hierarchy, pins, &scope, &Wanted::Policy(policy.name.clone()), namespace)?;
    // Meanwhile it may have become another program, or may have been steered.
    user::policy(policies, name, peer)?;
    let now = hierarchy.of_process(pid)?;
    if now != path {
        return Err(Refused::Held { pid, path: now }.into());
    }
    if let Some(datapath) = Datapath::open(pins)? {
        user::leaving(&datapath, &hierarchy, &path, pid)??;
    }
    let is_moved = scope.take(&hierarchy, pid)?;
    if !is_moved || peer.has_ended().unwrap_or(true) {
        return Err(Error::Ended(pid));
    }
    let cgroup = scope.cgroup.path.to_string();
    log::info!("user {} runs process {pid} by policy {name} in {cgroup}", peer.uid);
    Ok(Admitted { cgroup, cgroup_id: scope.cgroup.id, needs_filter })
}

fn netns_of(process: &str) -> Result<std::path::PathBuf, Error> {
    let file = format!("/proc/{process}/ns/net");
    std::fs::read_link(&file).map_err(|error| Error::Step(anyhow::Error::new(error).context(format!("read {file}"))))
}
