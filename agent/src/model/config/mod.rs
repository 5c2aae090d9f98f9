//! Parses the configuration, and reports all mistakes at once, each with its place.
//!
//! **Invariant:** no I/O, and no state of this host. The caller reads the files.

mod allowed;
mod containers;
mod daemon;
mod defaults;
mod parent;
mod parse;
mod problem;
mod reader;
mod route;
mod uplinks;

use crate::model::{
    cgroup_path::CgroupPath,
    spec::{Allow, Known, Pattern, PolicySpec, Target, Uplink},
    uplink::group::{self, Group},
};

pub use allowed::Allowed;
pub use containers::{Containers, Missing};
pub use daemon::{DAEMON_KEYS, DaemonConfig};
pub use defaults::defaults;
pub use parse::{Source, parse, parse_all};
pub use problem::{Problem, Problems};
pub use route::{RouteConfig, route};
pub use uplinks::uplinks;

/// A configuration: one file, or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[[policy]]`, in the order of the files.
    pub policies: Vec<Policy>,
    /// `[containers]`.
    pub containers: Containers,
    /// `[defaults]`. The policies have them already.
    pub defaults: PolicySpec,
    /// `[route]`.
    pub route: RouteConfig,
    /// `[daemon]`.
    pub daemon: DaemonConfig,
    /// `[[uplink]]`.
    pub uplinks: Vec<Group>,
    /// The files that were read, also those without a policy.
    pub files: Vec<String>,
    /// The directories of such files that do not exist.
    pub missing: Vec<String>,
}

impl Config {
    /// How many marks the policies need: one for each uplink of a policy that reaches more than its uplink.
    pub fn marks(&self) -> usize {
        let reaches =
            |policy: &&Policy| !policy.target.reach.local.is_empty() || !policy.target.reach.except.is_empty();
        let marks = |policy: &Policy| match &policy.target.uplink {
            Uplink::Group(name) => group::named(&self.uplinks, name).map_or(1, |group| group.most_members()),
            Uplink::Interface(_) | Uplink::Closed => 1,
            Uplink::Exempt => 0,
        };
        self.policies.iter().filter(reaches).map(marks).sum()
    }

    /// What the policies name.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.policies.iter().flat_map(|policy| &policy.cgroups)
    }

    /// Adds what the host knows about users and units.
    pub fn resolve(&mut self, known: &Known) {
        self.policies.iter_mut().flat_map(|policy| &mut policy.cgroups).for_each(|pattern| pattern.resolve(known));
    }
}

/// Name of the policy that keeps each `parent` closed, of policies and of `[containers]`.
pub const UNCLASSIFIED: &str = "unclassified";

/// One `[[policy]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `name`: unique.
    pub name: String,
    /// What it does.
    pub target: Target,
    /// `cgroups`, `units`, `user_units` and `users`: where it applies.
    pub cgroups: Vec<Pattern>,
    /// `parent`: a cgroup around them that is held closed.
    pub parent: Option<CgroupPath>,
    /// `allow_users` and `allow_groups`: who may run commands by it.
    pub allow: Allow,
    /// The file it is in.
    pub file: String,
}

impl Policy {
    /// The policy that keeps cgroups closed, for sockets of every network namespace.
    fn unclassified(file: &str) -> Self {
        let (name, cgroups) = (UNCLASSIFIED.to_owned(), Vec::new());
        Self { name, target: Target::CLOSED, cgroups, parent: None, allow: Allow::default(), file: file.to_owned() }
    }

    /// Whether it is closed permanently.
    pub fn is_closed(&self) -> bool {
        self.target.uplink == Uplink::Closed
    }

    /// The name of its interface.
    pub fn interface(&self) -> Option<&str> {
        self.target.uplink.interface()
    }
}
