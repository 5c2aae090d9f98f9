//! Moves the sockets of a failed member of an uplink group to the chosen one.
//!
//! The choice comes first: new sockets are already made on the new line. Then each socket of the old line is treated by its kind,
//! in one list for each protocol and family:
//!
//! | kind | treatment |
//! |---|---|
//! | TCP connection | destroyed: ECONNABORTED at once |
//! | MPTCP connection | ended through its descriptor |
//! | connected datagram socket | connected again by the new line, so QUIC goes on; from a new port unless the program chose its own |
//! | other datagram socket, listener | bound or marked for the new line |
//! | connected raw socket | ended |
//!
//! Then it looks again, until a look finds none: a socket may have been made by the old choice meanwhile.
//!
//! It cannot see a socket that has no port yet (a TCP or UDP socket between `socket` and `connect`), because the kernel lists none;
//! the program on `connect` must move it. Memberships of multicast groups stay on the old link.
//!
//! **Invariant:** this module changes no socket of a cgroup that is not concerned, of another line, of the other address family, or
//! that reaches this host only. It touches nothing if the new line does not exist.

mod carry_out;
mod decision;
mod descriptor;

use std::{io, net::IpAddr};

use thiserror::Error;

pub use crate::host::sockets::Line;
use crate::host::{cgroup::Hierarchy, sockets::diag::Protocol};

/// From which line to which.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The line that is left. If it is known by its binding only, its sockets may belong to several groups, and `concerned` says
    /// which; if it is known by its mark, this mark must belong to this group only.
    pub from: Line,
    /// The chosen line. Its interface must exist.
    pub to: Line,
    /// The families that leave.
    pub family: Families,
    /// What happens to connections.
    pub what: What,
}

/// Address families. An IPv6 socket counts as IPv4 if its peer is an IPv4 address, or if it has no peer and a local IPv4 address.
/// One that serves both, without a peer, counts as IPv6: it follows the choice of the family that it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Both,
}

/// What happens to the sockets of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// TCP connections end, and everything else moves.
    End,
    /// Only listeners move. Connections and datagram sockets stay until a later [`What::End`].
    Linger,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Moved {
    /// TCP connections that were destroyed, with those without a process and requests for connections.
    pub tcp_ended: usize,
    /// MPTCP connections that were ended.
    pub mptcp_ended: usize,
    /// Datagram sockets that were connected again by the new line.
    pub udp_reconnected: usize,
    /// Listeners and other sockets that were bound or marked for the new line.
    pub rebound: usize,
    /// Connected raw sockets that were ended.
    pub raw_ended: usize,
    /// Connections in TIME_WAIT that are bound to the old interface. The kernel does not keep their cgroup, so they were left
    /// alone. They send only answers to what comes by that interface.
    pub time_wait: usize,
    /// Sockets of concerned cgroups that are still on the old line.
    pub remaining: Vec<Remaining>,
    /// What prevented a look.
    pub errors: Vec<LeaveError>,
}

/// A socket that is still on the old line.
#[derive(Debug, Error)]
#[error("{socket} of the cgroup with id {cgroup_id} stays: {why}")]
pub struct Remaining {
    /// Its protocol and addresses.
    pub socket: String,
    /// The cgroup in which it was made; 0 if the kernel does not keep it.
    pub cgroup_id: u64,
    /// Why.
    pub why: Why,
}

/// Why a socket stays.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Why {
    /// `bind` to an address of the old line, by the program itself.
    #[error("its program bound it to {0}, an address of that link")]
    Address(IpAddr),
    /// A link-local peer exists on one link only.
    #[error("its peer {0} is on that link")]
    Peer(IpAddr),
    /// It is the kernel's, or its descriptor is in a message or in io_uring.
    #[error("no process has it open")]
    NoProcess,
    /// Without CAP_SYS_PTRACE, the processes of others cannot be read.
    #[error("its process cannot be read (needs CAP_SYS_PTRACE)")]
    Hidden,
    /// A call on it, or on another socket of its user, did not return in time.
    #[error("a program of its user holds a socket locked")]
    Locked,
    /// A system call failed, with this errno.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Failed(i32),
    /// More were made by the old choice than this module waits for.
    #[error("it was found in the last look; new ones are still made by the old choice")]
    Late,
}

/// What prevented a look at sockets.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// sock_diag, or the links and addresses of this host.
    #[error("read the sockets and links of this host: {0}")]
    Read(#[source] io::Error),
    /// One list.
    #[error("list {protocol} sockets: {source}")]
    List {
        /// The protocol.
        protocol: String,
        /// The cause.
        source: io::Error,
    },
    /// The list of cgroups, which is read to find raw and ping sockets.
    #[error("list cgroups to find raw and ping sockets: {0}")]
    Cgroups(#[source] crate::host::cgroup::Error),
    /// The new line does not exist. Nothing was moved to it.
    #[error("there is no interface with index {0} to move sockets to; its sockets were left alone")]
    NoLine(i32),
}

impl LeaveError {
    fn list(protocol: Protocol, source: io::Error) -> Self {
        Self::List { protocol: format!("{protocol:?}"), source }
    }
}

/// Moves the sockets of the cgroups that use the group, in the calling thread's network namespace. `concerned` gets the id of a
/// cgroup.
///
/// A destroyed TCP connection sends its RST by the old line. For a marked line, delete its routes before, and nothing leaves by it.
///
/// It waits for nothing, and looks at most a few times. /proc is read only if a socket must be changed through its descriptor. Needs
/// CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_PTRACE, and a kernel with CONFIG_INET_DIAG_DESTROY.
pub fn leave(hierarchy: &Hierarchy, concerned: &dyn Fn(u64) -> bool, moves: &[Move]) -> Moved {
    carry_out::leave(hierarchy, concerned, moves)
}
