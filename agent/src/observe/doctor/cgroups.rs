//! Checks that the cgroups that the configuration names exist and are steered.

use steer_common::Owner;

use super::{
    Finding, Fix, Report, Severity, Subject, Topic,
    foreign::Foreign,
    survey::{Attached, Survey},
};
use crate::{
    apply::blind_spots::BlindSpot,
    host::{
        cgroup::{Found, Hierarchy, scope},
        policy_files::Store,
    },
    kernel::PolicyEntry,
    model::{
        cgroup_path::CgroupPath,
        config::Policy,
        policy::Policies,
        quote::quoted,
        spec::{Named, Pattern},
    },
    observe::{
        doubts::{self, Doubt},
        unsteered::{self, Unsteered},
    },
};

pub(super) fn check_patterns(survey: &Survey, report: &mut Report) {
    let policies = &survey.config.policies;
    let named: Vec<_> = policies.iter().map(|policy| (policy.name.as_str(), &*policy.cgroups)).collect();
    let cgroups: Vec<_> = survey.cgroups.iter().map(|found| found.path.clone()).collect();
    let shadowed = doubts::shadowed(&named, &cgroups);
    for policy in policies {
        check_policy(survey, policy, &shadowed, report);
    }
}

fn check_policy(survey: &Survey, policy: &Policy, shadowed: &[Doubt], report: &mut Report) {
    if survey.hierarchy.is_none() {
        report.not_applicable(Topic::CgroupPattern, Subject::Policy(policy.name.clone()), "the cgroups were not read");
        return;
    }
    let unmatched = policy.cgroups.iter().filter(|pattern| matching(survey, pattern).next().is_none());
    let paths: Vec<_> = survey.cgroups.iter().map(|found| found.path.clone()).collect();
    let found = unmatched.map(|pattern| {
        let key = pattern.named().key();
        let doubt = doubts::doubt(&policy.name, pattern, &paths);
        let elsewhere = elsewhere(survey, pattern);
        let named: Vec<_> = elsewhere.iter().take(3).map(|path| format!("{:?}", path.as_str())).collect();
        let named = Some(named.join(" or ")).filter(|named| !named.is_empty());
        let perhaps = named.or_else(|| doubt.as_ref()?.perhaps.clone());
        let severity = if doubt.is_some() || perhaps.is_some() { Severity::Warning } else { Severity::Info };
        let fix = match (severity, perhaps) {
            (_, Some(perhaps)) => format!("correct `{key}` in the policy, perhaps to {perhaps}"),
            (Severity::Info, None) => {
                format!("do nothing if its processes do not run now; otherwise correct `{key}` in the policy")
            }
            (_, None) => format!("correct `{key}` in the policy, then run `{} reload`", survey.steer),
        };
        Finding {
            id: Topic::CgroupPattern,
            severity,
            subject: Subject::Policy(policy.name.clone()),
            what: doubt.map_or_else(|| format!("no cgroup matches {:?} now", pattern.as_str()), |doubt| doubt.problem),
            why: "the name has no effect until such a cgroup exists".to_owned(),
            fix: Some(Fix::advice(fix)),
        }
    });
    let without_effect = shadowed.iter().filter(|doubt| doubt.policy == policy.name).map(|doubt| Finding {
        id: Topic::CgroupPattern,
        severity: Severity::Warning,
        subject: Subject::Policy(policy.name.clone()),
        what: doubt.problem.clone(),
        why: "a cgroup has one policy: the first that names it by a path, a unit or a user".to_owned(),
        fix: Some(Fix::advice(format!("remove it from `{}` in one of the policies", doubt.key))),
    });
    let found = found.chain(without_effect).collect();
    let detail = "every pattern matches a cgroup";
    report.conclude(Topic::CgroupPattern, Subject::Policy(policy.name.clone()), found, detail);
}

fn matching<'a>(survey: &'a Survey, pattern: &'a Pattern) -> impl Iterator<Item = &'a Found> {
    survey.cgroups.iter().filter(|found| pattern.matches(&found.path.parts().collect::<Vec<_>>()))
}

/// The cgroups that match the last part of a pattern: the user may have meant one of them.
fn elsewhere(survey: &Survey, pattern: &Pattern) -> Vec<CgroupPath> {
    if pattern.named() != Named::Cgroup {
        return Vec::new();
    }
    let last = pattern.as_str().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // A name that begins with a wildcard matches too much.
    if last.is_empty() || last.starts_with(['*', '?', '[', '{']) {
        return Vec::new();
    }
    let anywhere = Pattern::parse(&format!("/**/{last}"));
    anywhere
        .map_or_else(|_| Vec::new(), |anywhere| matching(survey, &anywhere).map(|found| found.path.clone()).collect())
}

