//! The chain of cgroups from the root to the target, and which attachment of it decides. Pure.

use steer_common::program;

use super::document::{self, Cgroup, Foreign, Kind, Match};
use crate::{
    apply::resolve,
    kernel::{
        Attachment, PolicyEntry,
        inspect::Difference,
        others::{Admits, OnHook},
    },
    model::{cgroup_path::CgroupPath, policy::Policies},
    observe::status::Origin,
};

/// What was seen of one cgroup.
pub(super) struct Level {
    pub(super) path: CgroupPath,
    pub(super) attached: Option<Attached>,
    /// Whether another version of steer has something attached.
    pub(super) other_version: bool,
    /// The programs on that hook, whosoever they are.
    pub(super) sock_create: Option<OnHook>,
}

/// An attachment, with what it says of itself looked up.
pub(super) struct Attached {
    pub(super) attachment: Attachment,
    /// `None`: it names none that there is.
    pub(super) policy: Option<PolicyEntry>,
    pub(super) difference: Difference,
}

/// Who decides about a new socket.
#[derive(Clone, Copy)]
pub(super) enum Deciding<'a> {
    /// The innermost attachment with the program that binds.
    Attachment(&'a Level, &'a Attached),
    /// That of another version.
    OtherVersion(&'a Level),
    Nobody,
}

/// Programs of nested cgroups run from the inside out, and the first of steer's that runs decides.
pub(super) fn deciding(levels: &[Level]) -> Deciding<'_> {
    for level in levels.iter().rev() {
        match &level.attached {
            Some(attached) if attached.binds() => return Deciding::Attachment(level, attached),
            _ if level.other_version => return Deciding::OtherVersion(level),
            _ => {}
        }
    }
    Deciding::Nobody
}

impl Attached {
    pub(super) fn binds(&self) -> bool {
        self.attachment.hooks.contains(&program::SOCK_CREATE)
    }

    /// Its policy's name, for a sentence.
    pub(super) fn policy_name(&self) -> String {
        self.policy.as_ref().map_or_else(|| "(none)".to_owned(), PolicyEntry::name)
    }

    pub(super) fn document(&self) -> document::Attached {
        let owned = |names: &[&'static str]| names.iter().map(|&name| name.to_owned()).collect();
        let policy = self.policy.as_ref();
        document::Attached {
            policy: policy.map(PolicyEntry::name),
            origin: policy.map(Origin::of),
            interface: policy.filter(|policy| !policy.exempts()).map(PolicyEntry::interface),
            enforce: policy.map(|policy| resolve::enforce(policy.record.flags)),
            manual: self.attachment.is_manual(),
            complete: self.attachment.complete,
            programs: owned(&self.attachment.hooks),
            missing: owned(&self.difference.missing),
            superfluous: owned(&self.difference.superfluous),
        }
    }
}

impl Level {
    pub(super) fn document(&self, policies: &Policies, deciding: Deciding<'_>) -> Cgroup {
        Cgroup {
            path: self.path.clone(),
            attached: self.attached.as_ref().map(Attached::document),
            other_version: self.other_version,
            matches: matches(policies, &self.path),
            foreign: self.foreign(deciding),
        }
    }

    /// The programs of others.
    pub(super) fn foreign(&self, deciding: Deciding<'_>) -> Vec<Foreign> {
        let Some(on) = &self.sock_create else { return Vec::new() };
        let runs_last = |id: u32| match deciding {
            Deciding::Attachment(decider, _) if decider.path == self.path => {
                on.behind_ours().iter().any(|program| program.id == id)
            }
            // Those that do not admit all others do not run for a cgroup below that has its own.
            Deciding::Attachment(decider, _) => decider.path.is_in(&self.path) && on.admits == Admits::All,
            Deciding::OtherVersion(_) | Deciding::Nobody => false,
        };
        let foreign = on.programs.iter().filter(|program| !program.ours).map(|program| Foreign {
            id: program.id,
            name: program.name.clone(),
            uid: program.uid,
            exclusive: on.admits != Admits::All,
            last_word: runs_last(program.id) && !program.only_counts(),
        });
        foreign.collect()
    }

    /// The program of somebody else's that keeps steer's from being attached to a cgroup, this one or one in it.
    pub(super) fn keeps_out(&self, path: &CgroupPath) -> Option<String> {
        let on = self.sock_create.as_ref()?;
        let forbids = on.admits == Admits::Nothing || on.admits == Admits::Below && *path == self.path;
        let program = on.programs.first().filter(|_| forbids && path.is_in(&self.path))?;
        Some(format!("{program}, on {}, admits no other", self.path))
    }
}

/// The patterns that match a cgroup, in the order of the configuration.
pub(super) fn matches(policies: &Policies, path: &CgroupPath) -> Vec<Match> {
    let parts = path.parts().collect::<Vec<_>>();
    let naming = policies.naming(path);
    let mut matches = Vec::new();
    for (index, policy) in policies.configured().iter().enumerate() {
        for pattern in policy.cgroups.iter().filter(|pattern| pattern.matches(&parts)) {
            matches.push(Match {
                policy: policy.name.clone(),
                pattern: pattern.as_str().to_owned(),
                kind: if pattern.is_literal() { Kind::Path } else { Kind::Glob },
                file: policy.file.clone(),
                wins: naming == Some(index),
            });
        }
    }
    matches
}

/// The pattern by which the configuration has its policy for a cgroup: of the winning ones a path, if there is one.
pub(super) fn winner(matches: &[Match]) -> Option<&Match> {
    let mut winning = matches.iter().filter(|found| found.wins);
    let path = winning.clone().find(|found| found.kind == Kind::Path);
    path.or_else(|| winning.next())
}
