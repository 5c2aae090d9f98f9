//! Finds programs of other owners on the hooks that steer uses: exclusive ones, which steer's cannot be attached beside, and
//! those that run after steer's and may bind the socket again.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::program;

use super::{Finding, Fix, Report, Severity, Subject, Topic, survey::Survey};
use crate::{
    apply::resolve,
    kernel::{
        inspect,
        others::{self, Admits, OnHook, Program},
    },
    model::{cgroup_path::CgroupPath, policy::Policies},
};

/// The programs on the cgroups of policies, and on the cgroups above them.
pub(super) struct Foreign<'a> {
    survey: &'a Survey,
    programs: BTreeMap<CgroupPath, Vec<OnHook>>,
    /// The cgroups that policies are or should be attached to, with the flags of the policy.
    steered: BTreeMap<CgroupPath, u32>,
}

/// The exclusive programs of one cgroup.
#[derive(Default)]
struct Exclusive<'a> {
    /// By hook. Each hook can have only one.
    programs: BTreeMap<&'static str, &'a Program>,
    keeps_out: Vec<&'a CgroupPath>,
}

impl<'a> Foreign<'a> {
    pub(super) fn read(survey: &'a Survey) -> Self {
        let mut steered = wanted(survey);
        for attached in &survey.attached {
            let flags = attached.policy.as_ref().map_or(0, |policy| policy.record.flags);
            steered.insert(attached.path.clone(), flags);
        }
        let mut programs = BTreeMap::new();
        let paths: BTreeSet<_> = steered.keys().flat_map(CgroupPath::self_and_ancestors).collect();
        if let Some(hierarchy) = &survey.hierarchy {
            // A cgroup that was removed in the meantime is skipped.
            for cgroup in paths.iter().filter_map(|path| hierarchy.open(path).ok()) {
                programs.insert(cgroup.path.clone(), others::programs_on(survey.pins.as_ref(), &cgroup));
            }
        }
        Self { survey, programs, steered }
    }

    /// Whether an exclusive program prevents the attachment of a policy with these flags to a cgroup.
    pub(super) fn forbids(&self, path: &CgroupPath, flags: u32) -> bool {
        !self.forbidding(path, flags).is_empty()
    }

    /// The cgroups, at `path` and above it, that have such programs.
    fn forbidding(&self, path: &CgroupPath, flags: u32) -> BTreeMap<CgroupPath, Vec<&OnHook>> {
        let asked = inspect::hooks_asked(flags, None);
        let mut forbidding: BTreeMap<CgroupPath, Vec<&OnHook>> = BTreeMap::new();
        let mut nearest = BTreeSet::new();
        for holder in path.self_and_ancestors() {
            for on in self.programs.get(&holder).into_iter().flatten() {
                // Above, the programs of the nearest cgroup decide.
                let decides = holder == *path || nearest.insert(on.hook);
                if decides && on.admits != Admits::All && asked.contains(&on.hook) {
                    forbidding.entry(holder.clone()).or_default().push(on);
                }
            }
        }
        forbidding
    }

    pub(super) fn check(&self, report: &mut Report) {
        if self.steered.is_empty() || self.programs.is_empty() {
            for id in [Topic::ForeignExclusive, Topic::ForeignBinding] {
                report.not_applicable(id, Subject::Host, "no cgroup is steered, and none should be");
            }
            return;
        }
        let checked = format!("none on the cgroups that were checked: {}", self.programs.len());
        report.conclude(Topic::ForeignExclusive, Subject::Host, self.exclusive(), checked.as_str());
        report.conclude(Topic::ForeignBinding, Subject::Host, self.after(), checked.as_str());
    }

    fn exclusive(&self) -> Vec<Finding> {
        let mut holders: BTreeMap<CgroupPath, Exclusive<'_>> = BTreeMap::new();
        for (path, flags) in &self.steered {
            for (holder, hooks) in self.forbidding(path, *flags) {
                let exclusive = holders.entry(holder).or_default();
                exclusive.keeps_out.push(path);
                exclusive.programs.extend(hooks.iter().filter_map(|on| Some((on.hook, on.programs.first()?))));
            }
        }
        holders.into_iter().map(|(holder, exclusive)| self.exclusive_finding(holder, &exclusive)).collect()
    }

