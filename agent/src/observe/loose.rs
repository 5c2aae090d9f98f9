//! Finds the sockets that are not held to their uplink: not bound to it, or without the policy's mark. Pure.

use steer_common::{CLOSED_IFINDEX, policy_flags};

use crate::{
    host::{
        link::Table,
        sockets::{Host, diag::Socket},
    },
    kernel::PolicyEntry,
};

/// The policy of a socket, and the state of the host to compare the socket with.
#[derive(Clone, Copy)]
pub(crate) struct Uplink<'a> {
    pub(crate) policy: &'a PolicyEntry,
    pub(crate) table: &'a Table,
    pub(crate) host: &'a Host,
}

impl Uplink<'_> {
    /// Whether the policy does not hold a socket.
    pub(crate) fn is_loose(&self, socket: &Socket) -> bool {
        let bound = socket.bound();
        let uplinks = self.policy.uplinks();
        let present: Vec<i32> = uplinks.iter().filter_map(|uplink| self.table.resolve(&uplink.interface)).collect();
        let is_on_uplink = present.contains(&bound) || uplinks.iter().any(|uplink| uplink.line.ifindex == bound);
        if self.host.is_all_of(socket) {
            return false;
        }
        if self.is_routed() {
            return !self.is_marked(socket) || bound != 0 && !is_on_uplink;
        }
        // While the uplink is missing, a socket that was bound to it is correct.
        !is_on_uplink && (bound == 0 || !present.is_empty() || self.table.name(bound).is_some())
    }

    fn is_routed(&self) -> bool {
        self.policy.record.flags & policy_flags::ROUTE != 0
    }

    /// Whether it has the mark of the policy.
    fn is_marked(&self, socket: &Socket) -> bool {
        self.policy.has_mark(socket.mark)
    }

    /// The socket, and what it is bound to or marked with.
    pub(crate) fn describe(&self, socket: &Socket) -> String {
        let bound = match (socket.bound(), self.table.name(socket.bound())) {
            (0, _) if self.is_routed() => match socket.mark & self.policy.record.mark_mask {
                0 => "not marked".to_owned(),
                mark => format!("marked {mark:#x}"),
            },
            (0, _) => "not bound".to_owned(),
            (CLOSED_IFINDEX, _) => "made while the uplink was missing, and closed".to_owned(),
            (_, Some(name)) => format!("bound to {name}"),
            (index, None) => format!("bound to index {index}, which no interface has"),
        };
        format!("{socket} ({bound})")
    }

    /// What the policy requires of a socket.
    pub(crate) fn required(&self) -> String {
        if self.is_routed() { format!("marked {:#x} for", self.policy.record.mark) } else { "bound to".to_owned() }
    }
}
