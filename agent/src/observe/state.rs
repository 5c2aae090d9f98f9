//! The state of uplinks, and what it means for the policies in force.
//!
//! **Invariant:** a state that cannot be known is unknown, not well.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    status::Status,
    uplinks::{self, HealthStatus},
};
use crate::{
    host::link::{
        Error,
        network::{FAR_IPV4, FAR_IPV6, Network},
    },
    kernel::PolicyEntry,
    model::uplink::{Family, health},
};

/// The state of an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UplinkState {
    /// There is no such interface: its policies are closed.
    Missing,
    /// It is down.
    Down,
    /// It is up, without carrier.
    NoCarrier,
    /// A group, or a member of one: it does not work, by probes, connections or by hand, and sockets get it because no other works.
    Failing,
    /// It has no default route, in either address family.
    NoRoute,
    /// It is in another network namespace.
    #[default]
    Unknown,
    /// It is up, and has a default route.
    Up,
}

impl UplinkState {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Down => "down",
            Self::NoCarrier => "no carrier",
            Self::Failing => "no member works",
            Self::NoRoute => "no route",
            Self::Unknown => "unknown",
            Self::Up => "up",
        }
    }

    /// Whether no packet leaves by it.
    pub fn is_closed(self) -> bool {
        matches!(self, Self::Missing | Self::Down | Self::NoCarrier)
    }
}

/// A member of a group of uplinks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// Its interface as configured.
    pub interface: String,
    /// The index of the interface; absent while it is missing.
    pub ifindex: Option<i32>,
    /// Whether new sockets get it, in any family.
    pub chosen: bool,
    /// Its health for IPv4, as `steer uplinks` shows it.
    #[serde(default)]
    pub ipv4: Option<HealthStatus>,
    /// Its health for IPv6.
    #[serde(default)]
    pub ipv6: Option<HealthStatus>,
    /// The resolvers that DNS queries by it go to. If empty, queries go to the server that the program asks.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// The state of its link.
    #[serde(default)]
    pub state: UplinkState,
}

/// The members of the group of a policy, without the state of their links.
pub(super) fn members(entry: &PolicyEntry) -> Vec<MemberStatus> {
    let Some(group) = &entry.group else { return Vec::new() };
    let live = group.live[0] | group.live[1];
    let members = entry.uplinks().into_iter().map(|uplink| MemberStatus {
        interface: uplink.interface,
        ifindex: (uplink.line.ifindex > 0).then_some(uplink.line.ifindex),
        chosen: live >> uplink.member & 1 != 0,
        ipv4: Some(uplinks::health_status(group, uplink.member, Family::V4)),
        ipv6: Some(uplinks::health_status(group, uplink.member, Family::V6)),
        dns: uplink.resolvers,
        state: UplinkState::Unknown,
    });
    members.collect()
}

/// Finds the state of each uplink of this network namespace. Needs a tokio runtime.
pub async fn add(status: &mut Status, netns_cookie: u64) -> Result<(), Error> {
    let network = Network::new()?;
    for policy in &mut status.policies {
        if policy.interface.as_ref().is_none_or(String::is_empty) {
            continue;
        }
        let is_here = policy.netns_cookie == Some(netns_cookie);
        for member in &mut policy.members {
            member.state = if is_here { of(&network, member.ifindex).await? } else { UplinkState::Unknown };
            if !member.state.is_closed() && member.is_down() {
                member.state = UplinkState::Failing;
            }
        }
        let own = if policy.members.is_empty() {
            if is_here || policy.ifindex.is_none() { of(&network, policy.ifindex).await? } else { UplinkState::Unknown }
        } else {
            policy
                .members
                .iter()
                .filter(|member| member.chosen)
                .map(|member| member.state)
                .max()
                .unwrap_or(UplinkState::Missing)
        };
        policy.state = Some(own);
    }
    Ok(())
}

async fn of(network: &Network, ifindex: Option<i32>) -> Result<UplinkState, Error> {
    let Some(ifindex) = ifindex else { return Ok(UplinkState::Missing) };
    let Some(link) = Network::link(ifindex.cast_unsigned())? else { return Ok(UplinkState::Missing) };
    if !link.is_up {
        return Ok(UplinkState::Down);
    }
    if !link.has_carrier {
        return Ok(UplinkState::NoCarrier);
    }
    for far in [FAR_IPV4, FAR_IPV6] {
        if !network.route(far, Some(link.index), None).await?.is_empty() {
            return Ok(UplinkState::Up);
        }
    }
    Ok(UplinkState::NoRoute)
}

impl MemberStatus {
    /// Whether it is down in both families.
    fn is_down(&self) -> bool {
        let is_down = |health: &Option<HealthStatus>| {
            health.as_ref().is_some_and(|health| health.state == health::State::Down.to_string())
        };
        is_down(&self.ipv4) && is_down(&self.ipv6)
    }
}
