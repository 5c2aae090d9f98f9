//! Decides about a socket on a line that its group leaves. Pure.
//!
//! **Invariant:** a socket that reaches this host only is left alone. So is a socket of the other address family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_sock_diag::{TCP_CLOSE, TCP_LISTEN};

use super::{Families, Line, Move, What, Why};
use crate::host::sockets::{
    Host,
    diag::{Protocol, Socket},
};

/// What to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Destroy it.
    Destroy,
    /// End it through its descriptor: the program of an MPTCP connection does not notice that a subflow was destroyed.
    End,
    /// Put it on the other line. It has no peer.
    Rebind,
    /// Put it on the other line, and connect it to its peer again.
    Reconnect,
    /// The kernel does not keep whose it was.
    Unknown,
    /// It cannot be moved.
    Stay(Why),
}

impl Families {
    /// Whether it has the family of these addresses.
    pub(super) fn have(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
        }
    }
}

/// What a decision is made with.
pub(super) struct Facts<'a> {
    pub(super) host: &'a Host,
    /// Whether a cgroup uses the group.
    pub(super) concerned: &'a dyn Fn(u64) -> bool,
    /// The ports of concerned listeners: a request for a connection has no cgroup.
    pub(super) listening: &'a BTreeSet<u16>,
}

/// The move that concerns a socket, and what to do with it.
pub(super) fn decide<'a>(socket: &Socket, moves: &'a [Move], facts: &Facts<'_>) -> Option<(&'a Move, Action)> {
    // An IPv6 socket that uses IPv4 has IPv4 addresses here.
    let family = socket.peer().map_or_else(|| socket.local().ip(), |peer| peer.ip());
    let this = moves.iter().find(|this| this.from.has(socket) && this.family.have(family))?;
    let is_idle = matches!(socket.header.state, TCP_LISTEN | TCP_CLOSE);
    if this.what == What::Linger && !(socket.protocol == Protocol::Tcp && is_idle) || facts.host.is_all_of(socket) {
        return None;
    }
    if socket.cgroup_id != 0 {
        return (facts.concerned)(socket.cgroup_id).then(|| (this, action(socket, is_idle, this.from, facts.host)));
    }
    match this.from.mark {
        // Only sockets of the group have its marks.
        Some(_) => Some((this, Action::Destroy)),
        None if socket.is_request() => {
            facts.listening.contains(&socket.local().port()).then_some((this, Action::Destroy))
        }
        None => Some((this, Action::Unknown)),
    }
}

fn action(socket: &Socket, is_idle: bool, from: Line, host: &Host) -> Action {
    let has_process = socket.inode() != 0;
    match socket.protocol {
        Protocol::Tcp if !is_idle => {
            return if socket.is_mptcp && has_process { Action::End } else { Action::Destroy };
        }
        _ if !has_process => return Action::Stay(Why::NoProcess),
        _ => {}
    }
    match socket.peer().map(|peer| peer.ip()) {
        Some(peer) if is_link_local(peer) => Action::Stay(Why::Peer(peer)),
        Some(_) => Action::Reconnect,
        None if holds(socket.local().ip(), from, host) => Action::Stay(Why::Address(socket.local().ip())),
        None => Action::Rebind,
    }
}

/// Whether an address holds a socket on a line: it is the line's, or was.
pub(super) fn holds(local: IpAddr, from: Line, host: &Host) -> bool {
    let is_general = local.is_unspecified() || local.is_multicast() || local == IpAddr::V4(Ipv4Addr::BROADCAST);
    !is_general && !host.addresses.iter().any(|&(ifindex, own)| own == local && ifindex != from.ifindex)
}

/// An address that exists on one link only.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
