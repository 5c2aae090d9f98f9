//! The variants: kinds of sockets, and ways to steer them or not.
//!
//! **Invariant:** each variant has its own cgroup, and differs from the others only in what steers it.

use nix::sys::socket::{AddressFamily, SockType};
use serde::{Deserialize, Serialize};

/// The interface that sockets are bound to: the only one that every network namespace has, with index 1.
pub(crate) const DEVICE: &str = "lo";
/// Its index.
pub(crate) const IFINDEX: i32 = 1;

/// The kind of the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Udp4,
    Tcp4,
    Udp6,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Udp4, Self::Tcp4, Self::Udp6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udp4 => "UDP, IPv4",
            Self::Tcp4 => "TCP, IPv4",
            Self::Udp6 => "UDP, IPv6",
        }
    }

    pub(crate) fn family(self) -> AddressFamily {
        match self {
            Self::Udp4 | Self::Tcp4 => AddressFamily::Inet,
            Self::Udp6 => AddressFamily::Inet6,
        }
    }

    pub(crate) fn socket_type(self) -> SockType {
        match self {
            Self::Udp4 | Self::Udp6 => SockType::Datagram,
            Self::Tcp4 => SockType::Stream,
        }
    }
}

/// The way in which sockets of a cgroup are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// Nothing.
    Unsteered,
    /// Unsteered, in another cgroup: shows how far the ratio of equal variants is from 1.
    Control,
    /// The program itself binds each socket.
    Setsockopt,
    /// A preloaded library (`LD_PRELOAD`) binds each socket.
    Preload,
    /// `steer attach`.
    Steered,
    /// `steer attach` on the cgroup and on its parent.
    Nested,
    /// `steer attach --local host`: a mark, not a bound device.
    Routed,
    /// A BPF program that stores a constant index.
    Constant,
    /// A BPF program that does nothing.
    Empty,
}

impl Variant {
    pub(crate) const ALL: [Self; 9] = [
        Self::Unsteered,
        Self::Control,
        Self::Setsockopt,
        Self::Preload,
        Self::Steered,
        Self::Nested,
        Self::Routed,
        Self::Constant,
        Self::Empty,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unsteered => "unsteered",
            Self::Control => "unsteered again",
            Self::Setsockopt => "setsockopt",
            Self::Preload => "LD_PRELOAD",
            Self::Steered => "steered",
            Self::Nested => "steered, nested",
            Self::Routed => "steered, local",
            Self::Constant => "constant program",
            Self::Empty => "empty program",
        }
    }

    /// The cgroup, below that of the benchmark.
    pub(crate) fn cgroup(self) -> &'static str {
        match self {
            Self::Unsteered => "unsteered",
            Self::Control => "control",
            Self::Setsockopt => "setsockopt",
            Self::Preload => "preload",
            Self::Steered => "steered",
            Self::Nested => "outer/inner",
            Self::Routed => "routed",
            Self::Constant => "constant",
            Self::Empty => "empty",
        }
    }

    /// The environment of the program that makes the sockets.
    pub(crate) fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Preload => &[("LD_PRELOAD", concat!(env!("OUT_DIR"), "/preload.so")), ("BIND_INTERFACE", DEVICE)],
            Self::Unsteered
            | Self::Control
            | Self::Setsockopt
            | Self::Steered
            | Self::Nested
            | Self::Routed
            | Self::Constant
            | Self::Empty => &[],
        }
    }

    /// The interface that a new socket is bound to before its program changes it.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Unsteered | Self::Control | Self::Setsockopt | Self::Routed | Self::Empty => "",
            Self::Preload | Self::Steered | Self::Nested | Self::Constant => DEVICE,
        }
    }

    /// Whether a new socket has a mark.
    pub(crate) fn has_mark(self) -> bool {
        self == Self::Routed
    }
}
