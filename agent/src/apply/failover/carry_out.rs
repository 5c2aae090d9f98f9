//! Looks at the sockets of a line and treats them, until a look finds none.
//!
//! **Invariant:** a socket is treated once. What failed for one is not tried again, and is reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use netlink_packet_sock_diag::TCP_LISTEN;

use super::{
    LeaveError, Move, Moved, Remaining, What, Why,
    decision::{self, Action, Facts},
    descriptor,
};
use crate::{
    host::{
        cgroup::Hierarchy,
        sockets::{
            Host, Line,
            diag::{Diag, KINDS_AND_UDP_LITE, Protocol, Socket},
            holder::{self, Holder, Holders},
            read_host, unlisted,
        },
    },
    model::cgroup_path::CgroupPath,
};

/// More looks than programs that make sockets all the time have needed.
const LOOKS: usize = 16;
/// No look begins later.
const LONGEST: Duration = Duration::from_secs(1);

pub(super) fn leave(hierarchy: &Hierarchy, concerned: &dyn Fn(u64) -> bool, moves: &[Move]) -> Moved {
    let (diag, host) = match Diag::open().and_then(|diag| Ok((diag, read_host()?))) {
        Ok(read) => read,
        Err(error) => return Moved { errors: vec![LeaveError::Read(error)], ..Moved::default() },
    };
    let (possible, impossible): (Vec<Move>, Vec<Move>) =
        moves.iter().copied().partition(|this| host.links.contains(&this.to.ifindex));
    let errors = impossible.iter().map(|this| LeaveError::NoLine(this.to.ifindex)).collect();
    let mut departure = Departure {
        hierarchy,
        concerned,
        lines: possible.iter().map(|this| this.from).collect(),
        moves: possible.into(),
        diag,
        host: Arc::new(host),
        listening: BTreeSet::new(),
        given_up: BTreeSet::new(),
        unlisted_given_up: BTreeSet::new(),
        moved: Moved { errors, ..Moved::default() },
    };
    if !departure.moves.is_empty() {
        departure.run();
    }
    departure.moved
}

/// A socket and what to do with it.
type Decided = (Socket, Move, Action);

struct Departure<'a> {
    hierarchy: &'a Hierarchy,
    concerned: &'a dyn Fn(u64) -> bool,
    moves: Arc<[Move]>,
    /// Those that are left.
    lines: Vec<Line>,
    diag: Diag,
    host: Arc<Host>,
    /// The ports of concerned listeners that were seen on these lines.
    listening: BTreeSet<u16>,
    /// The cookies of sockets that stay.
    given_up: BTreeSet<[u8; 8]>,
    /// The inodes of raw and ping sockets that stay.
    unlisted_given_up: BTreeSet<u32>,
    moved: Moved,
}

