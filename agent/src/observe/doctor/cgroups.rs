//! Checks that the cgroups that the configuration names exist and are steered.

use super::{Finding, Fix, Report, Severity, Subject, Topic, foreign::Foreign, survey::Survey};
use crate::{
    host::cgroup::Found,
    model::{cgroup_path::CgroupPath, config::Policy, policy::Policies, spec::Pattern},
    observe::unsteered,
};

pub(super) fn check_patterns(survey: &Survey, report: &mut Report) {
    for policy in &survey.config.policies {
        check_policy(survey, policy, report);
    }
}

fn check_policy(survey: &Survey, policy: &Policy, report: &mut Report) {
    if survey.hierarchy.is_none() {
        report.not_applicable(Topic::CgroupPattern, Subject::Policy(policy.name.clone()), "the cgroups were not read");
        return;
    }
    let unmatched = policy.cgroups.iter().filter(|pattern| matching(survey, pattern).next().is_none());
    let found = unmatched.map(|pattern| {
        let elsewhere = elsewhere(survey, pattern);
        let (severity, fix) = if elsewhere.is_empty() {
            (
                Severity::Info,
                "do nothing if its processes do not run now; otherwise correct `cgroups` in the policy".to_owned(),
            )
        } else {
            let named: Vec<_> = elsewhere.iter().take(3).map(|path| format!("{:?}", path.as_str())).collect();
            (Severity::Warning, format!("correct `cgroups` in the policy, perhaps to {}", named.join(" or ")))
        };
        Finding {
            id: Topic::CgroupPattern,
            severity,
            subject: Subject::Policy(policy.name.clone()),
            what: format!("no cgroup matches {:?} now", pattern.as_str()),
            why: "the pattern has no effect until such a cgroup exists".to_owned(),
            fix: Some(Fix::advice(fix)),
        }
    });
    let detail = "every pattern matches a cgroup";
    report.conclude(Topic::CgroupPattern, Subject::Policy(policy.name.clone()), found.collect(), detail);
}

fn matching<'a>(survey: &'a Survey, pattern: &'a Pattern) -> impl Iterator<Item = &'a Found> {
    survey.cgroups.iter().filter(|found| pattern.matches(&found.path.parts().collect::<Vec<_>>()))
}

/// The cgroups that match the last part of a pattern: the user may have meant one of them.
fn elsewhere(survey: &Survey, pattern: &Pattern) -> Vec<CgroupPath> {
    let last = pattern.as_str().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // A name that begins with a wildcard matches too much.
    if last.is_empty() || last.starts_with(['*', '?', '[', '{']) {
        return Vec::new();
    }
    let anywhere = Pattern::parse(&format!("/**/{last}"));
    anywhere
        .map_or_else(|_| Vec::new(), |anywhere| matching(survey, &anywhere).map(|found| found.path.clone()).collect())
}

/// Finds cgroups that the configuration names and nothing steers.
pub(super) fn check_steered(survey: &Survey, foreign: &Foreign<'_>, report: &mut Report) {
    if survey.config.policies.is_empty() {
        report.not_applicable(Topic::CgroupSteered, Subject::Host, "no configuration steers anything");
        return;
    }
    let attached = |path: &CgroupPath| survey.attached(path).map(|attached| attached.attachment.is_manual());
    let policies = Policies::new(survey.config.clone());
    let mut found = Vec::new();
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
            fix: Some(survey.converge()),
        });
    }
    report.conclude(
        Topic::CgroupSteered,
        Subject::Host,
        found,
        "every cgroup that the configuration names is attached",
    );
}
