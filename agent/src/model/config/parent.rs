//! `parent` of policies and of `[containers]`: one policy holds all of them closed.

use toml::{Spanned, de::DeValue};

use super::{
    Policy, UNCLASSIFIED,
    parse::{Claims, Place},
    reader::Reader,
};
use crate::model::{
    cgroup_path::CgroupPath,
    spec::{Named, Pattern},
};

impl Reader<'_> {
    /// Adds a cgroup to the policy that holds each `parent` closed.
    pub(super) fn hold(
        &mut self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parent: &CgroupPath,
        claims: &mut Claims,
        policies: &mut Vec<Policy>,
    ) {
        let file = &self.source.file;
        let place = Place { file: file.clone(), index: 0, name: Some(UNCLASSIFIED.to_owned()) };
        let is_other = |first: &Place| first.name.as_deref() != Some(UNCLASSIFIED);
        let held = claims.cgroups.insert((Named::Cgroup.key(), parent.as_str().to_owned()), place.clone());
        let is_new = held.is_none();
        let position = policies.iter().position(Policy::is_closed);
        let named = claims.names.insert(UNCLASSIFIED.to_owned(), place).filter(|_| position.is_none());
        if let Some(first) = held.filter(is_other).or(named) {
            let first = first.seen_from(&self.source.file);
            let message = format!(
                "{first} already has these cgroups or the name {UNCLASSIFIED:?}; `parent` makes a policy of that name"
            );
            self.wrong(key, value, message);
        } else if is_new && let Ok(pattern) = Pattern::parse(parent.as_str()) {
            let position = position.unwrap_or_else(|| {
                policies.push(Policy::unclassified(file));
                policies.len() - 1
            });
            policies[position].cgroups.push(pattern);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::config::parse;

    #[test]
    fn parents_are_one_closed_policy() {
        let policy = |name: &str, cgroup: &str, parent: &str| {
            format!(
                "[[policy]]\nname = \"{name}\"\ninterface = \"a\"\ncgroups = [\"{cgroup}\"]\nparent = \"{parent}\"\n"
            )
        };
        let containers = "[containers]\nparent = \"/k\"\n".to_owned();
        let text =
            [containers, policy("b", "/s/b", "/s"), policy("c", "/s/c", "/s/"), policy("d", "/t/*", "/t")].concat();
        let config = parse("f.toml", &text).expect("valid");
        let [held] = &config.policies.iter().filter(|policy| policy.is_closed()).collect::<Vec<_>>()[..] else {
            panic!("{config:?}")
        };
        let patterns: Vec<_> = held.cgroups.iter().map(|pattern| pattern.as_str().trim_end_matches('/')).collect();
        assert_eq!(patterns, ["/k", "/s", "/t"]);
        for (text, want) in [
            (
                policy("a", "/s", "/s"),
                "f.toml:5:10: policy \"a\": parent = \"/s\": nothing that the policy names is in it",
            ),
            (policy("a", "/s/a", "/"), "f.toml:5:10: policy \"a\": parent = \"/\": it is the root cgroup"),
            (policy("a", "/s/a", "/*"), "f.toml:5:10: policy \"a\": parent = \"/*\": expected the path of one cgroup"),
            (
                policy("a", "/s/a", "/s") + &policy("b", "/s", "/"),
                "f.toml:9:12: policy \"b\": cgroups = \"/s\": policy \"unclassified\"",
            ),
            (
                policy("unclassified", "/s/a", "/s"),
                "f.toml:5:10: policy \"unclassified\": parent = \"/s\": policy \"unclassified\" already has",
            ),
        ] {
            let problems = parse("f.toml", &text).expect_err("mistakes").to_string();
            assert!(problems.starts_with(want), "{want}\nin\n{problems}");
        }
    }
}
