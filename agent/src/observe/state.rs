//! The state of uplinks, and what it means for the policies in force.
//!
//! **Invariant:** a state that cannot be known is unknown, not well.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    status::{PolicyStatus, Status},
    uplinks::{self, HealthStatus},
};
use crate::{
    host::link::{
        Error,
        network::{FAR_IPV4, FAR_IPV6, Network},
    },
    kernel::PolicyEntry,
    model::{
        spec::Enforce,
        uplink::{Family, health},
    },
};

/// How bad it is that a policy is not attached completely, or that some of its processes get out by other links.
const INCOMPLETE: u8 = 5;
/// How bad it is that its uplink cannot be used.
const CLOSED: u8 = 4;
/// How bad it is that no member of its group works.
const FAILING: u8 = 3;
/// How bad it is that its uplink has no default route.
const NO_ROUTE: u8 = 2;
/// How bad it is that nothing is known.
const UNKNOWN: u8 = 1;

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

impl PolicyStatus {
    /// How bad it is: the greater, the worse.
    pub fn severity(&self) -> u8 {
        let is_incomplete = self.cgroups.iter().any(|cgroup| !cgroup.complete && cgroup.path.is_some());
        let leaves = self.cgroups.iter().flat_map(|cgroup| &cgroup.elsewhere).any(|elsewhere| elsewhere.leaves);
        match self.state {
            _ if is_incomplete || leaves || self.stale.is_some() => INCOMPLETE,
            Some(state) if state.is_closed() => CLOSED,
            Some(UplinkState::Failing) => FAILING,
            Some(UplinkState::NoRoute) => NO_ROUTE,
            Some(UplinkState::Unknown) => UNKNOWN,
            _ => 0,
        }
    }

    /// Whether it stops nothing of what `strict` stops, and reports it.
    fn observes(&self) -> bool {
        self.enforce == Enforce::Observe && self.interface.as_ref().is_some_and(|name| !name.is_empty())
    }

    /// Why no packet of it leaves.
    fn why_closed(&self) -> Option<String> {
        let state = self.state.filter(|state| state.is_closed())?;
        if let Some(group) = self.uplink.as_ref().filter(|_| self.members.is_empty()) {
            return Some(format!("{group} has no member (`steer doctor` says why)"));
        }
        let verb = if state == UplinkState::NoCarrier { "has" } else { "is" };
        Some(format!("{} {verb} {}", self.interface.as_deref().unwrap_or_default(), state.text()))
    }
}

impl Status {
    /// One line: what holds and what does not, without the full stop.
    pub(super) fn verdict_line(&self) -> String {
        if self.policies.is_empty() && self.other_versions.is_empty() && self.unsteered.is_empty() {
            return "nothing is steered".to_owned();
        }
        let steers = |policy: &&PolicyStatus| policy.interface.as_ref().is_some_and(|name| !name.is_empty());
        let policies: Vec<_> = self.policies.iter().filter(steers).collect();
        let with = |severity: u8| policies.iter().filter(move |policy| policy.severity() == severity);
        let closed: Vec<_> = with(CLOSED).filter_map(|policy| policy.why_closed()).collect();
        let (incomplete, without_route) = (with(INCOMPLETE).count(), with(NO_ROUTE).count());
        let failing = with(FAILING).count();
        let observing = policies.iter().filter(|policy| policy.observes() && policy.severity() <= UNKNOWN).count();
        let hold = policies.len() - closed.len() - incomplete - failing - without_route - observing;
        let count = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
        let mut parts = Vec::new();
        if !self.unsteered.is_empty() {
            parts.push(count(self.unsteered.len(), "cgroup is not steered", "cgroups are not steered"));
        }
        if incomplete > 0 {
            parts.push(count(incomplete, "policy does not hold completely", "policies do not hold completely"));
        }
        if hold > 0 || parts.is_empty() && closed.is_empty() && failing + without_route + observing == 0 {
            parts.push(count(hold, "policy holds", "policies hold"));
        }
        if observing > 0 {
            let (one, many) = if hold > 0 { ("observes", "observe") } else { ("policy observes", "policies observe") };
            parts.push(format!("{} (nothing is stopped)", count(observing, one, many)));
        }
        if failing > 0 {
            parts.push(count(
                failing,
                "has an uplink of which no member works",
                "have uplinks of which no member works",
            ));
        }
        if without_route > 0 {
            parts.push(count(without_route, "has no default route", "have no default route"));
        }
        if !closed.is_empty() {
            let mut why = closed.clone();
            why.sort();
            why.dedup();
            parts.push(format!("{}: {}", count(closed.len(), "is closed", "are closed"), why.join(", ")));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::{Enforce, UplinkState};
    use crate::observe::status::{PolicyStatus, Status};

    fn policy(name: &str, state: UplinkState) -> PolicyStatus {
        let mut policy: PolicyStatus = serde_json::from_value(serde_json::json!({
            "slot": 1, "name": name, "origin": "config", "interface": name, "ifindex": 1, "netns_cookie": 1, "cgroups": [], "dns": [],
            "existing": "keep", "enforce": "strict", "counters": {},
        }))
        .expect("a policy");
        policy.state = Some(state);
        policy
    }

    #[test]
    fn the_verdict() {
        let of = |states: &[(&str, UplinkState)]| {
            let policies = states.iter().map(|(name, state)| policy(name, *state)).collect();
            Status { policies, ..Status::default() }.verdict_line()
        };
        let (up, down) = (UplinkState::Up, UplinkState::Down);
        assert_eq!(of(&[("a", up), ("b", up), ("wg0", down)]), "2 policies hold; 1 is closed: wg0 is down");
        assert_eq!(of(&[("a", up)]), "1 policy holds");
        assert_eq!(of(&[("a", UplinkState::NoCarrier)]), "1 is closed: a has no carrier");
        assert_eq!(of(&[("a", up), ("b", UplinkState::NoRoute)]), "1 policy holds; 1 has no default route");
        assert_eq!(of(&[("a", UplinkState::Unknown)]), "1 policy holds");
        let observing = |holding: &[&str]| {
            let observer = PolicyStatus { enforce: Enforce::Observe, ..policy("b", up) };
            let policies = holding.iter().map(|name| policy(name, up)).chain([observer]).collect();
            Status { policies, ..Status::default() }.verdict_line()
        };
        assert_eq!(observing(&[]), "1 policy observes (nothing is stopped)");
        assert_eq!(observing(&["a"]), "1 policy holds; 1 observes (nothing is stopped)");
        let failing = "1 policy holds; 1 has an uplink of which no member works";
        assert_eq!(of(&[("a", up), ("b", UplinkState::Failing)]), failing);
    }
}