    fn exclusive_finding(&self, holder: CgroupPath, exclusive: &Exclusive<'_>) -> Finding {
        let is_whole = |path: &CgroupPath| self.survey.attached(path).is_some_and(|at| at.attachment.complete);
        let programs = &exclusive.programs;
        let names: Vec<_> = programs.iter().map(|(hook, program)| format!("{program} at {hook}")).collect();
        let detach: Vec<_> = programs.iter().map(|(hook, program)| self.detach(&holder, hook, program)).collect();
        let unsteered = exclusive.keeps_out.iter().filter(|path| !is_whole(path));
        let unsteered: Vec<_> = unsteered.map(ToString::to_string).collect();
        let (severity, why) = if unsteered.is_empty() {
            let why = "the steered cgroups stay steered, but can be neither repaired nor attached again";
            (Severity::Warning, why.to_owned())
        } else {
            (Severity::Error, format!("steer cannot attach its programs to {}", unsteered.join(", ")))
        };
        Finding {
            id: Topic::ForeignExclusive,
            severity,
            what: format!(
                "{}, attached exclusively, as `ip vrf exec` does, or so that any program below would switch it off \
                 (BPF_F_ALLOW_OVERRIDE): no other program can be attached",
                names.join("; ")
            ),
            why,
            fix: Some(Fix::command(detach.join(" && "))),
            subject: Subject::Cgroup(holder),
        }
    }

    /// Programs of other owners that run after steer's: later on the same cgroup, or on a cgroup above.
    fn after(&self) -> Vec<Finding> {
        let mut after: BTreeMap<(&CgroupPath, &str, u32), &Program> = BTreeMap::new();
        for path in self.steered.keys() {
            let Some(own) = self.programs.get_key_value(path) else { continue };
            let above = path.ancestors().into_iter().filter_map(|path| self.programs.get_key_value(&path));
            for on in own.1 {
                after.extend(on.behind_ours().iter().map(|program| ((own.0, on.hook, program.id), program)));
            }
            for (holder, on) in above.flat_map(|(holder, hooks)| hooks.iter().map(move |on| (holder, on))) {
                // An exclusive program above does not run for a cgroup that has its own.
                if on.admits == Admits::All {
                    let foreign = on.programs.iter().filter(|program| !program.ours);
                    after.extend(foreign.map(|program| ((holder, on.hook, program.id), program)));
                }
            }
        }
        let found = after.into_iter().filter_map(|((holder, hook, _), program)| {
            // The program of `steer top` only counts.
            let (severity, why) = severity(hook).filter(|_| !program.only_counts())?;
            Some(Finding {
                id: Topic::ForeignBinding,
                severity,
                subject: Subject::Cgroup(holder.clone()),
                what: format!("{program} at {hook} runs after steer's program"),
                why: why.to_owned(),
                fix: Some(Fix::command(self.detach(holder, hook, program))),
            })
        });
        found.collect()
    }

    fn detach(&self, holder: &CgroupPath, hook: &str, program: &Program) -> String {
        match others::link_of(program.id) {
            Some(link) => format!("bpftool link detach id {link}"),
            None => format!("bpftool cgroup detach {} {hook} id {}", self.survey.directory(holder), program.id),
        }
    }
}

/// What another program can do after steer's on this hook. `None`: it can only stop the call or the packet.
fn severity(hook: &str) -> Option<(Severity, &'static str)> {
    const BINDS: &str = "it may bind the socket to another interface: with enforce = \"strict\" its packets are then stopped, with \
                         \"steer\" they leave there";
    const REDIRECTS: &str = "it may change the address of the call, or bind the socket to another interface";
    match hook {
        program::SOCK_CREATE => Some((Severity::Warning, BINDS)),
        program::CONNECT4
        | program::CONNECT6
        | program::SENDMSG4
        | program::SENDMSG6
        | program::BIND4
        | program::BIND6 => Some((Severity::Info, REDIRECTS)),
        _ => None,
    }
}

/// The cgroups that the configuration names, with the flags of their policies.
fn wanted(survey: &Survey) -> BTreeMap<CgroupPath, u32> {
    let policies = Policies::new(survey.config.clone());
    let flags: Vec<u32> = policies.targets().map(|(_, target)| resolve::flags(&target.enforcement)).collect();
    let named = survey.cgroups.iter().filter_map(|found| {
        let index = policies.attaching(&found.path, |_| false)?;
        Some((found.path.clone(), *flags.get(index)?))
    });
    named.collect()
}
