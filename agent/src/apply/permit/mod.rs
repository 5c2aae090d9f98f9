//! Decides whether a cgroup may get a policy. This depends on who requests it and on the existing attachment.
//!
//! | requested by | no attachment | a manual attachment | an attachment of the configuration |
//! |---|---|---|---|
//! | the configuration: a file, the API | yes | no: the manual one stays | yes |
//! | `attach`, `steer unit` | yes | yes: it is replaced | only the same policy |
//! | `exec`, for the cgroup that it creates | yes | yes | yes: a glob may name it |
//! | a user without privilege, by `exec` | if the policy allows the user and nothing holds the process: [`user`] | no | no |
//! | a container | if the host grants it, and the configuration names no other policy | if the host grants it | only the same policy |
//! | a hook that closes a container | yes | yes | yes: nothing leaves it then |
//!
//! A cgroup inside a steered one may always get its own policy: the most specific policy applies. Only a container without a
//! request gets none: see [`container_without_request`].
//!
//! **Invariant:** only this module decides it. The error of a refusal names what steers the cgroup now.

mod grant;
mod reach;
pub mod user;

use steer_common::{Kind, Owner};
use thiserror::Error;

pub use grant::{Asker, Grant, Refused, grant};

use crate::{
    host::cgroup::Hierarchy,
    kernel::{self, Attachment, Datapath, PolicyEntry},
    model::{
        cgroup_path::CgroupPath,
        config::{Policy, UNCLASSIFIED},
        policy::Policies,
    },
};

/// Who requests a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The files of the configuration, which the API also writes.
    Configuration,
    /// `steer attach`, also from the drop-in that `steer unit` writes.
    Attach,
    /// `steer exec`, for a cgroup that it has created.
    Exec,
    /// A hook of a container runtime.
    Container,
    /// A hook that closes a container, because it runs and may not have what it asks for.
    Closing,
}

/// Why a cgroup does not get a policy.
#[derive(Debug, Error)]
pub enum Denied {
    /// The configuration steers the cgroup by another policy.
    #[error("{path} is steered by the daemon's configuration; change it there")]
    Configured {
        /// The cgroup.
        path: CgroupPath,
    },
    /// A running daemon would attach the cgroup again.
    #[error("{path} is steered by the daemon's configuration, which would attach it again; change it there")]
    WouldReturn {
        /// The cgroup.
        path: CgroupPath,
    },
    /// The cgroup has a manual attachment.
    #[error(
        "{path} has a manual attachment, which the configuration does not replace; `steer detach {path}` removes it"
    )]
    Manual {
        /// The cgroup.
        path: CgroupPath,
    },
    /// The policy belongs to another network namespace than the program.
    #[error(
        "policy {policy:?} and its uplink belong to another network namespace: run the command there, or use --interface"
    )]
    OtherNamespace {
        /// The policy.
        policy: String,
    },
}

/// The owner of a permitted attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// A manual attachment: it stays until it is detached, whatever the configuration contains.
    Manually,
    /// An attachment of the configuration, which may change and remove it.
    AsConfigured,
}

/// Whether the cgroup at `path`, which has `existing`, may get the policy in `slot` from `origin`.
pub fn attachment(
    origin: Origin,
    path: &CgroupPath,
    existing: Option<&Attachment>,
    slot: u32,
) -> Result<Attach, Denied> {
    // A leftover without a policy belongs to nobody.
    let existing = existing.filter(|existing| existing.record.policy != 0);
    let is_configured = existing.map(configuration_may_change);
    match (origin, is_configured) {
        (Origin::Configuration, Some(false)) => Err(Denied::Manual { path: path.clone() }),
        (Origin::Configuration, None | Some(true)) => Ok(Attach::AsConfigured),
        // A glob may name the cgroup that `exec` has just created, and the daemon may be faster.
        (Origin::Exec | Origin::Closing, _) | (Origin::Attach | Origin::Container, None | Some(false)) => {
            Ok(Attach::Manually)
        }
        (Origin::Attach | Origin::Container, Some(true)) => {
            let is_same = existing.is_some_and(|existing| existing.record.policy == slot);
            if is_same { Ok(Attach::AsConfigured) } else { Err(Denied::Configured { path: path.clone() }) }
        }
    }
}

/// Whether the configuration may change or remove an attachment. It keeps manual ones.
pub fn configuration_may_change(existing: &Attachment) -> bool {
    !existing.is_manual()
}

/// Whether the cgroup at `path` may be detached from `existing`, whose policy has this owner. A running daemon would attach it
/// again if the configuration names it. A `detach` that was killed may have handed a manual attachment over to the daemon.
pub fn detachment(
    path: &CgroupPath,
    existing: Option<&Attachment>,
    owner: Option<u32>,
    daemon_runs: bool,
) -> Result<(), Denied> {
    let is_configured = existing.is_some_and(configuration_may_change) && owner == Some(Owner::Config as u32);
    if daemon_runs && is_configured { Err(Denied::WouldReturn { path: path.clone() }) } else { Ok(()) }
}

