//! Attempts, by the ports that tell them apart, and the packets that belong to them.

use std::collections::BTreeMap;

use steer_lab::{
    Direction, Kind, Packet,
    prober::{DNS_PORT, PORTS, Sent, Way},
};

use super::WARM_UP_PORT;
use crate::model::reference::{Asked, Space};

/// Ports below are not used.
const FIRST: u16 = 10_000;
const LAST: u16 = 60_000;
/// Callers have those above.
const FIRST_CALLER: u16 = 61_000;

/// Which attempt a packet belongs to: its kind of packet, and the port that only it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tag {
    To(u16),
    /// A question for a name, from this port, with this many bytes.
    From(Space, u16, usize),
}

/// The attempts that were made, by their tags.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
    /// That of the next caller, whose connection outlives many attempts.
    next_caller: u16,
    /// Somebody listens there.
    except: u16,
    made: BTreeMap<Tag, (Asked, Sent)>,
}

impl Ports {
    pub(super) fn except(port: u16) -> Self {
        Self { next: FIRST, next_caller: FIRST_CALLER, except: port, made: BTreeMap::new() }
    }

    /// Ports for one process.
    pub(super) fn take(&mut self) -> u16 {
        if (self.next..self.next + PORTS).contains(&self.except) {
            self.next = self.except + 1;
        }
        if self.next > LAST {
            self.next = FIRST;
        }
        self.next += PORTS;
        self.next - PORTS
    }

    /// A port for a caller, which no attempt has later.
    pub(super) fn take_caller(&mut self) -> u16 {
        self.next_caller += if self.next_caller + 1 == self.except { 2 } else { 1 };
        self.next_caller
    }

    /// Remembers an attempt, also for packets that come late.
    pub(super) fn made(&mut self, asked: Asked, sent: Sent) -> Tag {
        let tag = if sent.port == DNS_PORT {
            Tag::From(asked.space, sent.source, sent.length.into())
        } else {
            Tag::To(sent.port)
        };
        self.made.insert(tag, (asked, sent));
        tag
    }

    pub(super) fn attempt(&self, tag: Tag) -> Option<&(Asked, Sent)> {
        self.made.get(&tag)
    }
}

/// The tag of a packet that a process sent; none for what the kernel sends by itself.
pub(super) fn tag(packet: &Packet, space: Space) -> Option<Tag> {
    let sent = packet.direction == Direction::Out
        && !packet.is_kernel_answer()
        && !packet.is_kernel_noise()
        && matches!(packet.kind, Kind::Tcp | Kind::Udp);
    let (to, source) = packet.dst_port.zip(packet.src_port).filter(|(to, _)| sent && *to != WARM_UP_PORT)?;
    Some(if to == DNS_PORT { Tag::From(space, source, packet.payload_len) } else { Tag::To(to) })
}

/// The way of an attempt that is a question for a name.
pub(super) fn asks_name(sent: &Sent) -> bool {
    matches!(sent.way, Way::Dns | Way::DnsNear | Way::DnsHost)
}
