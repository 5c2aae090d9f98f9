//! An administrator takes a member out of use, or back.

use super::{ByHand, Groups, move_sockets};
use crate::{
    apply::{
        failover::Moved,
        resolve::Namespace,
        routes::{self, Written},
    },
    host::cgroup::Hierarchy,
    kernel::{self, Datapath, Pins, text},
};
use thiserror::Error;

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// No policy in force has this group here.
    #[error("no policy in force here uses an uplink {0:?}; `steer uplinks` lists those that are used")]
    NoGroup(String),
    /// The group has no such member.
    #[error("{member} is no member of uplink {group}; its members are {members}")]
    NoMember {
        /// The name of the group.
        group: String,
        /// What was asked for.
        member: String,
        /// Its members.
        members: String,
    },
    /// A kernel object failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// Notes a decision about a member, chooses again, and moves sockets, in the network namespace of the calling thread. It needs no daemon;
/// one that runs is notified.
pub fn set_by_hand(
    pins: &Pins,
    hierarchy: &Hierarchy,
    namespace: Namespace<'_>,
    by_hand: &ByHand<'_>,
) -> Result<Vec<Moved>, Error> {
    let missing = || Error::NoGroup(by_hand.group.to_owned());
    let lock = pins.lock()?.ok_or_else(missing)?;
    let mut datapath = Datapath::open(pins)?.ok_or_else(missing)?;
    let groups = datapath.groups()?;
    // A changed group may be in force beside the earlier one of its name.
    let named: Vec<_> = groups
        .values()
        .filter(|group| group.netns_cookie == namespace.cookie && text(&group.name) == by_hand.group)
        .collect();
    if named.is_empty() {
        return Err(missing());
    }
    let members = named.iter().flat_map(|group| kernel::members(group)).map(|(_, member)| text(&member.interface));
    let members: Vec<String> = members.collect();
    if !members.iter().any(|member| member == by_hand.member) {
        return Err(Error::NoMember {
            group: by_hand.group.to_owned(),
            member: by_hand.member.to_owned(),
            members: members.join(", "),
        });
    }
    // First: the daemon, which waits for the lock, then finishes what a killed process leaves.
    pins.notify_daemon(&lock)?;
    let switches =
        Groups::default().follow_by_hand(&mut datapath, &lock, namespace, &mut Written::default(), Some(by_hand))?;
    routes::follow(&mut datapath, &lock, namespace, &mut Written::default())?;
    Ok(move_sockets(&lock, &mut datapath, hierarchy, &switches)?)
}