/// Whether a program of the network namespace `cookie` may use a configured policy. The index of the uplink is not valid in
/// another namespace, so the program would run unsteered.
pub fn namespace(origin: Origin, policy: &PolicyEntry, cookie: u64) -> Result<(), Denied> {
    if origin != Origin::Exec || policy.exempts() || policy.record.netns_cookie == cookie {
        return Ok(());
    }
    Err(Denied::OtherNamespace { policy: policy.name() })
}

/// Whether a container may get the policy that it requests, unless its cgroup has a manual attachment: not if the configuration names the
/// cgroup for another one. A glob may hold the cgroup from outside, so no attachment of its own shows that. `is_here`: it is in the network
/// namespace of the configuration's uplinks.
pub fn container_with_request(
    policies: &Policies,
    path: &CgroupPath,
    grant: &Grant,
    is_here: bool,
) -> Result<(), Denied> {
    let named = policies.naming(path).map(|index| &policies.configured()[index]);
    let is_same = |policy: &Policy| is_here && policy.name == grant.name && policy.target == grant.target;
    if named.is_none_or(is_same) { Ok(()) } else { Err(Denied::Configured { path: path.clone() }) }
}

/// Whether a container without a request is exempted from the policy that holds it. Only the policy of `parent` in `[containers]`
/// permits this, which closes unclassified cgroups. Any other policy continues to hold.
///
/// Where nothing is attached yet, this is also so, unless the configuration has a policy for the cgroup: a daemon that starts later would
/// close a container that runs.
pub fn container_without_request(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    (policies, parent): (&Policies, &CgroupPath),
    path: &CgroupPath,
) -> Result<bool, kernel::Error> {
    if datapath.attachment(hierarchy.id(path)?)?.is_some() {
        return Ok(false);
    }
    let Some(holder) = datapath.around(hierarchy, path)? else {
        let mut inside = path.self_and_ancestors().into_iter().take_while(|path| path != parent);
        return Ok(!inside.any(|path| policies.naming(&path).is_some()));
    };
    let Some(policy) = datapath.policy_of(holder)? else { return Ok(false) };
    let is_unclassified = policy.kind == Kind::Steer as u32
        && policy.owner == Owner::Config as u32
        && policy.interface.iter().all(|byte| *byte == 0)
        && kernel::text(&policy.name) == UNCLASSIFIED;
    Ok(is_unclassified)
}

#[cfg(test)]
mod tests {
    use steer_common::{AttachmentRecord, attachment_flags};

    use super::{Attach, Denied, Origin, attachment};
    use crate::{kernel::Attachment, model::cgroup_path::CgroupPath};

    fn existing(policy: u32, flags: u32) -> Attachment {
        Attachment {
            cgroup_id: 5,
            record: AttachmentRecord { policy, flags, cgroup_id: 5, ..AttachmentRecord::default() },
            hooks: Vec::new(),
            program_ids: Vec::new(),
            complete: true,
            live: true,
        }
    }

    #[test]
    fn who_may_change_what() {
        let path = CgroupPath::root().child("a");
        let (configured, manual, leftover) = (existing(3, 0), existing(3, attachment_flags::MANUAL), existing(0, 0));
        let request = |origin, existing, slot| attachment(origin, &path, existing, slot);
        assert_eq!(request(Origin::Exec, Some(&configured), 4).expect("its own cgroup"), Attach::Manually);
        assert_eq!(request(Origin::Closing, Some(&configured), 0).expect("closing"), Attach::Manually);
        assert_eq!(request(Origin::Attach, Some(&leftover), 0).expect("a leftover"), Attach::Manually);
        for origin in [Origin::Attach, Origin::Container] {
            assert_eq!(request(origin, None, 4).expect("permitted"), Attach::Manually);
            assert_eq!(request(origin, Some(&manual), 4).expect("permitted"), Attach::Manually);
            assert_eq!(request(origin, Some(&configured), 3).expect("the same policy"), Attach::AsConfigured);
            assert!(matches!(request(origin, Some(&configured), 4), Err(Denied::Configured { .. })), "{origin:?}");
        }
        let configuration = |existing| request(Origin::Configuration, existing, 4);
        assert_eq!(configuration(Some(&configured)).expect("its own attachment"), Attach::AsConfigured);
        assert_eq!(configuration(None).expect("permitted"), Attach::AsConfigured);
        assert!(matches!(configuration(Some(&manual)), Err(Denied::Manual { .. })));
    }
}
