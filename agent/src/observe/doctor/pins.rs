//! Checks that the pinned state is complete and up to date.

use steer_common::Owner;

use super::{
    Finding, Fix, Report, Severity, Subject, Topic, command,
    survey::{Attached, Survey},
};
use crate::{
    apply::resolve::{self, Stale},
    kernel::{self, PolicyEntry, inspect},
    model::{cgroup_path::CgroupPath, config, spec::Enforce},
};

pub(super) fn check(survey: &Survey, report: &mut Report) {
    check_daemon(survey, report);
    check_attachments(survey, report);
    check_retired_policies(survey, report);
    check_observing(survey, report);
    check_indexes(survey, report);
    if let Err(error) = check_leftovers(survey, report) {
        report.failed(Topic::Leftovers, Subject::Host, &error);
    }
}

fn check_daemon(survey: &Survey, report: &mut Report) {
    let by_config = survey.attached.iter().filter(|attached| !attached.attachment.is_manual()).count();
    if let (Some(silent), true) = (&survey.silent, survey.daemon) {
        let (what, advice) = silent.split_once(": ").unwrap_or((silent, ""));
        report.find(Finding {
            id: Topic::Daemon,
            severity: Severity::Error,
            subject: Subject::Host,
            what: what.to_owned(),
            why: "changed uplinks, new cgroups and a changed configuration have no effect".to_owned(),
            fix: Some(Fix::advice(advice)),
        });
        return;
    }
    let (what, why) = if survey.daemon {
        report.ok(Topic::Daemon, Subject::Host, "a daemon runs");
        return;
    } else if by_config > 0 {
        (
            format!("no daemon runs, but cgroups are steered by a configuration: {by_config}"),
            "they stay steered, but changed uplinks, new cgroups and a changed configuration have no effect",
        )
    } else if survey.config.policies.is_empty() {
        report.not_applicable(Topic::Daemon, Subject::Host, "no configuration steers anything");
        return;
    } else {
        let policies = survey.config.policies.len();
        (format!("no daemon runs, but the configuration has policies: {policies}"), "none of them is in force")
    };
    let (what, why, fix) = (what, why.to_owned(), survey.start.clone());
    report.find(Finding { id: Topic::Daemon, severity: Severity::Warning, subject: Subject::Host, what, why, fix });
}

/// Policies that stop less than their configuration may suggest to a reader.
fn check_observing(survey: &Survey, report: &mut Report) {
    let observing = survey.in_force.iter().filter(|entry| resolve::enforce(entry.record.flags) == Enforce::Observe);
    let found = observing.map(|entry| Finding {
        id: Topic::Observe,
        severity: Severity::Info,
        subject: Subject::Policy(entry.name()),
        what: "it only reports (enforce = \"observe\"): packets that strict would stop leave".to_owned(),
        why: "a program that sends by another link is an event, and is not stopped; calls to this host are refused without `local = [\"host\"]`"
            .to_owned(),
        fix: Some(Fix::advice(
            "`steer events` shows what strict would stop; when that may be stopped, set enforce = \"strict\" and run `steer reload`",
        )),
    });
    report.conclude(Topic::Observe, Subject::Host, found.collect(), "no policy only observes");
}

fn check_attachments(survey: &Survey, report: &mut Report) {
    let broken = survey.attached.iter().filter(|attached| !attached.attachment.complete);
    let found = broken.map(|attached| {
        let flags = attached.policy.as_ref().map_or(0, |policy| policy.record.flags);
        let inspect::Difference { missing, superfluous } =
            inspect::difference(&attached.attachment, flags, survey.pins.as_ref());
        let what = match (&attached.policy, missing.is_empty()) {
            (None, _) => "its record names no policy, so its sockets are closed".to_owned(),
            (Some(policy), false) => {
                format!("programs of policy {} are missing: {}", policy.name(), missing.join(", "))
            }
            (Some(policy), true) => {
                format!("it has programs that policy {} does not need: {}", policy.name(), superfluous.join(", "))
            }
        };
        Finding {
            id: Topic::Attachment,
            severity: Severity::Error,
            subject: Subject::Cgroup(attached.path.clone()),
            what,
            why: "the cgroup is not steered as its policy requires".to_owned(),
            fix: repair(survey, attached),
        }
    });
    report.conclude(
        Topic::Attachment,
        Subject::Host,
        found.collect(),
        "every cgroup has all programs that its policy needs",
    );
}

/// Attaches the cgroup again with the same policy.
fn repair(survey: &Survey, attached: &Attached) -> Option<Fix> {
    match &attached.policy {
        Some(policy) if attached.attachment.is_manual() => {
            Some(Fix::command(command::attach(&survey.steer, &survey.config.defaults, &attached.path, policy)))
        }
        None if attached.attachment.is_manual() => Some(Fix::command(command::detach(&survey.steer, &attached.path))),
        _ => survey.converge(),
    }
}