impl Departure<'_> {
    fn run(&mut self) {
        let begun = Instant::now();
        for _ in 0..LOOKS {
            let found = self.look();
            let is_empty = found.is_empty();
            self.treat(found);
            if self.treat_unlisted() == 0 && is_empty || !self.moved.errors.is_empty() || begun.elapsed() > LONGEST {
                break;
            }
        }
        // Nothing new is found here, unless the loop has reached its bound.
        for (socket, ..) in self.look() {
            self.stays(&socket, Why::Late);
        }
    }

    /// The sockets that must be treated.
    fn look(&mut self) -> Vec<Decided> {
        let mut sockets = Vec::new();
        for kind in KINDS_AND_UDP_LITE {
            match self.diag.list_on(kind, &self.lines) {
                Ok(found) => sockets.extend(found),
                Err(error) if kind.0 == Protocol::UdpLite && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.moved.errors.push(LeaveError::list(kind.0, error)),
            }
        }
        let listeners = sockets.iter().filter(|socket| {
            socket.protocol == Protocol::Tcp && socket.header.state == TCP_LISTEN && (self.concerned)(socket.cgroup_id)
        });
        self.listening.extend(listeners.map(|socket| socket.local().port()));
        self.moved.time_wait = 0;
        let facts = Facts { host: &self.host, concerned: self.concerned, listening: &self.listening };
        let mut decided = Vec::new();
        for socket in sockets {
            match decision::decide(&socket, &self.moves, &facts) {
                Some((_, Action::Unknown)) => self.moved.time_wait += 1,
                Some((this, action)) if !self.given_up.contains(&socket.header.socket_id.cookie) => {
                    decided.push((socket, *this, action));
                }
                _ => {}
            }
        }
        decided
    }

    fn treat(&mut self, decided: Vec<Decided>) {
        // Connections end first: this needs no look at processes.
        let (here, through): (Vec<_>, Vec<_>) = decided
            .into_iter()
            .partition(|(_, _, action)| matches!(action, Action::Destroy | Action::Unknown | Action::Stay(_)));
        for (socket, _, action) in here {
            match action {
                Action::Stay(why) => self.stays(&socket, why),
                _ => self.destroy(&socket),
            }
        }
        let holders = self.holders(&through);
        let mut ended = BTreeSet::new();
        for (socket, this, action) in through {
            // The subflows of an MPTCP connection have the same inode.
            if action == Action::End && !ended.insert(socket.inode()) {
                continue;
            }
            match holders.by_inode.get(&socket.inode()) {
                Some(holder) => self.treat_held(&socket, &this, action, holder),
                None if action == Action::End => self.destroy(&socket),
                None => self.stays(&socket, if holders.hidden { Why::Hidden } else { Why::NoProcess }),
            }
        }
    }

    fn holders(&self, decided: &[Decided]) -> Holders {
        let inodes: BTreeSet<u32> = decided.iter().map(|(socket, ..)| socket.inode()).collect();
        if inodes.is_empty() {
            return Holders::default();
        }
        let cgroups: BTreeSet<u64> = decided.iter().map(|(socket, ..)| socket.cgroup_id).collect();
        let directories: Vec<PathBuf> =
            cgroups.iter().filter_map(|&id| Some(self.hierarchy.directory(&self.hierarchy.path_of(id)?))).collect();
        holder::find(directories.iter().map(PathBuf::as_path), inodes)
    }

    fn destroy(&mut self, socket: &Socket) {
        match self.diag.destroy(socket) {
            Ok(true) if socket.is_mptcp && socket.inode() != 0 => self.moved.mptcp_ended += 1,
            Ok(true) => self.moved.tcp_ended += 1,
            // It has ended by itself.
            Ok(false) => {}
            Err(error) => self.failed(socket, &error),
        }
    }

    /// Treats a socket through its descriptor.
    fn treat_held(&mut self, socket: &Socket, this: &Move, action: Action, holder: &Holder) {
        if let Err(error) = self.try_held(socket, this, action, holder) {
            self.failed(socket, &error);
        }
    }

    fn try_held(&mut self, socket: &Socket, this: &Move, action: Action, holder: &Holder) -> io::Result<()> {
        let (holder, inode, host, this) = (holder.clone(), socket.inode(), Arc::clone(&self.host), *this);
        let treated = self.diag.patience.run(socket.owner(), move || {
            // If the process has closed it, it is gone, or another process has it, which the next look finds.
            let Some(own) = holder.socket(inode)? else { return Ok(Treated::Gone) };
            if action == Action::End {
                return descriptor::end(&own, None).map(|()| Treated::Ended);
            }
            let peer = if action == Action::Reconnect { descriptor::peer(&own)? } else { None };
            let Some(peer) = peer else { return this.to.take(&own).map(|()| Treated::Rebound) };
            let held = descriptor::reconnect(&own, &peer, this.from, this.to, &host)?;
            Ok(held.map_or(Treated::Reconnected, Treated::Holds))
        })?;
        match treated {
            Treated::Gone => {}
            Treated::Ended => self.moved.mptcp_ended += 1,
            Treated::Rebound => self.moved.rebound += 1,
            Treated::Reconnected => self.moved.udp_reconnected += 1,
            Treated::Holds(address) => self.stays(socket, Why::Address(address)),
        }
        Ok(())
    }

    /// Treats raw and ping sockets. The kernel does not show in which cgroup they were made, so those of the processes of concerned
    /// cgroups are treated. Returns how many.
    fn treat_unlisted(&mut self) -> usize {
        if self.moves.iter().all(|this| this.what == What::Linger) {
            return 0;
        }
        let mut peers = match unlisted::peers() {
            Ok(peers) => peers,
            Err(error) => {
                self.moved.errors.push(LeaveError::Read(error));
                return 0;
            }
        };
        peers.retain(|inode, _| !self.unlisted_given_up.contains(inode));
        if peers.is_empty() {
            return 0;
        }
        let cgroups = match self.hierarchy.descendants(&CgroupPath::root()) {
            Ok(cgroups) => cgroups,
            Err(error) => {
                self.moved.errors.push(LeaveError::Cgroups(error));
                return 0;
            }
        };
        let concerned: BTreeMap<PathBuf, u64> = cgroups
            .iter()
            .filter(|cgroup| (self.concerned)(cgroup.id))
            .map(|cgroup| (self.hierarchy.directory(&cgroup.path), cgroup.id))
            .collect();
        let holders = holder::find_inside(concerned.keys().map(PathBuf::as_path), peers.keys().copied().collect());
        if holders.hidden {
            self.moved.errors.push(LeaveError::Read(io::Error::from_raw_os_error(libc::EPERM)));
        }
        let mut treated = 0;
        for (inode, holder) in holders.by_inode {
            match self.treat_one_unlisted(inode, peers.get(&inode).copied().flatten(), &holder) {
                Ok(false) => {}
                Ok(true) => treated += 1,
                Err(why) => {
                    self.unlisted_given_up.insert(inode);
                    let socket = format!("raw or ping socket of {holder}");
                    self.moved.remaining.push(Remaining { socket, cgroup_id: 0, why });
                }
            }
        }
        treated
    }

    /// Returns whether a raw or ping socket was on a line that is left.
    fn treat_one_unlisted(&mut self, inode: u32, peer: Option<IpAddr>, holder: &Holder) -> Result<bool, Why> {
        let (owner, holder, host, moves) =
            (holder.owner(), holder.clone(), Arc::clone(&self.host), Arc::clone(&self.moves));
        let treated =
            self.diag.patience.run(owner, move || Ok(treat_unlisted_held(inode, peer, &holder, &moves, &host)));
        match treated.map_err(|error| failure(&error))?? {
            Treated::Gone => return Ok(false),
            Treated::Ended => self.moved.raw_ended += 1,
            Treated::Rebound => self.moved.rebound += 1,
            Treated::Reconnected => self.moved.udp_reconnected += 1,
            Treated::Holds(address) => return Err(Why::Address(address)),
        }
        Ok(true)
    }

    fn failed(&mut self, socket: &Socket, error: &io::Error) {
        self.stays(socket, failure(error));
    }

    /// Reports a socket that stays, and leaves it out of later looks.
    fn stays(&mut self, socket: &Socket, why: Why) {
        self.given_up.insert(socket.header.socket_id.cookie);
        self.moved.remaining.push(Remaining { socket: socket.to_string(), cgroup_id: socket.cgroup_id, why });
    }
}

