//! Whether the configuration names cgroups that there are, and these are steered.

use super::{Finding, Fix, Report, Severity, Subject, Topic, foreign::Foreign, survey::Survey};
use crate::{
    host::cgroup::Found,
    model::{cgroup_path::CgroupPath, config::Policy, policy::Policies, spec::Pattern},
};

pub(super) fn look_at_patterns(survey: &Survey, report: &mut Report) {
    for policy in &survey.config.policies {
        look_at_policy(survey, policy, report);
    }
}

fn look_at_policy(survey: &Survey, policy: &Policy, report: &mut Report) {
    if survey.hierarchy.is_none() {
        report.not_applicable(
            Topic::CgroupPattern,
            Subject::Policy(policy.name.clone()),
            "there are no cgroups to match",
        );
        return;
    }
    let idle = policy.cgroups.iter().filter(|pattern| matching(survey, pattern).next().is_none());
    let found = idle.map(|pattern| {
        let elsewhere = elsewhere(survey, pattern);
        let (severity, fix) = if elsewhere.is_empty() {
            (
                Severity::Info,
                "nothing, if its processes do not run now; else correct `cgroups` in the policy".to_owned(),
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
            why: "the policy holds for nobody by it until one appears".to_owned(),
            fix: Some(Fix::advice(fix)),
        }
    });
    let detail = "each of its patterns matches a cgroup";
    report.conclude(Topic::CgroupPattern, Subject::Policy(policy.name.clone()), found.collect(), detail);
}

fn matching<'a>(survey: &'a Survey, pattern: &'a Pattern) -> impl Iterator<Item = &'a Found> {
    survey.cgroups.iter().filter(|found| pattern.matches(&found.path.parts().collect::<Vec<_>>()))
}

/// The cgroups that the last part of a pattern alone would match: it may be meant for one of them.
fn elsewhere(survey: &Survey, pattern: &Pattern) -> Vec<CgroupPath> {
    let last = pattern.as_str().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // Of a name that begins with a wildcard anything may be meant.
    if last.is_empty() || last.starts_with(['*', '?', '[', '{']) {
        return Vec::new();
    }
    let anywhere = Pattern::parse(&format!("/**/{last}"));
    anywhere
        .map_or_else(|_| Vec::new(), |anywhere| matching(survey, &anywhere).map(|found| found.path.clone()).collect())
}

/// What a running daemon should have attached, and has not.
pub(super) fn look_for_the_unsteered(survey: &Survey, foreign: &Foreign<'_>, report: &mut Report) {
    if !survey.daemon || survey.config.policies.is_empty() {
        report.not_applicable(Topic::CgroupSteered, Subject::Host, "no daemon steers by this configuration");
        return;
    }
    let manual = |path: &CgroupPath| survey.attached(path).is_some_and(|attached| attached.attachment.is_manual());
    let policies = Policies::new(survey.config.clone());
    let mut found = Vec::new();
    for cgroup in &survey.cgroups {
        let Some(policy) = policies.attaching(&cgroup.path, manual).map(|index| &survey.config.policies[index]) else {
            continue;
        };
        // A policy that is not in force is another configuration's, or one that the daemon has not read.
        let Some(entry) = survey.configured(&policy.name) else { continue };
        if survey.attached(&cgroup.path).is_some() || foreign.forbids(&cgroup.path, entry.record.flags) {
            continue;
        }
        found.push(Finding {
            id: Topic::CgroupSteered,
            severity: Severity::Error,
            subject: Subject::Cgroup(cgroup.path.clone()),
            what: format!("policy {} names it, and it is not steered", policy.name),
            why: "its traffic goes wherever the routing table says".to_owned(),
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
