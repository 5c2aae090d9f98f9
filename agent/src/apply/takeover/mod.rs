//! Binds or destroys sockets that are older than their policy or its uplink, according to the policy's `existing`.
//!
//! `sock_diag` lists each TCP and UDP socket with the cgroup in which it was made, the interface that it is bound to, and the
//! inode by which its process is found. A socket is bound through a copy of its process's descriptor. A socket that no process
//! has open belongs to the kernel, and is left alone.
//!
//! Destroying a datagram socket unbinds it, so it is bound again at once. If it cannot be bound, it is not destroyed.
//!
//! **Invariant:** this module never changes a socket of a cgroup without this policy, a socket that reaches this host only, or a
//! socket of another network namespace. A failure concerns one socket: the attachment stays.

mod decision;
pub mod foreseen;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
};

use steer_common::{Kind, Mark, Verdict, policy_flags};

use super::resolve;
use crate::{
    host::{
        cgroup::{Found, Hierarchy},
        process,
        sockets::{
            diag::{self, Diag, Protocol, Socket},
            holder::{self, Holder},
            line, read_host,
        },
    },
    kernel::{self, Datapath, Lock, PolicyEntry, text},
    model::{cgroup_path::CgroupPath, spec::Existing},
};
use decision::{Action, Method};

/// The result for the sockets of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// Its cgroup.
    pub path: CgroupPath,
    /// The uplink's name.
    pub interface: String,
    /// The number of sockets bound to the uplink.
    pub bound: usize,
    /// The number of sockets destroyed.
    pub destroyed: usize,
    /// The number of failures. Each has been logged.
    pub failed: usize,
}

impl TakenOver {
    /// Whether no socket was changed, and none failed.
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

/// An attachment whose policy does not keep existing sockets as they are.
struct Claim {
    existing: Existing,
    method: Arc<Method>,
    cgroups: Vec<Found>,
    done: TakenOver,
}

/// Applies `existing` to the sockets of attached cgroups, which their ids name. Skips policies of another network namespace than
/// that of the calling thread, and policies that keep existing sockets.
///
/// The caller holds the lock, so no uplink changes between the read of its index and the last socket.
pub fn take_over(
    lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    attachments: &BTreeSet<u64>,
) -> Vec<TakenOver> {
    take_over_until(lock, datapath, hierarchy, netns_cookie, attachments, &|| false).0
}

/// The same. False: `stop` was true meanwhile, and some sockets are as they were. A second call goes on, and changes no socket twice.
pub fn take_over_until(
    _lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    attachments: &BTreeSet<u64>,
    stop: &dyn Fn() -> bool,
) -> (Vec<TakenOver>, bool) {
    let mut is_complete = true;
    let mut claims = Vec::new();
    for &cgroup_id in attachments {
        match claim(datapath, hierarchy, netns_cookie, cgroup_id) {
            Ok(claim) => claims.extend(claim),
            Err(error) => log::warn!("existing sockets of a cgroup (id {cgroup_id}) were not changed: {error}"),
        }
    }
    if !claims.is_empty() {
        let claimed: BTreeMap<u64, usize> = claims
            .iter()
            .enumerate()
            .flat_map(|(index, claim)| claim.cgroups.iter().map(move |cgroup| (cgroup.id, index)))
            .collect();
        match carry_out(&mut claims, hierarchy, |socket| claimed.get(&socket.cgroup_id).copied(), stop) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => is_complete = false,
            Err(error) => log::warn!("existing sockets were not changed: {error}"),
            Ok(()) => {}
        }
    }
    (claims.into_iter().map(|claim| claim.done).collect(), is_complete)
}

