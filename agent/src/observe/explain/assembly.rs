//! Assembles the explanation. Pure.

use std::net::IpAddr;

use steer_common::{Kind, policy_flags};

use super::{
    chain::{Attached, Deciding},
    conclusion,
    document::{Decision, Explanation, Hop, LinkState, Outcome, Resolver, Route, Subject, Uplink},
    look::{Facts, Surroundings},
    reasons,
};
use crate::{
    host::link::{
        Table,
        network::{self, Link},
    },
    kernel::PolicyEntry,
};

pub(super) fn assemble(facts: &Facts, deciding: Deciding<'_>, network: &Surroundings) -> Explanation {
    let attached = match deciding {
        Deciding::Attachment(_, attached) => Some(attached),
        Deciding::OtherVersion(_) | Deciding::Nobody => None,
    };
    let uplink = attached.and_then(|attached| uplink(facts, attached, network.link.as_ref()));
    let reasons = reasons::reasons(facts, deciding);
    let (outcome, conclusion) = conclusion::conclude(facts, deciding, uplink.as_ref(), &reasons);
    let is_steered = matches!(outcome, Outcome::Bound | Outcome::Closed);
    Explanation {
        target: Subject { process: facts.process.clone(), cgroup: facts.cgroup.clone(), netns: facts.netns.clone() },
        daemon: facts.daemon,
        configuration: facts.configuration.clone(),
        chain: facts.levels.iter().map(|level| level.document(&facts.policies, deciding)).collect(),
        reasons,
        decision: decision(facts, deciding),
        uplink,
        routes: network.routes.iter().map(|routes| route(routes, &facts.table)).collect(),
        resolver: attached.filter(|_| is_steered).map(|attached| resolver(facts, attached)),
        sockets: network.sockets.clone(),
        elsewhere: facts.elsewhere.clone(),
        outcome,
        conclusion,
    }
}

fn decision(facts: &Facts, deciding: Deciding<'_>) -> Option<Decision> {
    let Deciding::Attachment(level, attached) = deciding else { return None };
    Some(Decision {
        cgroup: level.path.clone(),
        attached: attached.document(),
        not_covered: not_covered(facts, attached),
    })
}

/// Traffic that a policy does not stop.
fn not_covered(facts: &Facts, attached: &Attached) -> Vec<String> {
    let Some(policy) = attached.policy.as_ref().filter(|policy| !policy.exempts()) else { return Vec::new() };
    let flags = policy.record.flags;
    let mut not_covered = Vec::new();
    if flags & policy_flags::GUARD == 0 {
        not_covered.push(
            "programs that unbind a socket, and older sockets: their packets are not stopped (enforce = \"strict\" does)"
                .to_owned(),
        );
    } else {
        not_covered.extend(facts.unguarded.clone());
    }
    let missing = &attached.difference.missing;
    if !missing.is_empty() {
        not_covered.push(format!("traffic that the missing programs would stop or restore: {}", missing.join(", ")));
    }
    not_covered
}

/// The uplink, if its index is valid in the target's network namespace.
fn uplink(facts: &Facts, attached: &Attached, link: Option<&Link>) -> Option<Uplink> {
    let policy = attached.policy.as_ref()?;
    let record = &policy.record;
    if record.kind != Kind::Steer as u32 || record.netns_cookie != facts.netns.cookie {
        return None;
    }
    let interface = policy.interface();
    Some(Uplink {
        ifindex: Some(record.ifindex).filter(|ifindex| *ifindex > 0),
        present_ifindex: facts.table.resolve(&interface),
        link: link.map(|link| link.name.clone()),
        state: match link {
            None => LinkState::Missing,
            Some(link) if !link.is_up => LinkState::Down,
            Some(link) if !link.has_carrier => LinkState::NoCarrier,
            Some(_) => LinkState::Up,
        },
        interface,
    })
}

fn route(routes: &super::look::Routes, table: &Table) -> Route {
    let hops = |hops: &[network::Hop]| hops.iter().map(|hop| named(hop, table)).collect::<Vec<_>>();
    Route {
        destination: routes.destination,
        steered: routes.steered.as_deref().map(hops),
        unsteered: hops(&routes.unsteered),
    }
}

fn named(hop: &network::Hop, table: &Table) -> Hop {
    let name = i32::try_from(hop.ifindex).ok().and_then(|ifindex| table.name(ifindex));
    Hop { interface: name.unwrap_or_default().to_owned(), ifindex: hop.ifindex, gateway: hop.gateway }
}

fn resolver(facts: &Facts, attached: &Attached) -> Resolver {
    let dns: Vec<IpAddr> = attached.policy.as_ref().map(PolicyEntry::resolvers).unwrap_or_default();
    let mut warnings: Vec<_> =
        facts.detours.iter().filter(|detour| detour.concerns(&dns)).map(ToString::to_string).collect();
    if facts.sees_other_files {
        warnings.push(
            "the process is in another mount namespace, where /etc/resolv.conf and /etc/nsswitch.conf may differ"
                .to_owned(),
        );
    }
    Resolver { dns, warnings }
}
