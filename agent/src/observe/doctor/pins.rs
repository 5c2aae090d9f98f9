//! Whether what is pinned is whole, and looked after.

use steer_common::Owner;

use super::{
    Finding, Fix, Report, Severity, Subject, Topic, command,
    survey::{Attached, Survey},
};
use crate::{
    kernel::{self, PolicyEntry, inspect},
    model::{cgroup_path::CgroupPath, config},
};

pub(super) fn look(survey: &Survey, report: &mut Report) {
    look_for_the_daemon(survey, report);
    look_at_attachments(survey, report);
    look_for_the_retired(survey, report);
    look_at_indexes(survey, report);
    if let Err(error) = look_at_leftovers(survey, report) {
        report.failed(Topic::Leftovers, Subject::Host, &error);
    }
}

fn look_for_the_daemon(survey: &Survey, report: &mut Report) {
    let by_config = survey.attached.iter().filter(|attached| !attached.attachment.is_manual()).count();
    let (what, why) = if survey.daemon {
        report.ok(Topic::Daemon, Subject::Host, "a daemon runs");
        return;
    } else if by_config > 0 {
        (
            format!("no daemon runs, and there are cgroups that a configuration steers: {by_config}"),
            "they stay steered, but an uplink that comes back, a cgroup that appears and a changed configuration are not seen",
        )
    } else if survey.config.policies.is_empty() {
        report.not_applicable(Topic::Daemon, Subject::Host, "nothing is steered by a configuration");
        return;
    } else {
        let policies = survey.config.policies.len();
        (format!("no daemon runs, and the configuration has policies: {policies}"), "none of them is in force")
    };
    let (what, why, fix) = (what, why.to_owned(), Some(Fix::command(&survey.start)));
    report.find(Finding { id: Topic::Daemon, severity: Severity::Warning, subject: Subject::Host, what, why, fix });
}

fn look_at_attachments(survey: &Survey, report: &mut Report) {
    let broken = survey.attached.iter().filter(|attached| !attached.attachment.complete);
    let found = broken.map(|attached| {
        let flags = attached.policy.as_ref().map_or(0, |policy| policy.record.flags);
        let inspect::Difference { missing, superfluous } =
            inspect::difference(&attached.attachment, flags, survey.pins.as_ref());
        let what = match (&attached.policy, missing.is_empty()) {
            (None, _) => "its record names no policy: it is closed".to_owned(),
            (Some(policy), false) => {
                format!("programs of policy {} are missing: {}", policy.name(), missing.join(", "))
            }
            (Some(policy), true) => {
                format!("it has programs that policy {} does not ask for: {}", policy.name(), superfluous.join(", "))
            }
        };
        Finding {
            id: Topic::Attachment,
            severity: Severity::Error,
            subject: Subject::Cgroup(attached.path.clone()),
            what,
            why: "what these programs would stop or allow is not stopped or allowed".to_owned(),
            fix: Some(repair(survey, attached)),
        }
    });
    report.conclude(
        Topic::Attachment,
        Subject::Host,
        found.collect(),
        "every cgroup has all programs that its policy asks for",
    );
}

/// Attaches it again, as it was.
fn repair(survey: &Survey, attached: &Attached) -> Fix {
    match &attached.policy {
        Some(policy) if attached.attachment.is_manual() => {
            Fix::command(command::attach(&survey.steer, &attached.path, policy))
        }
        None if attached.attachment.is_manual() => Fix::command(command::detach(&survey.steer, &attached.path)),
        _ => survey.converge(),
    }
}

/// Policies of the configuration that are kept only because a cgroup was attached to them by hand.
fn look_for_the_retired(survey: &Survey, report: &mut Report) {
    let is_meant = |entry: &PolicyEntry| {
        let named = survey.config.policies.iter().find(|policy| policy.name == entry.name());
        !entry.is_owned_by(Owner::Config) || named.is_some_and(config::Policy::is_closed)
    };
    let closed = survey.in_force.iter().filter(|entry| !entry.exempts() && entry.interface().is_empty());
    let retired = closed.filter(|entry| !is_meant(entry));
    let found = retired.map(|entry| Finding {
        id: Topic::Policy,
        severity: Severity::Error,
        subject: Subject::Policy(entry.name()),
        what: "the configuration has it no longer, and a cgroup is attached to it by hand".to_owned(),
        why: "what it steers is closed".to_owned(),
        fix: user_of(survey, entry).map(|attached| Fix::command(command::detach(&survey.steer, &attached.path))),
    });
    report.conclude(
        Topic::Policy,
        Subject::Host,
        found.collect(),
        "no policy is kept only for what was attached by hand",
    );
}

