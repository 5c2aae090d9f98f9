//! Finds the sockets that are not bound to their uplink. Pure.

use steer_common::CLOSED_IFINDEX;

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
    /// Whether a socket is bound neither to the current index of the uplink nor to the index in the policy.
    pub(crate) fn is_loose(&self, socket: &Socket) -> bool {
        let uplink = self.table.resolve(&self.policy.interface());
        let bound = socket.bound();
        if self.host.is_all_of(socket) || Some(bound) == uplink || bound == self.policy.record.ifindex {
            return false;
        }
        // While the uplink is missing, a socket that was bound to it is correct.
        bound == 0 || uplink.is_some() || self.table.name(bound).is_some()
    }

    /// The socket, and what it is bound to.
    pub(crate) fn describe(&self, socket: &Socket) -> String {
        let bound = match (socket.bound(), self.table.name(socket.bound())) {
            (0, _) => "not bound".to_owned(),
            (CLOSED_IFINDEX, _) => "made while the uplink was missing, and closed".to_owned(),
            (_, Some(name)) => format!("bound to {name}"),
            (index, None) => format!("bound to index {index}, which no interface has"),
        };
        format!("{socket} ({bound})")
    }
}
