//! Manual attachments, which `attach`, `exec` and hooks of container runtimes create outside of the configuration.
//!
//! **Invariant:** the permission is checked before anything is written, and a failure leaves nothing behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use steer_common::{Owner, policy_flags};
use thiserror::Error;

use super::{
    permit::{self, Attach, Denied, Origin},
    resolve::{self, Namespace},
    routes::{self, Elsewhere, Leftovers, Written},
    takeover::{self, TakenOver},
    uplinks::Groups,
};
use crate::{
    host::cgroup::{Cgroup, Hierarchy},
    kernel::{self, Announcement, Datapath, Lock, Pins, PolicyEntry},
    model::similar::nearest,
};

/// How long the daemon may take to take an attachment over, or to attach what is in it.
pub const DAEMON_PATIENCE: Duration = Duration::from_secs(5);
/// How often a command checks whether it has.
const GLANCE: Duration = Duration::from_millis(2);

/// The policy to attach.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A policy for this attachment alone.
    Own(Box<kernel::Policy>),
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
    #[error(
        "there is no policy {name:?} in force{}; `steer status` lists the policies in force",
        .perhaps.as_ref().map_or_else(String::new, |perhaps| format!("; did you mean {perhaps:?}?"))
    )]
    NoPolicy {
        /// Its name.
        name: String,
        /// A policy in force that may be meant.
        perhaps: Option<String>,
    },
    /// A kernel object failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// Lets a running daemon attach what the configuration names in a cgroup, which is about to be attached: the attachment around may hold
/// these cgroups, where a glob names all of them, and the new one would hold them until the daemon has attached them. The announcement
/// must stay until the cgroup is attached.
pub fn announce(
    pins: &Pins,
    hierarchy: &Hierarchy,
    cgroup: &Cgroup,
    patience: Duration,
) -> Result<Option<Announcement>, Error> {
    if cgroup.is_leaf() {
        return Ok(None);
    }
    let Some(lock) = pins.lock()? else { return Ok(None) };
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    // What is attached already holds nothing that the configuration names.
    if datapath.attachment(cgroup.id)?.is_some() || datapath.around(hierarchy, &cgroup.path)?.is_none() {
        return Ok(None);
    }
    let Some(announcement) = pins.announce(&lock, cgroup.id)? else { return Ok(None) };
    drop(lock);
    let deadline = Instant::now() + patience;
    while !announcement.is_confirmed() {
        if Instant::now() >= deadline {
            log::warn!(
                "the daemon does not answer; until it does, cgroups in {} that the configuration names are held by the new attachment",
                cgroup.path
            );
            break;
        }
        thread::sleep(GLANCE);
    }
    Ok(Some(announcement))
}

/// Attaches a policy to a cgroup. `namespace` is that of the container, or of the caller.
///
/// Perhaps nobody has followed the links since the policies were written, and another link has the index of an uplink now. So all
/// policies of the namespace get the current indexes first, except by [`Origin::Closing`], which needs no link.
pub fn attach(
    datapath: &mut Datapath,
    lock: &Lock,
    hierarchy: &Hierarchy,
    cgroup: &Cgroup,
    (origin, wanted): (Origin, &Wanted),
    namespace: Namespace<'_>,
) -> Result<(), Error> {
    let configured = match wanted {
        Wanted::Policy(name) => {
            let entry = configured(datapath, name)?;
            permit::namespace(origin, &entry, namespace.cookie)?;
            Some(entry.slot)
        }
        // On the host's network, use the policy in force itself, so that the container follows the configuration.
        Wanted::Own(policy) if origin == Origin::Container => datapath.configured_as(&policy.record)?,
        Wanted::Own(_) => None,
    };
    let existing = datapath.attachment(cgroup.id)?;
    let permitted = permit::attachment(origin, &cgroup.path, existing.as_ref(), configured.unwrap_or_default())?;
    if origin != Origin::Closing {
        resolve::follow(datapath, lock, namespace)?;
        Groups::default().follow(datapath, lock, namespace, &mut Written::default())?;
    }
    let slot = match (configured, wanted) {
        (Some(slot), _) => slot,
        (None, Wanted::Own(policy)) => {
            let taken = routes::taken(std::slice::from_ref(policy), namespace)?;
            let slot = datapath.put_policies(lock, std::slice::from_ref(policy), &taken)?[0];
            if policy.group.is_some() {
                Groups::default().follow(datapath, lock, namespace, &mut Written::default())?;
            }
            slot
        }
        (None, Wanted::Policy(name)) => return Err(Error::NoPolicy { name: name.clone(), perhaps: None }),
    };
    // The routes come first: with a mark that no rule knows, packets are stopped. What closes needs none, and knows no links.
    if origin != Origin::Closing {
        routes::follow(datapath, lock, namespace, &mut Written::default())?;
    }
    datapath.attach(lock, hierarchy, cgroup, slot, permitted == Attach::Manually)?;
    datapath.log_unreported();
    if existing.is_some() {
        // The previous policy of the cgroup may be unused now.
        let elsewhere = Elsewhere::read(datapath)?;
        datapath.free_unused_policies(lock)?;
        if let Err(error) = routes::release(datapath, Leftovers::Stay).and(elsewhere.release(datapath)) {
            log::warn!("{error}");
        }
    }
    Ok(())
}

