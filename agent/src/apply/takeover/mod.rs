//! Sockets that were there before their policy, or before their uplink was made again: bound to the uplink, or ended, as the
//! policy's `existing` says.
//!
//! The kernel's list tells of each TCP and UDP socket the cgroup in which it was made, the interface that it is bound to, and
//! the number by which its process is found. A socket is bound through a copy of its process's descriptor. One that no process
//! has open is the kernel's own, and left alone.
//!
//! A datagram socket that is destroyed is unbound by that, so it is bound again at once; one that cannot be bound is not
//! destroyed.
//!
//! **Invariant:** never touched is a socket of a cgroup that another policy or none holds, one that reaches this host only, or
//! one of another network namespace. What fails, fails for one socket: the attachment stands.

mod decision;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    num::NonZeroU32,
    path::PathBuf,
};

use steer_common::Kind;

use super::resolve;
use crate::{
    host::{
        cgroup::{Found, Hierarchy},
        sockets::{
            diag::{self, Diag, Protocol, Socket},
            holder::{self, Holder},
            read_host,
        },
    },
    kernel::{self, Datapath, Lock, PolicyEntry, text},
    model::{cgroup_path::CgroupPath, spec::Existing},
};
use decision::Action;

/// What was done with the sockets of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// Its cgroup.
    pub path: CgroupPath,
    /// The uplink's name.
    pub interface: String,
    /// How many were bound to the uplink.
    pub bound: usize,
    /// How many were destroyed.
    pub destroyed: usize,
    /// With how many that failed; each has been logged.
    pub failed: usize,
}

impl TakenOver {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        (self.bound, self.destroyed, self.failed) == (0, 0, 0)
    }
}

impl fmt::Display for TakenOver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, interface, bound, destroyed, failed } = self;
        write!(formatter, "existing sockets of {path}: {bound} bound to {interface}, {destroyed} destroyed")?;
        if *failed > 0 { write!(formatter, ", {failed} left as they were") } else { Ok(()) }
    }
}

/// An attachment whose policy says something about existing sockets.
struct Claim {
    existing: Existing,
    /// The uplink's index, or not positive while it is missing.
    uplink: i32,
    cgroups: Vec<Found>,
    done: TakenOver,
}

/// Does what their policies say with the existing sockets of attached cgroups, given by id, as far as these are policies of the
/// calling thread's network namespace. Those whose policy leaves existing sockets alone are not in the answer.
///
/// Called under the lock: no uplink changes between the look at its index and the last socket.
pub fn take_over(
    _lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    attachments: &BTreeSet<u64>,
) -> Vec<TakenOver> {
    let mut claims = Vec::new();
    for &cgroup_id in attachments {
        match claim(datapath, hierarchy, netns_cookie, cgroup_id) {
            Ok(claim) => claims.extend(claim),
            Err(error) => log::warn!("the existing sockets of a cgroup (id {cgroup_id}) keep what they had: {error}"),
        }
    }
    if !claims.is_empty()
        && let Err(error) = carry_out(&mut claims, hierarchy)
    {
        log::warn!("existing sockets keep what they had: {error}");
    }
    claims.into_iter().map(|claim| claim.done).collect()
}

/// As [`take_over`], for all attachments to policies whose uplinks have changed.
pub fn follow_uplinks(
    lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    changed: &[PolicyEntry],
) -> Result<Vec<TakenOver>, kernel::Error> {
    let concerned = changed.iter().filter(|entry| resolve::existing(entry.record.flags) != Existing::Keep);
    let slots: Vec<u32> = concerned.map(|entry| entry.slot).collect();
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    Ok(take_over(lock, datapath, hierarchy, netns_cookie, &datapath.attachments_to(&slots)?))
}

fn claim(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    cgroup_id: u64,
) -> Result<Option<Claim>, kernel::Error> {
    let Some(policy) = datapath.policy_of(cgroup_id)? else { return Ok(None) };
    let existing = resolve::existing(policy.flags);
    if policy.kind != Kind::Steer as u32 || policy.netns_cookie != netns_cookie || existing == Existing::Keep {
        return Ok(None);
    }
    // Nothing is left to do for a cgroup that is gone.
    let Some(path) = hierarchy.path_of(cgroup_id) else { return Ok(None) };
    let cgroups = datapath.decided_by(hierarchy, Found { path: path.clone(), id: cgroup_id })?;
    let done = TakenOver { path, interface: text(&policy.interface), bound: 0, destroyed: 0, failed: 0 };
    Ok(Some(Claim { existing, uplink: policy.ifindex, cgroups, done }))
}

