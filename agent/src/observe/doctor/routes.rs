//! Checks the rules and routes of policies: whether they are as they should be, and what of others is in their way.

use std::{fs, time::Duration};

use steer_common::CLOSED_IFINDEX;
use tokio::time::sleep;

use super::{Finding, Fix, Report, Severity, Subject, Topic, command, survey::Survey};
use crate::{
    apply::{
        resolve::Namespace,
        routes::{self, Difference},
    },
    kernel::{self, Datapath, PolicyEntry},
    model::mark::MarkMask,
};

/// How many differences a finding names.
const NAMED: usize = 4;
/// For this long, a daemon or a keeper may take to follow a change.
const FOLLOWS: Duration = Duration::from_millis(500);

/// The directories of families below /proc/sys/net.
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
const TOPICS: [Topic; 3] = [Topic::Routes, Topic::ForeignRule, Topic::MarkClash];

pub(super) async fn check(survey: &Survey, report: &mut Report) -> Result<(), kernel::Error> {
    let difference = compare(survey).await?;
    let Some(difference) = difference.filter(|difference| difference.is_needed || !difference.removals.is_empty())
    else {
        for topic in TOPICS {
            report.not_applicable(topic, Subject::Host, "no policy needs rules and routes in this network namespace");
        }
        return Ok(());
    };
    let found = differs(survey, &difference);
    report.conclude(Topic::Routes, Subject::Host, found, "the rules and routes of the policies are as they should be");
    let found = difference.in_front.iter().map(|rule| in_front(rule)).collect();
    report.conclude(Topic::ForeignRule, Subject::Host, found, "no rule of others stands in front of those for marks");
    let clash = difference.marks.and_then(|marks| clash(&difference, marks));
    let reflected = FAMILIES.into_iter().filter(|_| difference.marks.is_some()).filter_map(reflected);
    let found = clash.into_iter().chain(reflected).collect();
    report.conclude(Topic::MarkClash, Subject::Host, found, "no rule of others uses bits of steer's marks");
    Ok(())
}

/// `None`: nothing is steered.
async fn compare(survey: &Survey) -> Result<Option<Difference>, kernel::Error> {
    let datapath = survey.pins.as_ref().map_or(Ok(None), Datapath::open)?;
    let (Some(datapath), Some(cookie)) = (datapath, survey.netns_cookie) else { return Ok(None) };
    let namespace = Namespace::own(&survey.table, cookie, survey.config.route.marks(), &survey.config.uplinks);
    let mut difference = routes::compare(&datapath, namespace)?;
    // What is left of a missing uplink does no harm, and goes when the policy is updated.
    let is_current = |entry: &&PolicyEntry| {
        let present = |name: &str| survey.table.resolve(name).unwrap_or(CLOSED_IFINDEX);
        entry.uplinks().iter().all(|uplink| present(&uplink.interface) == uplink.line.ifindex)
    };
    let mut here = survey.in_force.iter().filter(|entry| !entry.exempts() && survey.is_here(entry));
    if !here.all(|entry| is_current(&entry)) {
        difference.removals.clear();
    }
    if [&difference.changes, &difference.removals, &difference.passes].iter().any(|set| !set.is_empty()) {
        // Somebody may be following a change at this moment. What differs both times was not followed.
        sleep(FOLLOWS).await;
        let now = routes::compare(&datapath, namespace)?;
        difference.changes.retain(|change| now.changes.contains(change));
        difference.removals.retain(|removal| now.removals.contains(removal));
        difference.passes.retain(|policy| now.passes.contains(policy));
    }
    Ok(Some(difference))
}

fn differs(survey: &Survey, difference: &Difference) -> Vec<Finding> {
    let changes = difference.changes.iter().chain(&difference.removals);
    let mut differences: Vec<String> = changes.map(|change| format!("to {change}")).collect();
    let passes = difference.passes.iter();
    differences.extend(passes.map(|policy| format!("to correct what the programs let pass for policy {policy}")));
    if differences.is_empty() {
        return Vec::new();
    }
    let more = differences.len().saturating_sub(NAMED);
    differences.truncate(NAMED);
    if more > 0 {
        differences.push(format!("and {more} more changes"));
    }
    vec![Finding {
        id: Topic::Routes,
        severity: Severity::Error,
        subject: Subject::Host,
        what: format!("the rules and routes of the policies are not as they should be; needed: {}", differences.join("; ")),
        why: "packets of these policies may have no route, or an old one; with strict, those that would leave by another link are \
              stopped"
            .to_owned(),
        fix: repair(survey),
    }]
}

/// A running daemon writes them again, as does each command that attaches.
fn repair(survey: &Survey) -> Option<Fix> {
    let mut manual = survey.attached.iter().filter(|attached| attached.attachment.is_manual() && !survey.daemon);
    let attach = manual.find_map(|attached| {
        let policy = attached.policy.as_ref().filter(|policy| !policy.exempts() && survey.is_here(policy))?;
        Some(command::attach(&survey.steer, &survey.config.defaults, &attached.path, policy))
    });
    attach.map(Fix::command).or_else(|| survey.converge())
}

fn in_front(rule: &str) -> Finding {
    Finding {
        id: Topic::ForeignRule,
        severity: Severity::Warning,
        subject: Subject::Host,
        what: format!("the rule {rule}, of another program, comes before those for steer's marks"),
        why: "it may lead packets of steered programs elsewhere; with strict they are stopped there, with steer they leave".to_owned(),
        fix: Some(Fix::advice(
            "give the rule a preference from 1 to 39999, or delete it: `ip rule`, and `ip -6 rule` for IPv6, list and change rules",
        )),
    }
}

fn clash(difference: &Difference, marks: MarkMask) -> Option<Finding> {
    if difference.clashing.is_empty() {
        return None;
    }
    let advice = match difference.free_marks {
        Some(free) => format!(
            "set other bits in the configuration, and attach again: [route] mark_mask = \"{:#010x}\" clashes with no rule",
            free.bits()
        ),
        None => "set bits that the other program does not use: `mark_mask` in [route] of the configuration".to_owned(),
    };
    Some(Finding {
        id: Topic::MarkClash,
        severity: Severity::Warning,
        subject: Subject::Host,
        what: format!(
            "steer uses the bits {:#010x} of marks, and so does another program: {}",
            marks.bits(),
            difference.clashing.join("; ")
        ),
        why: "a program that marks packets of steered sockets takes steer's mark away: these packets lose their routes, and with strict \
              they are stopped; packets that it marks may look like those of a policy"
            .to_owned(),
        fix: Some(Fix::advice(advice)),
    })
}

/// The kernel gives its last acknowledgement of a closed connection the mark of the segment that it answers, instead of the socket's.
fn reflected(family: &str) -> Option<Finding> {
    let value = fs::read_to_string(format!("/proc/sys/net/{family}/fwmark_reflect")).ok()?;
    (value.trim() != "0").then(|| Finding {
        id: Topic::MarkClash,
        severity: Severity::Warning,
        subject: Subject::Host,
        what: format!("net.{family}.fwmark_reflect is {}", value.trim()),
        why: "if another program marks what comes in, the kernel's last acknowledgement of a connection that a steered program closed has \
              that mark, and leaves by the routing table"
            .to_owned(),
        fix: Some(Fix::command(format!("sysctl -w net.{family}.fwmark_reflect=0"))),
    })
}