/// Whether a command in an attached cgroup needs a seccomp filter: its policy is strict, and the kernel runs no security program
/// that refuses what the other programs do not see.
pub fn needs_filter(datapath: &Datapath, cgroup: &Cgroup) -> Result<bool, Error> {
    let Some(attachment) = datapath.attachment(cgroup.id)? else { return Ok(false) };
    let policy = datapath.policy(attachment.record.policy)?;
    Ok(policy.flags & policy_flags::GUARD != 0 && kernel::unguarded(datapath.pins()).is_some())
}

fn configured(datapath: &Datapath, name: &str) -> Result<PolicyEntry, Error> {
    let mut all = datapath.policies()?;
    all.retain(|entry| entry.is_owned_by(Owner::Config));
    if let Some(at) = all.iter().position(|entry| entry.name() == *name) {
        return Ok(all.swap_remove(at));
    }
    let perhaps = nearest(name, all.iter().map(PolicyEntry::name));
    Err(Error::NoPolicy { name: name.to_owned(), perhaps })
}

/// Detaches a cgroup. The policy that holds it now decides about its sockets, by `existing`.
///
/// A running daemon takes the attachment over. The configuration may name the cgroup, too, and then no packet may leave in between.
pub fn detach(pins: &Pins, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Result<Vec<TakenOver>, Error> {
    let Some(lock) = pins.lock()? else { return Ok(Vec::new()) };
    let daemon_runs = pins.daemon_runs()?;
    let mut taken_over = Vec::new();
    let mut lock = lock;
    if let Some(mut datapath) = Datapath::open(pins)? {
        let existing = datapath.attachment(cgroup.id)?;
        permit::detachment(&cgroup.path, existing.as_ref(), owner(&datapath, cgroup.id)?, daemon_runs)?;
        if daemon_runs && existing.is_some() {
            // First: if this process is killed in between, the daemon finds what was handed over. It waits for the lock.
            let answer = pins.ask_for_answer(&lock)?;
            datapath.hand_over(&lock, cgroup.id)?;
            drop(lock);
            if is_taken_over(&datapath, cgroup.id, answer.as_ref())? {
                kernel::detach_other_versions(pins, &datapath.lock()?, cgroup.id)?;
                return Ok(Vec::new());
            }
            log::warn!("the daemon does not answer; {} is detached without it", cgroup.path);
            lock = datapath.lock()?;
        }
        datapath.detach(&lock, hierarchy, cgroup.id)?;
        if let Some(outer) = datapath.around(hierarchy, &cgroup.path)? {
            taken_over = takeover::take_over(&lock, &datapath, hierarchy, kernel::netns_cookie()?, &[outer].into());
        }
    }
    kernel::detach_other_versions(pins, &lock, cgroup.id)?;
    pins.notify_daemon(&lock)?;
    routes::tidy(pins, lock, hierarchy, Leftovers::Go)?;
    Ok(taken_over)
}

/// The owner of the policy that a cgroup is attached to.
fn owner(datapath: &Datapath, cgroup_id: u64) -> Result<Option<u32>, kernel::Error> {
    Ok(datapath.policy_of(cgroup_id)?.map(|policy| policy.owner))
}

/// Waits until the daemon has detached a cgroup, or has decided that the configuration holds it. False when it does not do so in time.
fn is_taken_over(datapath: &Datapath, cgroup_id: u64, answer: Option<&Announcement>) -> Result<bool, Error> {
    let deadline = Instant::now() + DAEMON_PATIENCE;
    loop {
        let is_done = datapath.attachment(cgroup_id)?.is_none() || answer.is_some_and(Announcement::is_confirmed);
        if is_done || Instant::now() >= deadline {
            return Ok(is_done);
        }
        thread::sleep(GLANCE);
    }
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
        // The daemon may have attached what is in the cgroup.
        Err(_) => {
            pins.notify_daemon(&lock).and_then(|()| routes::tidy(pins, lock, hierarchy, Leftovers::Stay).map(drop))
        }
    };
    if let Err(error) = afterwards {
        log::warn!("{error}");
    }
    changed
}