/// The same as [`take_over`], for the sockets that processes made before they were moved into a cgroup. Returns also how many there are.
/// They stay with the cgroup in which they were made: its policy holds them, if it has one.
pub fn take_over_moved(
    _lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    cgroup_id: u64,
    processes: &[u32],
) -> Result<(usize, Option<TakenOver>), kernel::Error> {
    let inodes = process::sockets(processes);
    let is_older = |socket: &Socket| socket.cgroup_id != cgroup_id && inodes.contains(&socket.inode());
    let older = Diag::open().map(|diag| {
        let sockets = diag::KINDS.into_iter().filter_map(|kind| diag.list(kind).ok()).flatten();
        sockets.filter(is_older).count()
    });
    let older = older.unwrap_or_else(|error| {
        log::warn!("existing sockets cannot be listed: {error}");
        0
    });
    let mut claims: Vec<_> = claim(datapath, hierarchy, netns_cookie, cgroup_id)?.into_iter().collect();
    if older > 0
        && !claims.is_empty()
        && let Err(error) = carry_out(&mut claims, hierarchy, |socket| is_older(socket).then_some(0), &|| false)
    {
        log::warn!("existing sockets were not changed: {error}");
    }
    Ok((older, claims.pop().map(|claim| claim.done)))
}

/// The same as [`take_over`], for all attachments to policies whose uplinks have changed.
pub fn follow_uplinks(
    lock: &Lock,
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    changed: &[PolicyEntry],
) -> Result<Vec<TakenOver>, kernel::Error> {
    let concerned = concerned(datapath, changed)?;
    let is_any = !concerned.is_empty();
    Ok(if is_any { take_over(lock, datapath, hierarchy, netns_cookie, &concerned) } else { Vec::new() })
}

/// The attachments to policies that do not keep existing sockets as they are.
pub fn concerned(datapath: &Datapath, changed: &[PolicyEntry]) -> Result<BTreeSet<u64>, kernel::Error> {
    let concerned = changed.iter().filter(|entry| resolve::existing(entry.record.flags) != Existing::Keep);
    let slots: Vec<u32> = concerned.map(|entry| entry.slot).collect();
    if slots.is_empty() { Ok(BTreeSet::new()) } else { datapath.attachments_to(&slots) }
}

fn claim(
    datapath: &Datapath,
    hierarchy: &Hierarchy,
    netns_cookie: u64,
    cgroup_id: u64,
) -> Result<Option<Claim>, kernel::Error> {
    let Some(policy) = datapath.policy_of(cgroup_id)? else { return Ok(None) };
    let (line, others) = datapath.lines_of(&policy, cgroup_id)?;
    let existing = resolve::existing(policy.flags);
    if policy.kind != Kind::Steer as u32 || policy.netns_cookie != netns_cookie || existing == Existing::Keep {
        return Ok(None);
    }
    // A removed cgroup has nothing to do.
    let Some(path) = hierarchy.path_of(cgroup_id) else { return Ok(None) };
    let cgroups = datapath.decided_by(hierarchy, Found { path: path.clone(), id: cgroup_id })?;
    let done = TakenOver { path, interface: text(&policy.interface), bound: 0, destroyed: 0, failed: 0 };
    let mark = match steer_common::decide(Some(&policy), line, netns_cookie) {
        Verdict::Mark(mark) => mark,
        _ => Mark { value: 0, mask: policy.mark_mask },
    };
    let slot = datapath.attachment(cgroup_id)?.map_or(0, |attachment| attachment.record.policy);
    let passes = if policy.flags & policy_flags::PASSES == 0 { None } else { datapath.passes()?.remove(&slot) };
    let passes = passes.unwrap_or_default().into_iter().filter(|(_, passes)| *passes).map(|(pass, _)| pass.prefix);
    let method = Arc::new(Method { uplink: line.ifindex, others, mark, passes: passes.collect() });
    Ok(Some(Claim { existing, method, cgroups, done }))
}

