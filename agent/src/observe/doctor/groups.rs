//! Checks the groups of uplinks: the health of their members, and whether their probes can tell.

use std::collections::BTreeMap;

use super::{Finding, Fix, Report, Severity, Subject, Topic, survey::Survey};
use crate::{
    host::route,
    model::{
        quote::quoted,
        uplink::{
            Family,
            auto::{self, Auto, Selector},
            group::{self, Group, GroupName},
            health::{Reason, State},
        },
    },
    observe::uplinks::{self, MemberStatus, UplinkStatus},
};

/// How often a target was asked before it is said that it never answers.
const ROUNDS: u32 = 10;

/// `probed`: the groups with the results of probes, which a daemon has.
pub(super) fn check(survey: &Survey, probed: &[UplinkStatus], report: &mut Report) -> Result<(), crate::kernel::Error> {
    let groups = survey.pins.as_ref().map_or_else(|| Ok(Vec::new()), |pins| uplinks::read(pins, &[]))?;
    if groups.is_empty() {
        report.not_applicable(Topic::UplinkGroup, Subject::Host, "no policy uses a group of uplinks");
        return Ok(());
    }
    for status in &groups {
        let subject = Subject::Uplink(status.name.clone());
        let name = GroupName::parse(&status.name).ok();
        let configured = name.and_then(|name| group::named(&survey.config.uplinks, &name));
        let mut found: Vec<Finding> = health_of_all(survey, status);
        found.extend(configured.as_deref().into_iter().flat_map(|group| probes(group, status)));
        let is_it = |it: &&UplinkStatus| {
            (it.netns_cookie, it.slot, &it.name) == (status.netns_cookie, status.slot, &status.name)
        };
        found.extend(probed.iter().find(is_it).into_iter().flat_map(silent_targets));
        let auto = configured.as_deref().and_then(|group| group.auto.as_ref());
        if let (Some(auto), true, true) =
            (auto, status.members.is_empty(), survey.netns_cookie == Some(status.netns_cookie))
        {
            found.extend(no_line(status, auto));
        }
        report.conclude(Topic::UplinkGroup, subject, found, "its members work, and probes can tell");
    }
    Ok(())
}

fn finding(status: &UplinkStatus, severity: Severity, what: String, why: &str, fix: String) -> Finding {
    let subject = Subject::Uplink(status.name.clone());
    Finding { id: Topic::UplinkGroup, severity, subject, what, why: why.to_owned(), fix: Some(Fix::advice(fix)) }
}

/// Why no link of this host can be a member of a group of `auto`.
fn no_line(status: &UplinkStatus, auto: &Auto) -> Option<Finding> {
    let selector = Selector::new(auto).ok()?;
    let links = route::lines(&|name, kind| selector.includes(name, kind)).unwrap_or_default();
    let why = |link: &auto::Link| {
        let refusal = selector.refusal(link, Family::V4)?;
        Some(format!("{}: {refusal}", link.name))
    };
    let links: Vec<_> = links.iter().filter(|link| link.arphrd != libc::ARPHRD_LOOPBACK).filter_map(why).collect();
    let links = if links.is_empty() { "there is none".to_owned() } else { links.join("; ") };
    let what = format!("no link of this host is a line that it may choose: {links}");
    let fix = format!(
        "create the line, or name a virtual link that leads to one: [[uplink]] name = \"lines\", auto = {{ include = [\"LINK\"] }}, and \
         uplink = \"lines\" in the policies that use {}; tunnels are never chosen, so name these as `interface`",
        status.name
    );
    Some(finding(status, Severity::Error, what, "its policies are closed until there is one", fix))
}

/// What is wrong with the members: one finding if none works, or else one for each member and family.
fn health_of_all(survey: &Survey, status: &UplinkStatus) -> Vec<Finding> {
    let is_down = |member: &MemberStatus| Family::ALL.iter().all(|family| is_down_in(member, *family));
    if status.members.is_empty() || !status.members.iter().all(is_down) {
        return status.members.iter().flat_map(|member| health(survey, status, member)).collect();
    }
    let each = status.members.iter().map(|member| {
        let (v4, v6) = (&member.ipv4.reason, &member.ipv6.reason);
        if v4 == v6 {
            format!("{}: {v4}", member.interface)
        } else {
            format!("{}: IPv4: {v4}, IPv6: {v6}", member.interface)
        }
    });
    let what = format!("no member works ({})", each.collect::<Vec<_>>().join("; "));
    let by_hand: Vec<_> =
        status.members.iter().filter(|member| member.hand == "down").map(|it| put_back(survey, status, it)).collect();
    let fix = if by_hand.is_empty() {
        format!("repair a line; `{} uplinks` shows when it works again", survey.steer)
    } else {
        format!("put a member back: {}", by_hand.join(", or "))
    };
    let why = "sockets stay on the last choice, or are closed with `all_down = \"close\"`";
    vec![finding(status, Severity::Error, what, why, fix)]
}

