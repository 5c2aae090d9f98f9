//! Groups of uplinks: makes their records, follows the health of their members, and chooses between them.
//!
//! A change of the choice writes one record. All policies and cgroups that use the group have it from the next socket on. Then the
//! sockets of the members that failed are moved or ended; see [`super::failover`].
//!
//! **Invariant:** the choice comes before the sockets, and a member is noted as one that has sockets until they were moved. So a process
//! that is killed in between leaves the rest to the next one. If no other member works, no socket is touched.

mod automatic;
mod by_hand;
mod following;
mod known;
mod predict;
mod sockets;
mod telling;

use steer_common::{
    UplinkRecord,
    address::address_words,
    record::{INTERFACE_BYTES, NAME_BYTES},
    uplink::{MEMBERS, MemberRecord, balance, uplink_flags},
};

pub use by_hand::{Error as ByHandError, set_by_hand};
pub(super) use by_hand::{carry_out as carry_out_by_hand, check as check_by_hand};
pub use following::{ByHand, Groups, Switch};
pub use known::{Asked, Key, Probed};
pub use predict::{chosen, predict};
pub use sockets::{move_sockets, report};

use super::resolve::{Namespace, index, padded};
use crate::model::{
    fingerprint::fingerprint,
    spec::{AllDown, Balance, OnFail, OnReturn},
    uplink::{
        Family,
        group::{Group, Member},
    },
};

/// The record of a group in a namespace. Nobody has looked at its members yet: it is closed until [`Groups::follow`] has.
pub(super) fn record(group: &Group, namespace: Namespace<'_>) -> UplinkRecord {
    let mut record = UplinkRecord {
        netns_cookie: namespace.cookie,
        members: u32::try_from(if group.auto.is_some() { MEMBERS } else { group.members.len() }).unwrap_or_default(),
        balance: match group.balance {
            Balance::Cgroup => balance::CGROUP,
            Balance::Destination => balance::DESTINATION,
            Balance::Socket => balance::SOCKET,
        },
        name: padded::<NAME_BYTES>(group.name.as_str()),
        flags: flags(group),
        hold: u32::try_from(group.hold.as_secs()).unwrap_or(u32::MAX),
        ..UplinkRecord::EMPTY
    };
    for (slot, member) in group.members.iter().enumerate().take(MEMBERS) {
        record.member[slot] = member_record(member);
        record.dns4[slot] = member.dns.v4.map_or([0; 4], |resolver| address_words(resolver.to_ipv6_mapped()));
        record.dns6[slot] = member.dns.v6.map_or([0; 4], address_words);
    }
    for (slot, member) in group.members.iter().enumerate().take(MEMBERS) {
        record.ifindex[slot] = index(&member.interface, namespace.links);
    }
    record
}

fn member_record(member: &Member) -> MemberRecord {
    MemberRecord {
        interface: padded::<INTERFACE_BYTES>(&member.interface),
        tier: member.tier.into(),
        weight: member.weight.into(),
        metered: member.metered.into(),
    }
}

fn flags(group: &Group) -> u32 {
    let on_return = match group.on_return {
        Some(OnReturn::Keep) => uplink_flags::KEEP_ON_RETURN,
        Some(OnReturn::Linger) => uplink_flags::LINGER_ON_RETURN,
        None => 0,
    };
    let on_fail = if group.on_fail == OnFail::Keep { uplink_flags::KEEP_ON_FAIL } else { 0 };
    let all_down = if group.all_down == AllDown::Close { uplink_flags::CLOSE_IF_ALL_DOWN } else { 0 };
    let probed = if group.probe.is_some() { uplink_flags::PROBED } else { 0 };
    let auto = if group.auto.is_some() { uplink_flags::AUTO } else { 0 };
    on_return | on_fail | all_down | probed | auto
}

/// A family of the kernel's records.
pub fn family(family: steer_common::uplink::Family) -> Family {
    match family {
        steer_common::uplink::Family::V4 => Family::V4,
        steer_common::uplink::Family::V6 => Family::V6,
    }
}

/// What tells a member from others in the choice. It never changes.
fn key(interface: &str) -> u64 {
    fingerprint(interface.as_bytes())
}