/// Reports where a running daemon does not see new cgroups.
pub(super) fn check_watched(blind_spots: &[BlindSpot], daemon: bool, report: &mut Report) {
    if !daemon {
        report.not_applicable(Topic::CgroupWatch, Subject::Host, "no daemon runs");
        return;
    }
    let found = blind_spots.iter().map(|spot| Finding {
        id: Topic::CgroupWatch,
        severity: Severity::Error,
        subject: Subject::Cgroup(spot.cgroup.clone()),
        what: spot.why.clone(),
        why: "until a new cgroup is steered, its traffic follows the routing table".to_owned(),
        fix: Some(Fix::advice(spot.fix.clone())),
    });
    report.conclude(Topic::CgroupWatch, Subject::Host, found.collect(), "the daemon sees every new cgroup");
}

/// Finds manual attachments that go before what the configuration names. The cgroup of a `steer exec` belongs to that command.
pub(super) fn check_manual(survey: &Survey, report: &mut Report) {
    let policies = Policies::new(survey.config.clone());
    let is_manual = |attached: &&Attached| attached.attachment.is_manual() && !scope::is_scope(&attached.path);
    let manual = survey.attached.iter().filter(is_manual);
    let found = manual.filter_map(|attached| {
        let policy = policies.before_manual(&attached.path)?;
        let held_by = attached.policy.as_ref();
        if held_by.is_some_and(|entry| entry.is_owned_by(Owner::Config) && entry.name() == policy.name) {
            return None;
        }
        let exempts = held_by.is_some_and(PolicyEntry::exempts);
        let held_by = held_by.map_or_else(|| "no policy".to_owned(), |entry| format!("policy {}", entry.name()));
        Some(Finding {
            id: Topic::ManualAttachment,
            severity: if exempts { Severity::Warning } else { Severity::Info },
            subject: Subject::Cgroup(attached.path.clone()),
            what: format!("it is attached to {held_by} manually, though policy {} names it", policy.name),
            why: if exempts {
                "a manual attachment goes before the configuration, so its traffic follows the routing table".to_owned()
            } else {
                "a manual attachment goes before the configuration".to_owned()
            },
            fix: Some(Fix::command(format!("{} detach {}", survey.steer, quoted(attached.path.as_str())))),
        })
    });
    let detail = "none goes before a policy that names its cgroup";
    report.conclude(Topic::ManualAttachment, Subject::Host, found.collect(), detail);
}

/// Finds cgroups that the configuration names and nothing steers.
pub(super) fn check_steered(survey: &Survey, foreign: &Foreign<'_>, report: &mut Report) {
    let mut found = match (&survey.hierarchy, &survey.store) {
        (Some(hierarchy), Some(store)) => released(survey, hierarchy, store, report),
        _ => Vec::new(),
    };
    if survey.config.policies.is_empty() && found.is_empty() {
        report.not_applicable(Topic::CgroupSteered, Subject::Host, "no configuration steers anything");
        return;
    }
    let attached = |path: &CgroupPath| survey.attached(path).map(|attached| attached.attachment.is_manual());
    let policies = Policies::new(survey.config.clone());
    for unsteered in unsteered::among(&policies, survey.cgroups.iter().map(|found| &found.path), attached) {
        let flags = match survey.configured(&unsteered.policy) {
            Some(entry) => entry.record.flags,
            // The daemon has another configuration, or has not read this policy yet.
            None if survey.daemon => continue,
            None => 0,
        };
        if foreign.forbids(&unsteered.path, flags) {
            continue;
        }
        found.push(Finding {
            id: Topic::CgroupSteered,
            severity: Severity::Error,
            subject: Subject::Cgroup(unsteered.path),
            what: format!("policy {} names it, but it is not steered", unsteered.policy),
            why: "its traffic follows the routing table, not the policy".to_owned(),
            fix: survey.converge(),
        });
    }
    report.conclude(
        Topic::CgroupSteered,
        Subject::Host,
        found,
        "every cgroup that the configuration names is attached",
    );
}

/// What `steer off` has released.
fn released(survey: &Survey, hierarchy: &Hierarchy, store: &Store, report: &mut Report) -> Vec<Finding> {
    let released = unsteered::released(store, hierarchy, |path| survey.attached(path).is_some());
    let released = released.unwrap_or_else(|error| {
        report.failed(Topic::CgroupSteered, Subject::File(store.released().display().to_string()), &error);
        Vec::new()
    });
    let finding = |unsteered: Unsteered| Finding {
        id: Topic::CgroupSteered,
        severity: Severity::Warning,
        subject: Subject::Cgroup(unsteered.path),
        what: format!("`steer off` has released it from policy {}", unsteered.policy),
        why: format!(
            "its traffic follows the routing table until a daemon starts, which steers it again; `{} off --forget` accepts that",
            survey.steer
        ),
        fix: survey.start.clone(),
    };
    released.into_iter().map(finding).collect()
}
