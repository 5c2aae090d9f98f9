//! The first line of `steer status`: how many policies are in force, and what is wrong.
//!
//! **Invariant:** whatever keeps a policy from steering new sockets as the files say is named in it.

use std::collections::BTreeSet;

use super::{
    state::{MemberStatus, UplinkState},
    status::{Origin, PolicyStatus, Status},
    uplinks::HealthStatus,
};
use crate::model::{
    config::UNCLASSIFIED,
    spec::{Enforce, Near},
    uplink::health::{Reason, State},
};

/// How bad it is that a policy is not attached completely, or that some of its processes get out by other links.
const INCOMPLETE: u8 = 5;
/// How bad it is that its uplink cannot be used, or that it is not in the configuration any more.
const CLOSED: u8 = 4;
/// How bad it is that no member of its group works.
const FAILING: u8 = 3;
/// How bad it is that its uplink has no default route.
const NO_ROUTE: u8 = 2;
/// How bad it is that nothing is known.
const UNKNOWN: u8 = 1;

impl PolicyStatus {
    /// How bad it is: the greater, the worse.
    pub fn severity(&self) -> u8 {
        let is_incomplete = self.cgroups.iter().any(|cgroup| !cgroup.complete && cgroup.path.is_some());
        let leaves = self.cgroups.iter().flat_map(|cgroup| &cgroup.elsewhere).any(|elsewhere| elsewhere.leaves);
        match self.state {
            _ if is_incomplete || leaves || self.stale.is_some() => INCOMPLETE,
            _ if self.is_retired() => CLOSED,
            Some(state) if state.is_closed() => CLOSED,
            Some(UplinkState::Failing) => FAILING,
            Some(UplinkState::NoRoute) => NO_ROUTE,
            Some(UplinkState::Unknown) => UNKNOWN,
            _ => 0,
        }
    }

    /// Whether it has no uplink, by intention or because the configuration has lost it. No link has an empty name.
    fn has_no_uplink(&self) -> bool {
        self.interface.as_ref().is_some_and(String::is_empty)
    }

    /// Whether the configuration has lost it, and cgroups are still attached to it.
    fn is_retired(&self) -> bool {
        let is_used = self.cgroups.iter().any(|cgroup| cgroup.path.is_some());
        self.has_no_uplink() && self.name != UNCLASSIFIED && is_used
    }

    /// Whether it only reports what `strict` stops.
    fn observes(&self) -> bool {
        self.enforce == Enforce::Observe && self.interface.is_some() && !self.has_no_uplink()
    }

    /// Why no packet of it leaves.
    fn why_closed(&self) -> Option<String> {
        if self.is_retired() {
            return Some(format!("{} is not in the configuration any more", self.name));
        }
        let state = self.state.filter(|state| state.is_closed())?;
        if let Some(group) = self.uplink.as_ref().filter(|_| self.members.is_empty()) {
            return Some(format!("{group} has no member (`steer doctor` says why)"));
        }
        Some(link(self.interface.as_deref().unwrap_or_default(), state))
    }

    /// Which members of its group are not used, although the group works.
    fn failover(&self) -> Option<String> {
        let out: Vec<_> = self.members.iter().filter_map(MemberStatus::why_out).collect();
        let used: Vec<_> =
            self.members.iter().filter(|member| member.chosen).map(|member| &*member.interface).collect();
        if out.is_empty() || used.is_empty() {
            return None;
        }
        let verb = if used.len() == 1 { "is" } else { "are" };
        let group = self.uplink.as_ref().or(self.interface.as_ref())?;
        Some(format!("{group}: {}, {} {verb} used", out.join(", "), used.join(" and ")))
    }
}

/// A link that cannot be used.
fn link(name: &str, state: UplinkState) -> String {
    let verb = if state == UplinkState::NoCarrier { "has" } else { "is" };
    format!("{name} {verb} {}", state.text())
}

impl MemberStatus {
    /// Why sockets do not get it, in all families or in one. A host without IPv6 is no fault of a member.
    fn why_out(&self) -> Option<String> {
        let name = &self.interface;
        if self.state.is_closed() {
            return Some(link(name, self.state));
        }
        let is = |health: &Option<HealthStatus>, state: State| {
            health.as_ref().is_some_and(|health| health.state == state.to_string() && health.share == 0.0)
        };
        let families = [("IPv4", &self.ipv4), ("IPv6", &self.ipv6)];
        let out = families.map(|(_, health)| is(health, State::Down) || is(health, State::Held));
        if out == [true, true] {
            return Some(if families.iter().any(|(_, health)| is(health, State::Held)) {
                format!("{name} works again, but not long enough yet")
            } else {
                format!("{name} is down")
            });
        }
        let is_no_fault = |health: &HealthStatus| {
            [Reason::NoAddress, Reason::NoRoute].iter().any(|reason| health.reason == reason.to_string())
        };
        let (family, _) = families.into_iter().zip(out).find_map(|((family, health), is_out)| {
            let health = health.as_ref().filter(|health| is_out && !is_no_fault(health))?;
            Some((family, health))
        })?;
        Some(format!("{name} is down for {family}"))
    }
}