/// The command that lets probes and the link decide again.
fn put_back(survey: &Survey, status: &UplinkStatus, member: &MemberStatus) -> String {
    format!("{} uplink auto {} {}", survey.steer, quoted(&status.name), quoted(&member.interface))
}

/// The families in which a member is down, although another works.
fn health(survey: &Survey, status: &UplinkStatus, member: &MemberStatus) -> Vec<Finding> {
    // One that is held works: it waits.
    let is_down = |family: &Family| is_down_in(member, *family);
    // A host without IPv6 is no fault of a member.
    let has_family = |family: &Family| status.members.iter().any(|member| !is_down_in(member, *family));
    let down: Vec<Family> = Family::ALL.into_iter().filter(is_down).filter(has_family).collect();
    // A link that is missing or down has a finding of its own, which says what to do.
    let is_of_link =
        [Reason::NoInterface, Reason::NoCarrier].iter().any(|reason| member.ipv4.reason == reason.to_string());
    if (member.ifindex.is_none() || is_of_link) && member.hand != "down" {
        return Vec::new();
    }
    let is_same = (&member.ipv4.state, &member.ipv4.reason) == (&member.ipv6.state, &member.ipv6.reason);
    let families = if is_same && !down.is_empty() { &[Family::V4][..] } else { &down };
    let findings = families.iter().filter(|family| is_down(family)).map(|family| {
        let health = member.health(*family);
        let of = if is_same { String::new() } else { format!(" for {family}") };
        let what = format!("{} is {}{of}: {}", member.interface, health.state, health.reason);
        let why = "its share of new sockets goes to the other members";
        let fix = if member.hand == "down" {
            format!("put it back: {}", put_back(survey, status, member))
        } else {
            format!("repair the line; `{} uplinks` shows when it works again", survey.steer)
        };
        finding(status, Severity::Warning, what, why, fix)
    });
    findings.collect()
}

fn is_down_in(member: &MemberStatus, family: Family) -> bool {
    member.health(family).state == State::Down.to_string()
}

/// Whether the probes of a group can tell what they are for.
fn probes(group: &Group, status: &UplinkStatus) -> Vec<Finding> {
    let several = group.members.len() > 1;
    match &group.probe {
        None if several => vec![finding(
            status,
            Severity::Info,
            "its members are not probed".to_owned(),
            "a line that fails behind a live link stays chosen",
            "add probe = { targets = [\"gateway\"] } to the [[uplink]], or better a target behind the line".to_owned(),
        )],
        Some(probe) if several && probe.targets.len() == 1 => vec![finding(
            status,
            Severity::Info,
            format!("{} is the only target of its probes", probe.targets[0]),
            "if this target fails, the line counts as failed",
            "add a second target to `probe`".to_owned(),
        )],
        _ => Vec::new(),
    }
}

/// A target by one member, in one family.
struct By<'a> {
    member: &'a MemberStatus,
    family: Family,
    answered: bool,
    /// Whether another target has answered there, so that the line works.
    is_line_alive: bool,
}

/// The targets that have never answered: by no member, or by one that others answer by.
fn silent_targets(status: &UplinkStatus) -> Vec<Finding> {
    let mut targets: BTreeMap<&str, Vec<By<'_>>> = BTreeMap::new();
    for (member, family) in status.members.iter().flat_map(|member| Family::ALL.map(|family| (member, family))) {
        let Some(probes) = &member.health(family).probes else { continue };
        let is_line_alive = probes.targets.iter().any(|target| target.answered > 0);
        for asked in probes.targets.iter().filter(|asked| asked.rounds >= ROUNDS) {
            let by = By { member, family, answered: asked.answered > 0, is_line_alive };
            targets.entry(&asked.target).or_default().push(by);
        }
    }
    let mut found = Vec::new();
    let mut say = |what: String| {
        let why = "it cannot tell whether a line works";
        let fix = "check that the target answers such a probe, or name another one in `probe`";
        found.push(finding(status, Severity::Warning, what, why, fix.to_owned()));
    };
    for (target, by) in targets {
        if by.iter().all(|by| !by.answered) {
            say(format!("{target} has never answered a probe, by no member"));
            continue;
        }
        for by in by.iter().filter(|by| !by.answered && by.is_line_alive) {
            let (interface, family) = (&by.member.interface, by.family);
            say(format!("{target} has never answered a probe by {interface} for {family}, and others have"));
        }
    }
    found
}
