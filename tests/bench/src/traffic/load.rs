//! The load of one turn.
//!
//! **Invariant:** it is the same for every way.

use serde::{Deserialize, Serialize};
use steer_lab::Family;

/// Payload of a datagram.
pub(super) const DATAGRAM_BYTES: usize = 64;
/// Datagrams sent before the receiver takes them.
pub(super) const BURST: u32 = 100;
/// Bursts in one turn.
pub(super) const BURSTS: u32 = 5;
/// Bytes of a stream in one turn.
pub(super) const STREAM_BYTES: u32 = 8 << 20;
/// Connections in one turn; the listener's queue holds them all.
pub(super) const CONNECTIONS: u32 = 50;

/// Headers of the shortest packet.
const HEADER_BYTES: u32 = 28;

/// The kind of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Datagrams by a connected UDP socket.
    Connected,
    /// Datagrams by an unconnected UDP socket, each with its destination.
    Unconnected,
    /// A TCP stream at its maximum rate.
    Stream,
    /// TCP connections, made and closed.
    Connections,
}

/// The load and its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) kind: Kind,
    pub(super) family: Family,
}

impl Load {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let kinds = [Kind::Connected, Kind::Unconnected, Kind::Stream, Kind::Connections];
        kinds.into_iter().flat_map(|kind| [Family::V4, Family::V6].map(|family| Self { kind, family }))
    }

    pub(super) fn name(self) -> String {
        let kind = match self.kind {
            Kind::Connected => "UDP, send",
            Kind::Unconnected => "UDP, sendto",
            Kind::Stream => "TCP, bulk",
            Kind::Connections => "TCP, connect",
        };
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        format!("{kind}, {family}")
    }

    /// The unit that is counted per second.
    pub(super) fn unit(self) -> &'static str {
        match self.kind {
            Kind::Connected | Kind::Unconnected => "packets",
            Kind::Stream => "bits",
            Kind::Connections => "connections",
        }
    }

    /// The number of these units in one turn.
    pub(super) fn units(self) -> u32 {
        match self.kind {
            Kind::Connected | Kind::Unconnected => BURST * BURSTS,
            Kind::Stream => STREAM_BYTES * u8::BITS,
            Kind::Connections => CONNECTIONS,
        }
    }

    /// The minimum number of bytes that the uplink sends in one turn.
    pub(super) fn least_bytes(self) -> u64 {
        let bytes = match self.kind {
            Kind::Connected | Kind::Unconnected => self.units() * HEADER_BYTES,
            Kind::Stream => STREAM_BYTES,
            // SYN, ACK and FIN.
            Kind::Connections => CONNECTIONS * 3 * HEADER_BYTES,
        };
        bytes.into()
    }
}
