//! The chain of cgroups from the root to the target, and the attachment that decides. Pure.

use std::net::IpAddr;

use steer_common::{Line, program};

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

/// The state of one cgroup of the chain.
pub(super) struct Level {
    pub(super) path: CgroupPath,
    pub(super) attached: Option<Attached>,
    /// Whether another version of steer has something attached.
    pub(super) other_version: bool,
    /// All programs on this hook.
    pub(super) sock_create: Option<OnHook>,
}

/// An attachment with its policy.
pub(super) struct Attached {
    pub(super) attachment: Attachment,
    /// `None`: it names no policy that exists.
    pub(super) policy: Option<PolicyEntry>,
    pub(super) difference: Difference,
}

/// What decides about a new socket.
#[derive(Clone, Copy)]
pub(super) enum Deciding<'a> {
    /// The innermost attachment with the program that binds.
    Attachment(&'a Level, &'a Attached),
    /// The attachment of another version of steer.
    OtherVersion(&'a Level),
    Nobody,
}

/// Programs of nested cgroups run from the innermost to the outermost. The first program of steer that runs decides.
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

    /// The line of new sockets.
    pub(super) fn line(&self) -> Line {
        self.policy.as_ref().map_or(Line::CLOSED, |policy| policy.line_of(self.attachment.cgroup_id))
    }

    /// The resolvers for queries of new sockets.
    pub(super) fn resolvers(&self) -> Vec<IpAddr> {
        let line = self.line();
        let mut uplinks = self.policy.iter().flat_map(PolicyEntry::uplinks);
        uplinks.find(|uplink| uplink.line == line).map(|uplink| uplink.resolvers).unwrap_or_default()
    }

    /// The name of its policy for a sentence.
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

    /// The programs of other owners.
    pub(super) fn foreign(&self, deciding: Deciding<'_>) -> Vec<Foreign> {
        let Some(on) = &self.sock_create else { return Vec::new() };
        let runs_last = |id: u32| match deciding {
            Deciding::Attachment(decider, _) if decider.path == self.path => {
                on.behind_ours().iter().any(|program| program.id == id)
            }
            // An exclusive program does not run for a cgroup below that has its own.
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

    /// The program on this cgroup that prevents an attachment of steer to `path`: an exclusive one, or one that it would switch off.
    pub(super) fn keeps_out(&self, path: &CgroupPath) -> Option<String> {
        let on = self.sock_create.as_ref()?;
        let program = on.programs.first().filter(|_| on.admits != Admits::All && path.is_in(&self.path))?;
        let effect = if on.admits == Admits::Below { "would be switched off" } else { "excludes all others" };
        Some(format!("{program}, attached to {}, {effect}", self.path))
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
                key: pattern.named().key(),
                kind: if pattern.is_literal() { Kind::Path } else { Kind::Glob },
                file: policy.file.clone(),
                wins: naming == Some(index),
            });
        }
    }
    matches
}

/// The pattern that selects the policy for a cgroup. A path is preferred among the winning patterns.
pub(super) fn winner(matches: &[Match]) -> Option<&Match> {
    let mut winning = matches.iter().filter(|found| found.wins);
    let path = winning.clone().find(|found| found.kind == Kind::Path);
    path.or_else(|| winning.next())
}