/// Whether somebody keeps the indexes of uplinks true.
fn look_at_indexes(survey: &Survey, report: &mut Report) {
    let mut found = Vec::new();
    for entry in survey.in_force.iter().filter(|entry| !entry.exempts()) {
        let (name, interface) = (entry.name(), entry.interface());
        if !survey.is_here(entry) {
            let why = "it belongs to another network namespace: run this command there";
            report.not_applicable(Topic::UplinkIndex, Subject::Policy(name), why);
            continue;
        }
        let pinned = entry.record.ifindex;
        // Where there is no such interface, that is what is wrong.
        let Some(index) = survey.table.resolve(&interface).filter(|index| *index != pinned) else { continue };
        let has = if pinned > 0 { format!("has index {pinned} for it") } else { "has it as missing".to_owned() };
        let attach = |attached: &Attached| Fix::command(command::attach(&survey.steer, &attached.path, entry));
        let is_configured = entry.is_owned_by(Owner::Config);
        found.push(Finding {
            id: Topic::UplinkIndex,
            severity: Severity::Error,
            subject: Subject::Policy(name),
            what: format!("{interface} has index {index}, and the policy {has}"),
            why: "what it steers is closed: nobody followed its uplink".to_owned(),
            fix: if is_configured { Some(survey.converge()) } else { user_of(survey, entry).map(attach) },
        });
    }
    report.conclude(Topic::UplinkIndex, Subject::Host, found, "every policy has the index that its uplink has");
}

/// A cgroup that is attached to a policy.
fn user_of<'a>(survey: &'a Survey, policy: &PolicyEntry) -> Option<&'a Attached> {
    survey.attached.iter().find(|attached| attached.attachment.record.policy == policy.slot)
}

fn look_at_leftovers(survey: &Survey, report: &mut Report) -> Result<(), kernel::Error> {
    let (Some(pins), Some(hierarchy)) = (&survey.pins, &survey.hierarchy) else {
        report.not_applicable(Topic::Leftovers, Subject::Host, "nothing is pinned");
        return Ok(());
    };
    let others = kernel::steered_by_other_versions(pins)?;
    let other_version = |path: CgroupPath| Finding {
        id: Topic::OtherVersion,
        severity: Severity::Warning,
        what: "it is steered by programs of another version of steer".to_owned(),
        why: "they hold, but what they do cannot be read, and nobody follows its uplink".to_owned(),
        fix: Some(Fix::command(command::detach(&survey.steer, &path))),
        subject: Subject::Cgroup(path),
    };
    let found = others.iter().filter_map(|id| hierarchy.path_of(*id)).map(other_version).collect();
    report.conclude(Topic::OtherVersion, Subject::Host, found, "nothing is steered by another version");

    let left = inspect::leftovers(pins)?;
    let leftover = |severity, what: String, why: &str, fix| Finding {
        id: Topic::Leftovers,
        severity,
        subject: Subject::File(survey.pin_directory.clone()),
        what,
        why: why.to_owned(),
        fix: Some(fix),
    };
    let mut found = Vec::new();
    if left.partial {
        let why = "what is left of it may hold cgroups to an uplink, and cannot be read";
        let off = Fix::command(format!("{} off", survey.steer));
        found.push(leftover(Severity::Warning, "a removal of all pins was interrupted".to_owned(), why, off));
    }
    if survey.gone > 0 || !left.dead.is_empty() {
        let mut what = Vec::new();
        if survey.gone > 0 {
            what.push(format!("pins of cgroups that are gone: {}", survey.gone));
        }
        if !left.dead.is_empty() {
            what.push(format!("pins that steer nothing: {}", left.dead.join(", ")));
        }
        let why = "they hold memory, and go when anything is attached or detached";
        found.push(leftover(Severity::Info, what.join("; "), why, Fix::tidy(&survey.steer)));
    }
    report.conclude(Topic::Leftovers, Subject::Host, found, "nothing is left that steers nothing");
    Ok(())
}
