//! The configuration as it is on the disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    groups::{Group, Member},
    policy::{Dns, Level, Policy, Spec, real},
    reach::Reach,
};
use crate::model::operation::GROUPS;

/// The file, and those in `policies.d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) main: Vec<Policy>,
    /// `parent` of `[containers]`.
    pub(crate) parent: Option<&'static str>,
    /// `parent` of a policy.
    pub(crate) held: Option<&'static str>,
    /// `enforce` of `[containers]`.
    pub(crate) least: Level,
    /// `local` and `except` of `[containers]`.
    pub(crate) grants: Reach,
    /// `[[uplink]]`.
    pub(crate) groups: Vec<Group>,
    /// By name.
    pub(crate) stored: BTreeMap<&'static str, Policy>,
}

/// A policy that names no cgroup, so that a configuration is never empty by accident.
fn last() -> Policy {
    Policy::new("last", Spec::by("a0"), &[])
}

impl Files {
    pub(crate) fn new(main: Vec<Policy>) -> Self {
        let main = std::iter::once(last()).chain(main).collect();
        let member = |link, tier| Member { link, tier, weight: 1, dns: Dns { v4: link == "a2", v6: false } };
        let group = |name, members| Group { name, members, probed: false, by_socket: false };
        let groups = vec![
            group(GROUPS[0], vec![member("a1", 1), member("a2", 2)]),
            group(GROUPS[1], vec![member("a2", 1), member("a0", 1), member("a1", 2)]),
            Group::auto(false, false),
        ];
        let (parent, held, stored) = (None, None, BTreeMap::new());
        Self { main, parent, held, least: Level::Strict, grants: Reach::NONE, groups, stored }
    }

    /// All policies in the order in which they count; none if they cannot be together.
    pub(crate) fn policies(&self) -> Option<Vec<Policy>> {
        let mut policies = self.main.clone();
        let held: Vec<_> = self.parent.into_iter().chain(self.held).collect();
        policies.extend((!held.is_empty()).then(|| Policy::new("unclassified", Spec::CLOSED, &held)));
        policies.extend(self.stored.values().cloned());
        let (mut names, mut patterns) = (BTreeSet::new(), BTreeSet::new());
        let unique = |policy: &Policy| {
            names.insert(policy.name) && policy.patterns.iter().all(|pattern| patterns.insert(*pattern))
        };
        policies.iter().all(unique).then_some(policies)
    }

    /// The text of the file.
    pub(crate) fn text(&self) -> String {
        if self.main.is_empty() && self.parent.is_none() {
            return String::new();
        }
        let parent = self.parent.map(|parent| format!("parent = \"@{}\"\n", real(parent))).unwrap_or_default();
        let containers = format!(
            "[containers]\npolicies = [\"*\"]\ninterfaces = [\"a0\", \"a1\", \"g0\", \"a1+a2\"]\nenforce = \"{}\"\n{parent}{}",
            self.least.name(),
            self.grants.keys()
        );
        let held = self.held.map(|held| format!("parent = \"@{}\"\n", real(held)));
        let policies = self.main.iter().map(|policy| match &held {
            Some(held) if policy.name == last().name => policy.text() + held,
            _ => policy.text(),
        });
        let groups = self.groups.iter().map(Group::text);
        std::iter::once(containers).chain(groups).chain(policies).collect()
    }
}
