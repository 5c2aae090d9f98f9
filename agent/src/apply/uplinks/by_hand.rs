//! An administrator takes a member out of use, or back.

use super::{ByHand, Groups, move_sockets};
use crate::{
    apply::{
        failover::Moved,
        resolve::Namespace,
        routes::{self, Written},
    },
    host::cgroup::Hierarchy,
    kernel::{self, Datapath, Lock, Pins, text},
};
use thiserror::Error;

/// Why a decision of an administrator was not carried out.
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
    check(&datapath, namespace, by_hand)?;
    // First: the daemon, which waits for the lock, then finishes what a killed process leaves.
    pins.notify_daemon(&lock)?;
    let (groups, written) = (&mut Groups::default(), &mut Written::default());
    Ok(carry_out(groups, &mut datapath, &lock, hierarchy, namespace, written, by_hand)?)
}

/// Whether the group has this member.
pub(in crate::apply) fn check(
    datapath: &Datapath,
    namespace: Namespace<'_>,
    by_hand: &ByHand<'_>,
) -> Result<(), Error> {
    let groups = datapath.groups()?;
    // A changed group may be in force beside the earlier one of its name.
    let named: Vec<_> = groups
        .values()
        .filter(|group| group.netns_cookie == namespace.cookie && text(&group.name) == by_hand.group)
        .collect();
    if named.is_empty() {
        return Err(Error::NoGroup(by_hand.group.to_owned()));
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
    Ok(())
}

/// Does it, with the groups that this process knows.
pub(in crate::apply) fn carry_out(
    groups: &mut Groups,
    datapath: &mut Datapath,
    lock: &Lock,
    hierarchy: &Hierarchy,
    namespace: Namespace<'_>,
    written: &mut Written,
    by_hand: &ByHand<'_>,
) -> Result<Vec<Moved>, kernel::Error> {
    let switches = groups.follow_by_hand(datapath, lock, namespace, written, Some(by_hand))?;
    routes::follow(datapath, lock, namespace, written)?;
    move_sockets(lock, datapath, hierarchy, &switches)
}