/// Finds policies that are in force and no longer configured.
fn check_retired_policies(survey: &Survey, report: &mut Report) {
    let is_intended = |entry: &PolicyEntry| {
        let named = survey.config.policies.iter().find(|policy| policy.name == entry.name());
        !entry.is_owned_by(Owner::Config) || named.is_some_and(config::Policy::is_closed)
    };
    let closed = survey.in_force.iter().filter(|entry| !entry.exempts() && entry.interface().is_empty());
    let retired = closed.filter(|entry| !is_intended(entry));
    let mut found: Vec<_> = retired
        .map(|entry| Finding {
            id: Topic::Policy,
            severity: Severity::Error,
            subject: Subject::Policy(entry.name()),
            what: "it is no longer in the configuration, but a manual attachment uses it".to_owned(),
            why: "the sockets of its cgroups are closed".to_owned(),
            fix: user_of(survey, entry).map(|attached| Fix::command(command::detach(&survey.steer, &attached.path))),
        })
        .collect();
    found.extend(lost_policies(survey));
    report.conclude(Topic::Policy, Subject::Host, found, "every policy in force is configured");
}

/// Policies in force that no file has. A daemon does not carry out a file that has lost all its policies.
fn lost_policies(survey: &Survey) -> impl Iterator<Item = Finding> {
    let policies = &survey.config.policies;
    let has_policy = |file: &&String| policies.iter().any(|policy| policy.file == **file && !policy.is_closed());
    let emptied = survey.config.files.iter().find(|file| !has_policy(file));
    let is_lost = |entry: &&PolicyEntry| {
        // The files were read.
        !survey.config.files.is_empty()
            && entry.is_owned_by(Owner::Config)
            && !entry.is_retired()
            && !policies.iter().any(|policy| policy.name == entry.name())
    };
    survey.in_force.iter().filter(is_lost).map(move |entry| {
        let (why, fix) = match emptied {
            Some(file) => (
                format!("{file} has no policy; a daemon keeps the previous policies then, and does not start with them"),
                Some(Fix::advice(format!(
                    "add the policies to {file} again, or end steering with `{} off`; a file in policies.d can be removed",
                    survey.steer
                ))),
            ),
            None => ("the files were changed, and no daemon has carried them out".to_owned(), survey.converge()),
        };
        let (id, severity, subject) = (Topic::Policy, Severity::Warning, Subject::Policy(entry.name()));
        let what = "it is in force, but no file has it".to_owned();
        Finding { id, severity, subject, what, why, fix }
    })
}

/// Checks that the indexes of uplinks are current.
fn check_indexes(survey: &Survey, report: &mut Report) {
    let mut found = Vec::new();
    for entry in survey.in_force.iter().filter(|entry| !entry.exempts()) {
        let name = entry.name();
        if !survey.is_here(entry) {
            let why = "it belongs to another network namespace: run this command there";
            report.not_applicable(Topic::UplinkIndex, Subject::Policy(name), why);
            continue;
        }
        let mut uplinks = entry.uplinks().into_iter();
        let stale =
            uplinks.find_map(|uplink| resolve::stale(&uplink.interface, Some(uplink.line.ifindex), &survey.table));
        let Some(Stale { what, why }) = stale else {
            continue;
        };
        let attach = |attached: &Attached| {
            Fix::command(command::attach(&survey.steer, &survey.config.defaults, &attached.path, entry))
        };
        let is_configured = entry.is_owned_by(Owner::Config);
        found.push(Finding {
            id: Topic::UplinkIndex,
            severity: Severity::Error,
            subject: Subject::Policy(name),
            what,
            why: why.to_owned(),
            fix: if is_configured { survey.converge() } else { user_of(survey, entry).map(attach) },
        });
    }
    report.conclude(Topic::UplinkIndex, Subject::Host, found, "every policy has the current index of its uplink");
}

/// A cgroup that is attached to a policy.
fn user_of<'a>(survey: &'a Survey, policy: &PolicyEntry) -> Option<&'a Attached> {
    survey.attached.iter().find(|attached| attached.attachment.record.policy == policy.slot)
}

fn check_leftovers(survey: &Survey, report: &mut Report) -> Result<(), kernel::Error> {
    let (Some(pins), Some(hierarchy)) = (&survey.pins, &survey.hierarchy) else {
        report.not_applicable(Topic::Leftovers, Subject::Host, "nothing is pinned");
        return Ok(());
    };
    let others = kernel::steered_by_other_versions(pins)?;
    let other_version = |path: CgroupPath| Finding {
        id: Topic::OtherVersion,
        severity: Severity::Warning,
        what: "it is steered by programs of another version of steer".to_owned(),
        why: "they stay in force, but this version cannot read them, and does not follow the uplink".to_owned(),
        fix: Some(Fix::command(command::detach(&survey.steer, &path))),
        subject: Subject::Cgroup(path),
    };
    let found = others.iter().filter_map(|id| hierarchy.path_of(*id)).map(other_version).collect();
    report.conclude(Topic::OtherVersion, Subject::Host, found, "no cgroup is steered by another version");

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
        let why = "the remaining pins may still steer cgroups, and cannot be read";
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
        let why = "they use memory until the next attach or detach removes them";
        found.push(leftover(Severity::Info, what.join("; "), why, Fix::remove_leftovers(&survey.steer)));
    }
    report.conclude(Topic::Leftovers, Subject::Host, found, "there are no leftover pins");
    Ok(())
}
