//! Decides which policy applies to a cgroup.
//!
//! **Invariant:** the result for a cgroup does not depend on the order in which cgroups and interfaces appear.

use std::path::Path;

use crate::model::{
    cgroup_path::CgroupPath,
    config::{self, Config, RouteConfig},
    mark::MarkMask,
    spec::{Pattern, Target},
    uplink::group::Group,
};

/// The policies of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    configured: Vec<config::Policy>,
    route: RouteConfig,
    uplinks: Vec<Group>,
}

impl Policies {
    /// Takes a configuration's policies.
    pub fn new(config: Config) -> Self {
        Self { configured: config.policies, route: config.route, uplinks: config.uplinks }
    }

    /// The groups of uplinks.
    pub fn uplinks(&self) -> &[Group] {
        &self.uplinks
    }

    /// The bits of marks that are steer's.
    pub fn marks(&self) -> MarkMask {
        self.route.marks()
    }

    /// A file that has lost all the policies which it has here: see [`emptied`].
    pub fn emptied_by<'a>(&self, next: &'a Config) -> Option<&'a str> {
        emptied(|file| has_policy(&self.configured, file), next)
    }

    /// As configured.
    pub fn configured(&self) -> &[config::Policy] {
        &self.configured
    }

    /// Their names and targets, by index.
    pub fn targets(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.configured.iter().map(|policy| (policy.name.as_str(), &policy.target))
    }

    /// Index of the policy that names exactly this cgroup. A plain path comes before a glob, then the first policy in the file.
    pub fn naming(&self, path: &CgroupPath) -> Option<usize> {
        let parts = path.parts().collect::<Vec<_>>();
        naming(&self.configured.iter().map(|policy| policy.cgroups.as_slice()), &parts)
    }

    fn find(&self, parts: &[&str], literal: bool) -> Option<usize> {
        self.configured.iter().position(|policy| {
            policy.cgroups.iter().any(|pattern| pattern.is_literal() == literal && pattern.matches(parts))
        })
    }

    /// Index of the policy to attach to this cgroup: the policy that names it. `None` if only a glob names it and the nearest
    /// attached cgroup above has the same policy, which then applies here too. `manual` returns whether a cgroup has a policy
    /// other than the configuration's.
    pub fn attaching(&self, path: &CgroupPath, manual: impl Fn(&CgroupPath) -> bool) -> Option<usize> {
        let own = self.naming(path)?;
        let parts = path.parts().collect::<Vec<_>>();
        if self.find(&parts, true).is_some() {
            return Some(own);
        }
        let outer = path
            .ancestors()
            .into_iter()
            .find_map(|ancestor| if manual(&ancestor) { Some(None) } else { self.naming(&ancestor).map(Some) });
        (outer != Some(Some(own))).then_some(own)
    }

    /// The policy that a manual attachment of a cgroup goes before. Not one that only holds containers closed until they are attached.
    pub fn before_manual(&self, path: &CgroupPath) -> Option<&config::Policy> {
        let policy = &self.configured[self.naming(path)?];
        (!policy.is_closed()).then_some(policy)
    }

    /// Whether a policy could name a cgroup below this one.
    pub fn may_name_below(&self, path: &CgroupPath) -> bool {
        let parts = path.parts().collect::<Vec<_>>();
        self.configured.iter().any(|policy| policy.cgroups.iter().any(|pattern| pattern.may_match_below(&parts)))
    }
}

/// A file that `had` policies and has none in the next configuration, or a directory of such files that is gone. That is more likely a
/// mistake, such as a file that is being written, or a directory that is mounted late, than meant. A policy whose file was removed is meant
/// to go.
pub fn emptied(had: impl Fn(&str) -> bool, next: &Config) -> Option<&str> {
    let is_emptied = |file: &&String| had(file) && !has_policy(&next.policies, file);
    next.files.iter().chain(&next.missing).find(is_emptied).map(String::as_str)
}

/// Whether one of the policies is in this file, or in a file of this directory.
fn has_policy(policies: &[config::Policy], file: &str) -> bool {
    let is_in = |policy: &config::Policy| policy.file == file || is_of_directory(&policy.file, file);
    policies.iter().any(|policy| is_in(policy) && !policy.is_closed())
}

