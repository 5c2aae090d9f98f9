//! Manual attachments, which `attach`, `exec` and hooks of container runtimes create outside of the configuration.
//!
//! **Invariant:** the permission is checked before anything is written, and a failure leaves nothing behind.

use steer_common::{Owner, PolicyRecord};
use thiserror::Error;

use super::{
    permit::{self, Attach, Denied, Origin},
    takeover::{self, TakenOver},
};
use crate::{
    host::cgroup::{Cgroup, Hierarchy},
    kernel::{self, Datapath, Lock, Pins, PolicyEntry},
};

/// The policy to attach.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A policy for this attachment alone.
    Record(Box<PolicyRecord>),
    /// The policy of the configuration with this name, which must be in force.
    Policy(String),
}

/// Why the attachment failed.
#[derive(Debug, Error)]
pub enum Error {
    /// It is not permitted.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No slot has this policy.
    #[error("there is no policy {name:?} in force; `steer status` lists the policies in force")]
    NoPolicy {
        /// Its name.
        name: String,
    },
    /// A kernel object failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// Attaches a policy to a cgroup. `cookie` identifies the caller's network namespace.
pub fn attach(
    datapath: &mut Datapath,
    lock: &Lock,
    hierarchy: &Hierarchy,
    cgroup: &Cgroup,
    (origin, wanted): (Origin, &Wanted),
    cookie: u64,
) -> Result<(), Error> {
    let configured = match wanted {
        Wanted::Policy(name) => {
            let entry = configured(datapath, name)?;
            permit::namespace(origin, &entry, cookie)?;
            Some(entry.slot)
        }
        // On the host's network, use the policy in force itself, so that the container follows the configuration.
        Wanted::Record(record) if origin == Origin::Container => datapath.configured_as(record)?,
        Wanted::Record(_) => None,
    };
    let existing = datapath.attachment(cgroup.id)?;
    let permitted = permit::attachment(origin, &cgroup.path, existing.as_ref(), configured.unwrap_or_default())?;
    let slot = match (configured, wanted) {
        (Some(slot), _) => slot,
        (None, Wanted::Record(record)) => datapath.put_policies(lock, std::slice::from_ref(record))?[0],
        (None, Wanted::Policy(name)) => return Err(Error::NoPolicy { name: name.clone() }),
    };
    datapath.attach(lock, hierarchy, cgroup, slot, permitted == Attach::Manually)?;
    // The previous policy of the cgroup may be unused now.
    if existing.is_some() { Ok(datapath.free_unused_policies(lock)?) } else { Ok(()) }
}

fn configured(datapath: &Datapath, name: &str) -> Result<PolicyEntry, Error> {
    let found = datapath.policies()?.into_iter().find(|entry| entry.is_owned_by(Owner::Config) && entry.name() == name);
    found.ok_or_else(|| Error::NoPolicy { name: name.to_owned() })
}

/// Detaches a cgroup. The policy that holds it now decides about its sockets, by `existing`.
pub fn detach(pins: &Pins, lock: &Lock, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Result<Vec<TakenOver>, Error> {
    let Some(mut datapath) = Datapath::open(pins)? else { return Ok(Vec::new()) };
    let existing = datapath.attachment(cgroup.id)?;
    permit::detachment(&cgroup.path, existing.as_ref(), pins.daemon_runs()?)?;
    datapath.detach(lock, hierarchy, cgroup.id)?;
    let Some(outer) = datapath.around(hierarchy, &cgroup.path)? else { return Ok(Vec::new()) };
    Ok(takeover::take_over(lock, &datapath, hierarchy, kernel::netns_cookie()?, &[outer].into()))
}

/// Changes attachments under the lock. Then notifies a running daemon, or cleans up a failed change.
pub fn change<T, E: From<kernel::Error>>(
    pins: &Pins,
    hierarchy: &Hierarchy,
    work: impl FnOnce(&Lock) -> Result<T, E>,
) -> Result<T, E> {
    let lock = pins.create_and_lock()?;
    let changed = work(&lock);
    // A failure from here on does not undo the attachment.
    let afterwards = match changed {
        Ok(_) => pins.notify_daemon(&lock),
        Err(_) => kernel::tidy(pins, lock, hierarchy),
    };
    if let Err(error) = afterwards {
        log::warn!("{error}");
    }
    changed
}