/// Reads all sockets and processes once for all cgroups. `claimed` returns the claim to a socket. [`io::ErrorKind::Interrupted`]: `stop`
/// was true meanwhile.
fn carry_out(
    claims: &mut [Claim],
    hierarchy: &Hierarchy,
    claimed: impl Fn(&Socket) -> Option<usize>,
    stop: &dyn Fn() -> bool,
) -> io::Result<()> {
    let (diag, host) = (Diag::open()?, read_host()?);
    let mut decided = Vec::new();
    for kind in diag::KINDS {
        let sockets = match diag.list_until(kind, stop) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                log::warn!("existing {:?} sockets were not changed: list them by sock_diag: {error}", kind.0);
                continue;
            }
            Ok(sockets) => sockets,
        };
        for socket in sockets {
            if let Some(index) = claimed(&socket)
                && let Some(action) = decision::decide(&socket, claims[index].existing, &claims[index].method, &host)
            {
                decided.push((index, socket, action));
            }
        }
    }
    let directories: Vec<PathBuf> =
        claims.iter().flat_map(|claim| &claim.cgroups).map(|cgroup| hierarchy.directory(&cgroup.path)).collect();
    let inodes = decided.iter().map(|(_, socket, _)| socket.inode()).filter(|inode| *inode != 0).collect();
    let holders = holder::find_until(directories.iter().map(PathBuf::as_path), inodes, stop);
    for (index, socket, action) in decided {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let claim = &mut claims[index];
        let holder = holders.by_inode.get(&socket.inode());
        let owner = holder.map_or_else(|| "no process".to_owned(), ToString::to_string);
        let done = match holder {
            Some(holder) => act(&diag, &socket, action, holder, &claim.method),
            // A connection that waits to be accepted belongs to the listener's process.
            None if socket.is_waiting() => diag.destroy(&socket).map(|ended| ended.then_some(Action::Destroy)),
            None if holders.hidden => Err(io::Error::from_raw_os_error(libc::EPERM)),
            None => Ok(None),
        };
        match done {
            Ok(Some(Action::Steer)) => {
                log::debug!("{socket} of {owner} in {}: bound to {}", claim.done.path, claim.done.interface);
                claim.done.bound += 1;
            }
            Ok(Some(Action::Destroy)) => {
                log::debug!("{socket} of {owner} in {}: destroyed", claim.done.path);
                claim.done.destroyed += 1;
            }
            Ok(None) => log::debug!("{socket} of {owner} in {}: left alone", claim.done.path),
            Err(error) => {
                let hint = hint(&error);
                log::warn!("{socket} of {owner} in {} keeps what it had: {error}{hint}", claim.done.path);
                claim.done.failed += 1;
            }
        }
    }
    Ok(())
}

/// Returns what was done; `None` if the socket was closed in the meantime.
fn act(
    diag: &Diag,
    socket: &Socket,
    action: Action,
    holder: &Holder,
    method: &Arc<Method>,
) -> io::Result<Option<Action>> {
    let destroyed = |ended: bool| ended.then_some(Action::Destroy);
    if (action, socket.protocol) == (Action::Destroy, Protocol::Tcp) {
        return diag.destroy(socket).map(destroyed);
    }
    // While the uplink is missing, there is no other action.
    let Some(uplink) = u32::try_from(method.uplink).ok().and_then(NonZeroU32::new) else { return Ok(None) };
    // The index that sock_diag finds it with from then on.
    let ifindex = if method.is_marking() { 0 } else { uplink.get() };
    let is_unbound = method.is_marking() && socket.bound() == 0;
    // Whether the process still has it.
    let steer = || {
        let (holder, inode, method) = (holder.clone(), socket.inode(), Arc::clone(method));
        diag.patience.run(socket.owner(), move || {
            let Some(own) = holder.socket(inode)? else { return Ok(false) };
            let mark = (!method.has_mark(own.mark()?)).then_some(method.mark);
            line::steer(&own, mark, (!is_unbound).then_some(ifindex)).map(|()| true)
        })
    };
    match (steer(), action) {
        (Ok(false), _) => Ok(None),
        (Ok(true), Action::Steer) => Ok(Some(Action::Steer)),
        (Ok(true), Action::Destroy) => {
            let ended = diag.destroy(&socket.clone().bound_to(ifindex))?;
            steer().map(|_| destroyed(ended))
        }
        // The subflow of an MPTCP connection cannot be bound through the connection's descriptor.
        (Err(error), _)
            if socket.protocol == Protocol::Tcp
                && socket.peer().is_some()
                && error.kind() != io::ErrorKind::TimedOut =>
        {
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