/// One look at all sockets and processes, however many cgroups.
fn carry_out(claims: &mut [Claim], hierarchy: &Hierarchy) -> io::Result<()> {
    let claimed: BTreeMap<u64, usize> = claims
        .iter()
        .enumerate()
        .flat_map(|(index, claim)| claim.cgroups.iter().map(move |cgroup| (cgroup.id, index)))
        .collect();
    let (diag, host) = (Diag::open()?, read_host()?);
    let mut decided = Vec::new();
    for kind in diag::KINDS {
        let sockets = diag.list(kind).unwrap_or_else(|error| {
            log::warn!("existing {:?} sockets are not looked at: list them by sock_diag: {error}", kind.0);
            Vec::new()
        });
        for socket in sockets {
            if let Some(&index) = claimed.get(&socket.cgroup_id)
                && let Some(action) = decision::decide(&socket, claims[index].existing, claims[index].uplink, &host)
            {
                decided.push((index, socket, action));
            }
        }
    }
    let directories: Vec<PathBuf> =
        claims.iter().flat_map(|claim| &claim.cgroups).map(|cgroup| hierarchy.directory(&cgroup.path)).collect();
    let inodes = decided.iter().map(|(_, socket, _)| socket.inode()).filter(|inode| *inode != 0).collect();
    let holders = holder::find(directories.iter().map(PathBuf::as_path), inodes);
    for (index, socket, action) in decided {
        let claim = &mut claims[index];
        let holder = holders.by_inode.get(&socket.inode());
        let whose = holder.map_or_else(|| "no process".to_owned(), ToString::to_string);
        let done = match holder {
            Some(holder) => act(&diag, &socket, action, holder, claim.uplink),
            // A connection that waits to be accepted is somebody's all the same.
            None if socket.is_waiting() => diag.destroy(&socket).map(|ended| ended.then_some(Action::Destroy)),
            None if holders.hidden => Err(io::Error::from_raw_os_error(libc::EPERM)),
            None => Ok(None),
        };
        match done {
            Ok(Some(Action::Bind)) => {
                log::debug!("{socket} of {whose} in {}: bound to {}", claim.done.path, claim.done.interface);
                claim.done.bound += 1;
            }
            Ok(Some(Action::Destroy)) => {
                log::debug!("{socket} of {whose} in {}: destroyed", claim.done.path);
                claim.done.destroyed += 1;
            }
            Ok(None) => log::debug!("{socket} of {whose} in {}: left alone", claim.done.path),
            Err(error) => {
                let hint = hint(&error);
                log::warn!("{socket} of {whose} in {} keeps what it had: {error}{hint}", claim.done.path);
                claim.done.failed += 1;
            }
        }
    }
    Ok(())
}

/// Returns what was done; `None` when the socket has ended meanwhile.
fn act(diag: &Diag, socket: &Socket, action: Action, holder: &Holder, uplink: i32) -> io::Result<Option<Action>> {
    let destroyed = |ended: bool| ended.then_some(Action::Destroy);
    if (action, socket.protocol) == (Action::Destroy, Protocol::Tcp) {
        return diag.destroy(socket).map(destroyed);
    }
    // Nothing else is ever done while the uplink is missing.
    let Some(uplink) = u32::try_from(uplink).ok().and_then(NonZeroU32::new) else { return Ok(None) };
    let Some(own) = holder.socket(socket.inode())? else { return Ok(None) };
    match (own.bind_device_by_index_v4(Some(uplink)), action) {
        (Ok(()), Action::Bind) => Ok(Some(Action::Bind)),
        (Ok(()), Action::Destroy) => {
            let ended = diag.destroy(&socket.clone().bound_to(uplink.get()))?;
            own.bind_device_by_index_v4(Some(uplink)).map(|()| destroyed(ended))
        }
        // The subflow of an MPTCP connection cannot be bound by the connection's descriptor.
        (Err(_), _) if socket.protocol == Protocol::Tcp && socket.peer().is_some() => {
            diag.destroy(socket).map(destroyed)
        }
        (Err(error), _) => Err(error),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_SYS_PTRACE, CAP_NET_RAW and CAP_NET_ADMIN)",
        Some(libc::EOPNOTSUPP) => " (this kernel has no CONFIG_INET_DIAG_DESTROY)",
        _ => "",
    }
}