/// Whether a file is in this directory.
pub fn is_of_directory(file: &str, directory: &str) -> bool {
    Path::new(file).parent() == Some(Path::new(directory))
}

/// Position of the policy that names exactly this cgroup, given what each names: one that names it by a path, a unit or a user comes before
/// one with a glob for it, then the first.
pub fn naming<'p>(named: &(impl Iterator<Item = &'p [Pattern]> + Clone), parts: &[&str]) -> Option<usize> {
    let find = |literal: bool| {
        let names_it = |pattern: &Pattern| pattern.is_literal() == literal && pattern.matches(parts);
        named.clone().position(|patterns| patterns.iter().any(names_it))
    };
    find(true).or_else(|| find(false))
}

#[cfg(test)]
mod tests {
    use super::Policies;
    use crate::model::{
        cgroup_path::CgroupPath,
        config::{self},
    };

    fn policies() -> Policies {
        let text = r#"
            [[policy]]
            name = "wide"
            interface = "a0"
            cgroups = ["/s/**"]
            [[policy]]
            name = "glob"
            interface = "a1"
            cgroups = ["/s/*/g", "/u/*"]
            [[policy]]
            name = "plain"
            interface = "none"
            cgroups = ["/s/x", "/s/x/g"]
        "#;
        Policies::new(config::parse("test", text).expect("valid"))
    }

    fn path(text: &str) -> CgroupPath {
        text.parse().expect("a path")
    }

    #[test]
    fn every_cgroup_has_one_policy() {
        let policies = policies();
        let cases = [
            ("/", None, None),
            ("/t", None, None),
            ("/s", Some(0), Some(0)),
            ("/s/y", Some(0), None),
            ("/s/y/g", Some(0), None),
            ("/s/x", Some(2), Some(2)),
            ("/s/x/y", Some(0), Some(0)),
            ("/s/x/g", Some(2), Some(2)),
            ("/u/v", Some(1), Some(1)),
            ("/u/v/w", None, None),
        ];
        for (text, naming, attaching) in cases {
            assert_eq!(policies.naming(&path(text)), naming, "{text} is named by");
            assert_eq!(policies.attaching(&path(text), |_| false), attaching, "{text} is attached to");
        }
        // A cgroup in between has a manual attachment.
        assert_eq!(policies.attaching(&path("/s/y/g"), |outer| *outer == path("/s/y")), Some(0));
    }

    #[test]
    fn a_file_that_loses_all_its_policies() {
        let source = |file: &str, text: &str| config::Source { file: file.to_owned(), text: text.to_owned() };
        let policy =
            |name: &str| format!("[[policy]]\nname = \"{name}\"\ninterface = \"a0\"\ncgroups = [\"/{name}\"]\n");
        let read = |sources: &[config::Source]| config::parse_all(sources).expect("valid");
        let (a, b) = (source("a.toml", &policy("a")), source("b.toml", &policy("b")));
        let both = Policies::new(read(&[a.clone(), b.clone()]));
        assert_eq!(both.emptied_by(&read(&[source("a.toml", ""), b.clone()])), Some("a.toml"));
        assert_eq!(both.emptied_by(&read(&[a, source("b.toml", "# nothing")])), Some("b.toml"));
        assert_eq!(both.emptied_by(&read(&[b])), None, "the file was removed");
        let (main, own) = (source("d/a.toml", &policy("a")), source("d/policies.d/b.toml", &policy("b")));
        let both = Policies::new(read(&[main.clone(), own]));
        let lost = config::Config { missing: vec!["d/policies.d".to_owned(), "run".to_owned()], ..read(&[main]) };
        assert_eq!(both.emptied_by(&lost), Some("d/policies.d"));
    }

    #[test]
    fn watches_only_where_something_can_appear() {
        let policies = policies();
        for (text, may) in [("/", true), ("/s/q/r", true), ("/u", true), ("/u/v", false), ("/t", false)] {
            assert_eq!(policies.may_name_below(&path(text)), may, "{text}");
        }
    }
}
