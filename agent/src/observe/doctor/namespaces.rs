//! Finds processes of steered cgroups in other network namespaces, which their policy leaves alone.

use steer_common::policy_flags;

use super::{Finding, Fix, Report, Severity, Subject, Topic, survey::Survey};
use crate::{kernel, observe::elsewhere::Finder};

pub(super) fn check(survey: &Survey, report: &mut Report) -> Result<(), kernel::Error> {
    let Some(hierarchy) = survey.hierarchy.as_ref().filter(|_| !survey.attached.is_empty()) else {
        report.not_applicable(Topic::OtherNetns, Subject::Host, "nothing is steered");
        return Ok(());
    };
    let attached =
        survey.attached.iter().filter_map(|attached| Some((attached.path.clone(), attached.policy.clone()?)));
    let finder = Finder::new(hierarchy, attached)?;
    for attached in &survey.attached {
        let Some(policy) = attached.policy.as_ref().filter(|policy| !policy.exempts()) else { continue };
        let (leaving, held): (Vec<_>, Vec<_>) =
            finder.in_cgroup(&attached.path).into_iter().partition(|elsewhere| elsewhere.leaves);
        let is_strict = policy.record.flags & policy_flags::GUARD != 0;
        let found = leaving.into_iter().map(|elsewhere| Finding {
            id: Topic::OtherNetns,
            severity: if is_strict { Severity::Error } else { Severity::Warning },
            subject: Subject::Cgroup(attached.path.clone()),
            what: elsewhere.to_string(),
            why: format!(
                "the index of {} means nothing in another network namespace, so policy {} leaves their sockets alone",
                policy.interface(),
                policy.name()
            ),
            fix: Some(Fix::advice(
                "give the container its own policy by an annotation, or set other_netns = \"refuse\" in this policy, which refuses \
                 the sockets of such processes",
            )),
        });
        let detail = match held.as_slice() {
            [] => "all processes are in the network namespace of the policy".to_owned(),
            held => held.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        };
        report.conclude(Topic::OtherNetns, Subject::Cgroup(attached.path.clone()), found.collect(), detail);
    }
    Ok(())
}
