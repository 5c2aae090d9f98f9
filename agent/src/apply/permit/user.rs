//! Decides whether a user's process may be let into a cgroup that a policy steers.

use thiserror::Error;

use crate::{
    host::{account, cgroup::Hierarchy, peer::Peer},
    kernel::{self, Datapath},
    model::{cgroup_path::CgroupPath, config::Policy},
};

/// Why a process may not have the policy.
#[derive(Debug, Error)]
pub enum Refused {
    /// The configuration has no such policy.
    #[error("the configuration has no policy {0:?}")]
    NoPolicy(String),
    /// The policy does not allow it.
    #[error(
        "policy {policy:?} does not allow user {uid}; `allow_users` or `allow_groups` of the policy in steer.toml would"
    )]
    NotAllowed {
        /// The policy.
        policy: String,
        /// The user.
        uid: u32,
    },
    /// The process runs a set-user-ID program, or has changed its user.
    #[error("process {pid} does not run as user {uid} alone")]
    OtherUser {
        /// The process.
        pid: u32,
        /// The user who asked.
        uid: u32,
    },
    /// The process is steered already. It might escape from its policy.
    #[error("process {pid} is in {path}, which steer holds already; a command there keeps its uplink")]
    Held {
        /// The process.
        pid: u32,
        /// Its cgroup.
        path: CgroupPath,
    },
    /// Its user or groups cannot be read.
    #[error("read the user of process {pid}: {source}")]
    Unknown {
        /// The process.
        pid: u32,
        /// The cause.
        source: std::io::Error,
    },
}

/// Whether a process may have the policy with this name.
pub fn policy<'p>(policies: &'p [Policy], name: &str, peer: &Peer) -> Result<&'p Policy, Refused> {
    let Peer { pid, uid, .. } = *peer;
    let found = policies.iter().find(|policy| policy.name == name);
    let policy = found.ok_or_else(|| Refused::NoPolicy(name.to_owned()))?;
    let credentials = peer.credentials().map_err(|source| Refused::Unknown { pid, source })?;
    if credentials.uids.iter().any(|now| *now != uid) {
        return Err(Refused::OtherUser { pid, uid });
    }
    if !account::is_allowed(&policy.allow, uid, &credentials.gids) {
        return Err(Refused::NotAllowed { policy: name.to_owned(), uid });
    }
    Ok(policy)
}

/// Whether a policy allows the user of a process, or one of his groups.
pub fn is_named(policies: &[Policy], peer: &Peer) -> bool {
    let Ok(credentials) = peer.credentials() else { return false };
    policies.iter().any(|policy| account::is_allowed(&policy.allow, peer.uid, &credentials.gids))
}

/// Whether a process in `path` may leave that cgroup: nothing steers it.
pub fn leaving(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    pid: u32,
) -> Result<Result<(), Refused>, kernel::Error> {
    let own = datapath.attachment(hierarchy.id(path)?)?.map(|attachment| attachment.cgroup_id);
    let held = match own {
        Some(id) => Some(id),
        None => datapath.around(hierarchy, path)?,
    };
    Ok(if held.is_none() { Ok(()) } else { Err(Refused::Held { pid, path: path.clone() }) })
}