impl Status {
    /// One line: what is in force and what is wrong, without the full stop.
    pub(super) fn verdict_line(&self) -> String {
        let mut parts = self.of_policies();
        if parts.is_empty() {
            parts.push("nothing is steered".to_owned());
        }
        if let Some(wrong) = &self.configuration {
            parts.push(wrong.lines().next().unwrap_or_default().to_owned());
        }
        if self.silent.is_some() {
            parts.push("the daemon does not answer".to_owned());
        }
        let is_configured = |policy: &PolicyStatus| policy.origin == Origin::Config;
        if !self.daemon && (self.policies.iter().any(is_configured) || self.unsteered.iter().any(|it| !it.released)) {
            parts.push("no daemon runs, so new cgroups and changed interfaces are not followed".to_owned());
        }
        parts.join("; ")
    }

    fn of_policies(&self) -> Vec<String> {
        // One that is retired has no effect where no cgroup has it.
        let is_shown =
            |policy: &&PolicyStatus| !policy.has_no_uplink() || policy.is_retired() || policy.name == UNCLASSIFIED;
        let policies: Vec<_> = self.policies.iter().filter(is_shown).collect();
        let with = |severity: u8| policies.iter().filter(move |policy| policy.severity() == severity);
        let of = |number: usize, one: &str, many: &str| match number {
            1 => format!("1 policy {one}"),
            _ => format!("{number} policies {many}"),
        };
        let mut parts = Vec::new();
        let (released, unsteered): (Vec<_>, Vec<_>) = self.unsteered.iter().partition(|unsteered| unsteered.released);
        for (cgroups, since) in [(unsteered, ""), (released, " since `steer off`")] {
            match cgroups.len() {
                0 => {}
                1 => parts.push(format!("1 cgroup is not steered{since}")),
                several => parts.push(format!("{several} cgroups are not steered{since}")),
            }
        }
        let incomplete = with(INCOMPLETE).count();
        if incomplete > 0 {
            parts.push(of(incomplete, "is not completely in force", "are not completely in force"));
        }
        let (observing, plain): (Vec<_>, Vec<_>) =
            policies.iter().filter(|policy| policy.severity() <= UNKNOWN).partition(|policy| policy.observes());
        if !plain.is_empty() {
            parts.push(of(plain.len(), "in force", "in force"));
        }
        if !observing.is_empty() {
            let refuses = observing.iter().any(|policy: &&&PolicyStatus| !policy.local.contains(&Near::Host));
            let stops = if refuses { "only calls to this host are refused" } else { "nothing is stopped" };
            parts.push(format!("{} ({stops})", of(observing.len(), "observes", "observe")));
        }
        let working = policies.iter().filter(|policy| policy.severity() <= UNKNOWN);
        parts.extend(working.filter_map(|policy| policy.failover()).collect::<BTreeSet<_>>());
        let failing: BTreeSet<_> =
            with(FAILING).map(|policy| policy.interface.as_deref().unwrap_or_default()).collect();
        if !failing.is_empty() {
            let groups = failing.into_iter().collect::<Vec<_>>().join(", ");
            parts.push(format!("{} no member that works: {groups}", of(with(FAILING).count(), "has", "have")));
        }
        let without_route: BTreeSet<_> =
            with(NO_ROUTE).map(|policy| policy.interface.as_deref().unwrap_or_default()).collect();
        if !without_route.is_empty() {
            let links = without_route.into_iter().collect::<Vec<_>>().join(", ");
            parts.push(format!("{} no default route: {links}", of(with(NO_ROUTE).count(), "has", "have")));
        }
        let closed: BTreeSet<_> = with(CLOSED).filter_map(|policy| policy.why_closed()).collect();
        if !closed.is_empty() {
            let why = closed.into_iter().collect::<Vec<_>>().join(", ");
            parts.push(format!("{}: {why}", of(with(CLOSED).count(), "is closed", "are closed")));
        }
        match self.other_versions.len() {
            0 => {}
            1 => parts.push("1 cgroup is steered by another version of steer".to_owned()),
            several => parts.push(format!("{several} cgroups are steered by another version of steer")),
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Enforce, Near, UplinkState};
    use crate::observe::status::{CgroupStatus, PolicyStatus, Status};

    fn policy(name: &str, state: UplinkState) -> PolicyStatus {
        let mut policy: PolicyStatus = serde_json::from_value(json!({
            "slot": 1, "name": name, "origin": "config", "interface": name, "ifindex": 1, "netns_cookie": 1, "cgroups": [], "dns": [],
            "existing": "keep", "enforce": "strict", "counters": {},
        }))
        .expect("a policy");
        policy.state = Some(state);
        policy
    }

    fn verdict(policies: Vec<PolicyStatus>) -> String {
        Status { daemon: true, policies, ..Status::default() }.verdict_line()
    }

    #[test]
    fn the_policies() {
        let of =
            |states: &[(&str, UplinkState)]| verdict(states.iter().map(|(name, state)| policy(name, *state)).collect());
        let (up, down) = (UplinkState::Up, UplinkState::Down);
        assert_eq!(of(&[]), "nothing is steered");
        assert_eq!(of(&[("a", up), ("b", up), ("wg0", down)]), "2 policies in force; 1 policy is closed: wg0 is down");
        assert_eq!(of(&[("a", up)]), "1 policy in force");
        assert_eq!(of(&[("a", UplinkState::NoCarrier)]), "1 policy is closed: a has no carrier");
        assert_eq!(
            of(&[("a", up), ("b", UplinkState::NoRoute)]),
            "1 policy in force; 1 policy has no default route: b"
        );
        assert_eq!(of(&[("a", UplinkState::Unknown)]), "1 policy in force");
        let failing = "1 policy in force; 1 policy has no member that works: b";
        assert_eq!(of(&[("a", up), ("b", UplinkState::Failing)]), failing);
        let observing = |plain: &[&str], local: &[Near]| {
            let observer = PolicyStatus { enforce: Enforce::Observe, local: local.to_vec(), ..policy("b", up) };
            verdict(plain.iter().map(|name| policy(name, up)).chain([observer]).collect())
        };
        assert_eq!(observing(&[], &[]), "1 policy observes (only calls to this host are refused)");
        assert_eq!(observing(&["a"], &[Near::Host]), "1 policy in force; 1 policy observes (nothing is stopped)");
        let cgroup: CgroupStatus =
            serde_json::from_value(json!({"path": "/a", "id": 1, "complete": true, "programs": [], "manual": true}))
                .expect("a cgroup");
        let retired =
            PolicyStatus { interface: Some(String::new()), state: None, cgroups: vec![cgroup], ..policy("old", up) };
        assert_eq!(
            verdict(vec![policy("a", up), retired]),
            "1 policy in force; 1 policy is closed: old is not in the configuration any more"
        );
    }

    #[test]
    fn the_files_and_the_daemon() {
        let policies = || vec![policy("a", UplinkState::Up)];
        let configuration = Some("the configuration has mistakes\nf.toml:1:1: wrong".to_owned());
        let status = Status { daemon: true, policies: policies(), configuration, ..Status::default() };
        assert_eq!(status.verdict_line(), "1 policy in force; the configuration has mistakes");
        let alone = Status { policies: policies(), ..Status::default() }.verdict_line();
        assert_eq!(alone, "1 policy in force; no daemon runs, so new cgroups and changed interfaces are not followed");
    }

    #[test]
    fn a_failover() {
        let health = |state: &str, reason: &str, share: f64| json!({"state": state, "reason": reason, "since_s": 1, "share": share});
        let member = |name: &str, v4: serde_json::Value, v6: serde_json::Value, chosen: bool| json!({"interface": name, "ifindex": 1, "chosen": chosen, "ipv4": v4, "ipv6": v6, "state": "up"});
        let (no_v6, works) = (|| health("down", "no address of this family", 0.0), || health("up", "it works", 100.0));
        let other = || member("b0", works(), no_v6(), true);
        let of = |first: serde_json::Value| {
            let members = serde_json::from_value(json!([first, other()])).expect("members");
            let group = Some("internet".to_owned());
            verdict(vec![PolicyStatus {
                members,
                uplink: group.clone(),
                interface: group,
                ..policy("a", UplinkState::Up)
            }])
        };
        let after = |first: &str| format!("1 policy in force; internet: {first}, b0 is used");
        let failed = health("down", "probes are not answered", 0.0);
        assert_eq!(of(member("a0", failed.clone(), no_v6(), false)), after("a0 is down"));
        let held = health("held", "it works again, but not long enough yet", 0.0);
        assert_eq!(of(member("a0", held, no_v6(), false)), after("a0 works again, but not long enough yet"));
        let mut missing = member("a0", no_v6(), no_v6(), false);
        missing["state"] = json!("missing");
        assert_eq!(of(missing), after("a0 is missing"));
        assert_eq!(of(member("a0", health("up", "it works", 0.0), no_v6(), false)), "1 policy in force");
        let text = of(member("a0", failed, works(), true));
        assert_eq!(text, "1 policy in force; internet: a0 is down for IPv4, a0 and b0 are used");
    }
}