/// What became of a socket.
enum Treated {
    /// It is closed, or not concerned.
    Gone,
    Ended,
    Rebound,
    Reconnected,
    /// Its program has bound it to this address of the old line.
    Holds(IpAddr),
}

/// Treats a raw or ping socket that is on a line of these moves.
fn treat_unlisted_held(
    inode: u32,
    peer: Option<IpAddr>,
    holder: &Holder,
    moves: &[Move],
    host: &Host,
) -> Result<Treated, Why> {
    let failed = |error: io::Error| failure(&error);
    let Some(own) = holder.socket(inode).map_err(failed)? else { return Ok(Treated::Gone) };
    let (bound, mark) = (bound(&own).map_err(failed)?, own.mark().map_err(failed)?);
    let address = own.local_addr().map_err(failed)?.as_socket().ok_or(Why::NoProcess)?.ip();
    let concerns = |this: &&Move| this.from.has_such(bound, mark) && this.family.have(peer.unwrap_or(address));
    let Some(this) = moves.iter().find(concerns).filter(|this| this.what == What::End) else {
        return Ok(Treated::Gone);
    };
    let is_raw = own.r#type().map_err(failed)? == socket2::Type::RAW;
    match peer {
        // The kernel never gives it packets again, so it cannot be connected again.
        Some(_) if is_raw => descriptor::end(&own, Some(this.to)).map(|()| Treated::Ended).map_err(failed),
        Some(peer) if decision::is_link_local(peer) => Err(Why::Peer(peer)),
        Some(peer) => {
            let peer = SocketAddr::new(peer, 0).into();
            let held = descriptor::reconnect(&own, &peer, this.from, this.to, host).map_err(failed)?;
            Ok(held.map_or(Treated::Reconnected, Treated::Holds))
        }
        None if decision::holds(address, this.from, host) => Ok(Treated::Holds(address)),
        None => this.to.take(&own).map(|()| Treated::Rebound).map_err(failed),
    }
}

fn failure(error: &io::Error) -> Why {
    if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() {
        return Why::Locked;
    }
    Why::Failed(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The index of the interface that a socket is bound to; 0 is none.
fn bound(own: &socket2::Socket) -> io::Result<i32> {
    let Some(name) = own.device()? else { return Ok(0) };
    let index = nix::net::if_::if_nametoindex(name.as_slice())?;
    i32::try_from(index).map_err(io::Error::other)
}
