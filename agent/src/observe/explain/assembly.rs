//! Assembles the explanation. Pure.

use std::net::IpAddr;

use steer_common::{Kind, policy_flags};

use super::{
    chain::{Attached, Deciding},
    conclusion,
    document::{Decision, Explanation, Hop, LinkState, Outcome, Resolver, Route, Subject, Uplink},
    fate,
    look::{Facts, Surroundings},
    members,
    packet::{Fate, Method},
    reasons,
};
use crate::{
    apply::resolve,
    host::{
        link::{
            Table,
            network::{self, Link},
        },
        resolver::Detour,
    },
    model::uplink::health::State,
};

pub(super) fn assemble(
    facts: &Facts,
    deciding: Deciding<'_>,
    network: &Surroundings,
    assumed: &[(String, State)],
) -> Explanation {
    let attached = match deciding {
        Deciding::Attachment(_, attached) => Some(attached),
        Deciding::OtherVersion(_) | Deciding::Nobody => None,
    };
    let policy = attached.and_then(|attached| attached.policy.as_ref());
    let packet = network.packet.as_ref().map(|look| fate::packet(look, policy, &facts.table));
    let is_refused = packet.as_ref().is_some_and(|packet| packet.fate == Fate::Refused);
    let uplink = attached.and_then(|attached| uplink(facts, attached, network.link.as_ref()));
    let reasons = reasons::reasons(facts, deciding);
    let (outcome, conclusion) = conclusion::conclude(facts, deciding, uplink.as_ref(), &reasons);
    let is_steered = matches!(outcome, Outcome::Bound | Outcome::Routed | Outcome::Closed);
    Explanation {
        target: Subject { process: facts.process.clone(), cgroup: facts.cgroup.clone(), netns: facts.netns.clone() },
        daemon: facts.daemon,
        configuration: facts.configuration.clone(),
        chain: facts.levels.iter().map(|level| level.document(&facts.policies, deciding)).collect(),
        reasons,
        decision: decision(facts, deciding),
        uplink,
        members: attached.and_then(|attached| members::members_of(attached, assumed)),
        routes: network.routes.iter().map(|routes| route(routes, is_refused, &facts.table)).collect(),
        packet,
        resolver: attached.filter(|_| is_steered).map(|attached| resolver(facts, attached)),
        sockets: network.sockets.clone(),
        elsewhere: facts.elsewhere.clone(),
        outcome,
        conclusion,
    }
}

fn decision(facts: &Facts, deciding: Deciding<'_>) -> Option<Decision> {
    let Deciding::Attachment(level, attached) = deciding else { return None };
    let policy = attached.policy.as_ref();
    let reach = policy.map(|policy| resolve::target(&policy.record, &policy.exceptions).reach).unwrap_or_default();
    let mark = policy.map(|policy| policy.record.mark).filter(|mark| *mark != 0);
    let is_steered = policy.is_some_and(|policy| !policy.exempts());
    let method = if mark.is_some() { Method::Route } else { Method::Bind };
    Some(Decision {
        cgroup: level.path.clone(),
        attached: attached.document(),
        method: is_steered.then_some(method),
        mark,
        local: reach.local.words().collect(),
        except: reach.except.iter().cloned().collect(),
        not_covered: not_covered(facts, attached),
    })
}

/// What a policy does not stop that observes.
const OBSERVED: &str = "the policy only reports (enforce = \"observe\"): packets that strict would stop leave, and `steer events` shows them";

/// Traffic that a policy does not stop.
fn not_covered(facts: &Facts, attached: &Attached) -> Vec<String> {
    let Some(policy) = attached.policy.as_ref().filter(|policy| !policy.exempts()) else { return Vec::new() };
    let flags = policy.record.flags;
    let mut not_covered = Vec::new();
    if flags & policy_flags::SEES == policy_flags::OBSERVE {
        not_covered.push(OBSERVED.to_owned());
    } else if flags & policy_flags::GUARD == 0 {
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
    let ifindex = attached.line().ifindex;
    let interface = policy.uplink_named(ifindex);
    Some(Uplink {
        ifindex: Some(ifindex).filter(|ifindex| *ifindex > 0),
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

/// `is_refused`: the call fails, so no route is looked up.
fn route(routes: &super::look::Routes, is_refused: bool, table: &Table) -> Route {
    let hops = |hops: &[network::Hop]| hops.iter().map(|hop| named(hop, table)).collect::<Vec<_>>();
    Route {
        destination: routes.destination,
        steered: routes.steered.as_deref().map(|found| if is_refused { Vec::new() } else { hops(found) }),
        unsteered: hops(&routes.unsteered),
    }
}

pub(super) fn named(hop: &network::Hop, table: &Table) -> Hop {
    let name = i32::try_from(hop.ifindex).ok().and_then(|ifindex| table.name(ifindex));
    Hop { interface: name.unwrap_or_default().to_owned(), ifindex: hop.ifindex, gateway: hop.gateway }
}

fn resolver(facts: &Facts, attached: &Attached) -> Resolver {
    let dns: Vec<IpAddr> = attached.resolvers();
    let reaches_host =
        attached.policy.as_ref().is_some_and(|policy| policy.record.flags & policy_flags::LOCAL_HOST != 0);
    let describe = |detour: &Detour| if reaches_host { detour.from_this_host() } else { detour.to_string() };
    let of_link = attached.policy.as_ref().filter(|policy| policy.record.flags & policy_flags::DNS_LINK != 0);
    let asks_any = |detour: &&Detour| detour.concerns(&dns) && !(of_link.is_some() && detour.ends_with_dns());
    let mut warnings: Vec<_> = facts.detours.iter().filter(asks_any).map(describe).collect();
    let stopped = of_link.is_some() && dns.is_empty();
    if facts.sees_other_files {
        warnings.push(
            "the process is in another mount namespace, where /etc/resolv.conf and /etc/nsswitch.conf may differ"
                .to_owned(),
        );
    }
    Resolver { dns, stopped, warnings }
}
