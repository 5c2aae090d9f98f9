//! Programs of others on the hooks that steer uses: those that keep steer's from being attached, and those that have the last
//! word on a socket.

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

/// What is attached to the cgroups that policies hold for, and to those above them.
pub(super) struct Foreign<'a> {
    survey: &'a Survey,
    programs: BTreeMap<CgroupPath, Vec<OnHook>>,
    /// The cgroups that policies are or should be attached to, with the flags of the policy.
    steered: BTreeMap<CgroupPath, u32>,
}

/// The programs of one cgroup that admit no other.
#[derive(Default)]
struct Exclusive<'a> {
    /// By hook; there can be but one at each.
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
            // One that is gone meanwhile needs no look.
            for cgroup in paths.iter().filter_map(|path| hierarchy.open(path).ok()) {
                programs.insert(cgroup.path.clone(), others::programs_on(survey.pins.as_ref(), &cgroup));
            }
        }
        Self { survey, programs, steered }
    }

    /// Whether somebody else's program keeps a policy with these flags from being attached to a cgroup.
    pub(super) fn forbids(&self, path: &CgroupPath, flags: u32) -> bool {
        !self.forbidding(path, flags).is_empty()
    }

    /// The cgroups, at `path` and above it, that have such programs.
    fn forbidding(&self, path: &CgroupPath, flags: u32) -> BTreeMap<CgroupPath, Vec<&OnHook>> {
        let asked = inspect::hooks_asked(flags, None);
        let mut forbidding: BTreeMap<CgroupPath, Vec<&OnHook>> = BTreeMap::new();
        for holder in path.self_and_ancestors() {
            for on in self.programs.get(&holder).into_iter().flatten() {
                let forbids = on.admits == Admits::Nothing || (on.admits == Admits::Below && holder == *path);
                if forbids && asked.contains(&on.hook) {
                    forbidding.entry(holder.clone()).or_default().push(on);
                }
            }
        }
        forbidding
    }

    pub(super) fn look(&self, report: &mut Report) {
        if self.steered.is_empty() || self.programs.is_empty() {
            for id in [Topic::ForeignExclusive, Topic::ForeignBinding] {
                report.not_applicable(id, Subject::Host, "no cgroup is steered or should be");
            }
            return;
        }
        let looked_at = format!("none on steered cgroups and those around them: {}", self.programs.len());
        report.conclude(Topic::ForeignExclusive, Subject::Host, self.exclusive(), looked_at.as_str());
        report.conclude(Topic::ForeignBinding, Subject::Host, self.after(), looked_at.as_str());
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
            let why = "what is steered stays so, but can be neither mended nor attached again";
            (Severity::Warning, why.to_owned())
        } else {
            (Severity::Error, format!("steer cannot attach its own to {}", unsteered.join(", ")))
        };
        Finding {
            id: Topic::ForeignExclusive,
            severity,
            what: format!("{}, attached in a way that admits no other, as `ip vrf exec` does", names.join("; ")),
            why,
            fix: Some(Fix::command(detach.join(" && "))),
            subject: Subject::Cgroup(holder),
        }
    }

    /// Programs of others that run after steer's: on the same cgroup behind it, or on one above.
    fn after(&self) -> Vec<Finding> {
        let mut after: BTreeMap<(&CgroupPath, &str, u32), &Program> = BTreeMap::new();
        for path in self.steered.keys() {
            let Some(own) = self.programs.get_key_value(path) else { continue };
            let above = path.ancestors().into_iter().filter_map(|path| self.programs.get_key_value(&path));
            for on in own.1 {
                after.extend(on.behind_ours().iter().map(|program| ((own.0, on.hook, program.id), program)));
            }
            for (holder, on) in above.flat_map(|(holder, hooks)| hooks.iter().map(move |on| (holder, on))) {
                // The others do not run for a cgroup that has its own.
                if on.admits == Admits::All {
                    let foreign = on.programs.iter().filter(|program| !program.ours);
                    after.extend(foreign.map(|program| ((holder, on.hook, program.id), program)));
                }
            }
        }
        let found = after.into_iter().filter_map(|((holder, hook, _), program)| {
            // That of `steer top` only counts.
            let (severity, why) = severity(hook).filter(|_| !program.only_counts())?;
            Some(Finding {
                id: Topic::ForeignBinding,
                severity,
                subject: Subject::Cgroup(holder.clone()),
                what: format!("{program} at {hook} runs after steer's"),
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

/// What a program of somebody else can do after steer's on that hook. `None`: no more than stop something.
fn severity(hook: &str) -> Option<(Severity, &'static str)> {
    const BINDS: &str = "it may bind the socket to another interface: with enforce = \"strict\" nothing gets out then, with \
                         \"steer\" it gets out there";
    const TURNS: &str = "it may turn the call to another address, or bind the socket to another interface";
    match hook {
        program::SOCK_CREATE => Some((Severity::Warning, BINDS)),
        program::CONNECT4
        | program::CONNECT6
        | program::SENDMSG4
        | program::SENDMSG6
        | program::BIND4
        | program::BIND6 => Some((Severity::Info, TURNS)),
        _ => None,
    }
}

/// What the configuration would have attached, with the flags of its policies.
fn wanted(survey: &Survey) -> BTreeMap<CgroupPath, u32> {
    let policies = Policies::new(survey.config.clone());
    let flags: Vec<u32> = policies.targets().map(|(_, target)| resolve::flags(&target.enforcement)).collect();
    let named = survey.cgroups.iter().filter_map(|found| {
        let index = policies.attaching(&found.path, |_| false)?;
        Some((found.path.clone(), *flags.get(index)?))
    });
    named.collect()
}
