//! Cgroups that the configuration names and nothing steers, as after the restart of a service while no daemon runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    host::cgroup::Hierarchy,
    model::{cgroup_path::CgroupPath, policy::Policies},
};

/// A cgroup that has no attachment, although a policy names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Unsteered {
    /// The cgroup.
    pub path: CgroupPath,
    /// The name of the policy.
    pub policy: String,
}

/// Finds them among these cgroups. `attached` returns whether the attachment of a cgroup is manual; `None` without an attachment.
pub(crate) fn among<'a>(
    policies: &Policies,
    cgroups: impl Iterator<Item = &'a CgroupPath>,
    attached: impl Fn(&CgroupPath) -> Option<bool>,
) -> Vec<Unsteered> {
    let is_manual = |path: &CgroupPath| attached(path).unwrap_or_default();
    let unattached = cgroups.filter(|path| attached(path).is_none());
    let unsteered = unattached.filter_map(|path| {
        let policy = &policies.configured()[policies.attaching(path, is_manual)?];
        Some(Unsteered { path: path.clone(), policy: policy.name.clone() })
    });
    unsteered.collect()
}

/// The cgroups that the policies could name.
pub(crate) fn candidates(policies: &Policies, hierarchy: &Hierarchy) -> Vec<CgroupPath> {
    let mut found = Vec::new();
    let mut pending = vec![CgroupPath::root()];
    while let Some(path) = pending.pop() {
        if policies.may_name_below(&path) {
            // A cgroup that cannot be listed is gone, or nobody can name the cgroups below it.
            pending.extend(hierarchy.children(&path).unwrap_or_default().into_iter().map(|child| child.path));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::among;
    use crate::model::{cgroup_path::CgroupPath, config, policy::Policies};

    #[test]
    fn only_what_a_policy_should_have() {
        let text = "[[policy]]\nname = \"p\"\ninterface = \"a\"\ncgroups = [\"/s/*\", \"/s/*/*\"]\n";
        let policies = Policies::new(config::parse("f.toml", text).expect("valid"));
        let paths: Vec<CgroupPath> =
            ["/", "/s", "/s/1", "/s/1/2", "/s/3"].map(|path| path.parse().expect("a path")).into();
        let found = |attached: &[&str]| {
            let is = |path: &CgroupPath| attached.contains(&path.as_str()).then_some(false);
            among(&policies, paths.iter(), is).into_iter().map(|it| it.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(&[]), ["/s/1", "/s/3"]);
        assert_eq!(found(&["/s/1"]), ["/s/3"], "the cgroup in it has the same policy");
    }
}
