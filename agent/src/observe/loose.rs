//! Which sockets are not bound to their uplink, and to what else. Pure.

use steer_common::CLOSED_IFINDEX;

use crate::{
    host::{
        link::Table,
        sockets::{Host, diag::Socket},
    },
    kernel::PolicyEntry,
};

/// What the sockets that a policy holds are compared with.
#[derive(Clone, Copy)]
pub(crate) struct Uplink<'a> {
    pub(crate) policy: &'a PolicyEntry,
    pub(crate) table: &'a Table,
    pub(crate) host: &'a Host,
}

impl Uplink<'_> {
    /// Not bound to where the uplink is, or was when the policy was last told.
    pub(crate) fn is_loose(&self, socket: &Socket) -> bool {
        let uplink = self.table.resolve(&self.policy.interface());
        let bound = socket.bound();
        if self.host.is_all_of(socket) || Some(bound) == uplink || bound == self.policy.record.ifindex {
            return false;
        }
        // While there is no uplink, one that was bound to it is as it should be.
        bound == 0 || uplink.is_some() || self.table.name(bound).is_some()
    }

    /// A socket, and what it is bound to.
    pub(crate) fn describe(&self, socket: &Socket) -> String {
        let bound = match (socket.bound(), self.table.name(socket.bound())) {
            (0, _) => "not bound".to_owned(),
            (CLOSED_IFINDEX, _) => "made while there was no uplink, and closed".to_owned(),
            (_, Some(name)) => format!("bound to {name}"),
            (index, None) => format!("bound to index {index}, which no interface has"),
        };
        format!("{socket} ({bound})")
    }
}
