//! Parses the text of files to a [`Config`], or to a list of all mistakes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use steer_common::{POLICY_SLOTS, record::NAME_BYTES};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, Policy, Problems, daemon,
    defaults::{self, hint},
    reader::{Reader, unknown, written_name},
    route, uplinks,
};
use crate::model::{
    similar::nearest,
    spec::{self, Exceptions, KEYS, Named, PolicySpec},
    uplink::group::{self, GroupName},
};

/// Leaves slots for manual attachments, and for policies that change.
const MOST_POLICIES: usize = POLICY_SLOTS as usize / 2 - 1;

/// A file of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, for messages.
    pub file: String,
    /// Its content.
    pub text: String,
}

/// Parses a configuration of one file.
pub fn parse(file: &str, text: &str) -> Result<Config, Problems> {
    parse_all(&[Source { file: file.to_owned(), text: text.to_owned() }])
}

/// Parses a configuration of several files, as if each followed the one before. The first is the configuration file, the others are those
/// of single policies.
pub fn parse_all(sources: &[Source]) -> Result<Config, Problems> {
    let mut claims = Claims::default();
    let (mut config, mut problems) = (Config::default(), Vec::new());
    for source in sources {
        config.files.push(source.file.clone());
        let mut reader = Reader { source, problems: Vec::new() };
        let table = reader.table();
        // If the syntax is wrong, the meaning of the rest is uncertain.
        if reader.problems.is_empty() {
            reader.config(table.get_ref(), &mut claims, &mut config);
        }
        problems.append(&mut reader.sorted());
    }
    if problems.is_empty() { Ok(config) } else { Err(Problems { problems }) }
}

/// Names and cgroups that policies use, over all files.
#[derive(Default)]
pub(super) struct Claims {
    /// The policy of each name.
    pub(super) names: BTreeMap<String, Place>,
    /// The policy of each pattern, by its key and its text.
    pub(super) cgroups: BTreeMap<(&'static str, String), Place>,
    /// The file with `[containers]`.
    containers: Option<String>,
    /// The names of all groups of uplinks, also of those with mistakes.
    groups: Vec<String>,
}

/// A policy, for messages.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) index: usize,
    pub(super) name: Option<String>,
}

impl Place {
    /// The policy's name in a message about a file.
    pub(super) fn seen_from(&self, file: &str) -> String {
        let policy =
            self.name.as_ref().map_or_else(|| format!("policy {}", self.index + 1), |name| format!("policy {name:?}"));
        if self.file == file { policy } else { format!("{policy} of {}", self.file) }
    }
}

impl Reader<'_> {
    fn config(&mut self, table: &DeTable<'_>, claims: &mut Claims, config: &mut Config) {
        let is_main = config.files.len() == 1;
        // Before the policies, wherever it is written.
        if is_main {
            config.defaults = self.defaults(table);
            config.route = self.route(table);
            config.uplinks = self.uplinks(table);
            config.daemon = self.daemon(table);
            let tables = table.get(uplinks::NAME).and_then(|value| value.get_ref().as_array());
            let names = tables.into_iter().flat_map(|tables| tables.iter()).filter_map(written_name);
            claims.groups = names.map(str::to_owned).collect();
        }
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "policy" => self.policies(value, claims, config),
                "containers" => self.claim_containers(value, claims, config),
                daemon::NAME | defaults::NAME | route::NAME | uplinks::NAME if is_main => {}
                name @ (daemon::NAME | defaults::NAME | route::NAME | uplinks::NAME) => {
                    let main = config.files.first().map(String::as_str).unwrap_or_default();
                    let message = format!("expected in {main} only: it is for all files of policies");
                    self.problem(key.span(), name, "", message);
                }
                other => {
                    let expected = "[[policy]], [[uplink]], [defaults], [daemon], [containers] or [route]";
                    let known = ["policy", uplinks::NAME, defaults::NAME, "daemon", "containers", route::NAME];
                    self.problem(key.span(), other, "", unknown(other, &known, expected));
                }
            }
        }
    }

    fn claim_containers(&mut self, value: &Spanned<DeValue<'_>>, claims: &mut Claims, config: &mut Config) {
        let file = &self.source.file;
        if let Some(first) = claims.containers.replace(file.clone()) {
            self.wrong("containers", value, format!("it is also in {first}; expected it once"));
            return;
        }
        config.containers = self.containers(value);
        if let Some(parent) = &config.containers.parent {
            self.hold("containers.parent", value, parent, claims, &mut config.policies);
        }
    }

    fn policies(&mut self, value: &Spanned<DeValue<'_>>, claims: &mut Claims, config: &mut Config) {
        let Config { policies, defaults, uplinks, .. } = config;
        let Some(tables) = value.get_ref().as_array() else {
            self.wrong("policy", value, "expected [[policy]], with double brackets");
            return;
        };
        if policies.len() + tables.len() > MOST_POLICIES {
            let all = policies.len() + tables.len();
            self.wrong("policy", value, format!("{all} policies; expected {MOST_POLICIES} at most"));
        }
        for (index, table) in tables.iter().enumerate() {
            let at = format!("policy[{index}]");
            let Some(fields) = table.get_ref().as_table() else {
                self.wrong(&at, table, "expected a table");
                continue;
            };
            let mut policy = self.policy(&at, table.span(), fields);
            let name = policy.name.as_ref().map(|(name, _)| name.clone());
            let place = Place { file: self.source.file.clone(), index, name };
            if let Some((name, span_of)) = &policy.name
                && let Some(first) = claims.names.insert(name.clone(), place.clone())
            {
                let first = Place { name: None, ..first }.seen_from(&self.source.file);
                self.wrong(&format!("{at}.name"), span_of, format!("{first} has this name already; expected another"));
            }
            let cgroups: Vec<_> = policy.spec.patterns().cloned().collect();
            for pattern in &cgroups {
                let key = pattern.named().key();
                let normal = (key, pattern.as_str().trim_end_matches('/').to_owned());
                let Some(span_of) = policy.items.get_mut(key).and_then(Iterator::next) else { continue };
                if let Some(first) = claims.cgroups.insert(normal, place.clone()) {
                    let first = first.seen_from(&self.source.file);
                    let message = format!("{first} claims the same {key}; expected each only once, in one policy");
                    self.wrong(&format!("{at}.{key}"), span_of, message);
                }
            }
            let parent = policy.spec.parent.clone();
            if let (Some(parent), Some(value)) = (&parent, policy.parent) {
                let key = format!("{at}.parent");
                let parts: Vec<_> = parent.parts().collect();
                if !cgroups.is_empty() && !cgroups.iter().any(|pattern| pattern.may_match_below(&parts)) {
                    self.wrong(&key, value, "nothing that the policy names is in it; expected a cgroup around that");
                }
                self.hold(&key, value, parent, claims, policies);
            }
            let Some(uplink) = policy.spec.named_uplink() else { continue };
            if let Some(name) = uplink.group()
                && group::named(uplinks, name).is_none()
                // One with a mistake is there, too.
                && !claims.groups.iter().any(|group| group == name.as_str())
            {
                let message =
                    format!("there is no [[uplink]] {:?}{}", name.as_str(), groups(name.as_str(), &claims.groups));
                self.problem(table.span(), &format!("{at}.uplink"), "", message);
            }
            for exception in policy.spec.except.iter().flat_map(Exceptions::iter) {
                if let Some(message) = group::mistaken(uplinks, exception) {
                    self.problem(table.span(), &format!("{at}.except"), "", message);
                }
            }
            let mut complete = policy.spec.clone();
            complete.fill_from_defaults(defaults);
            match (complete.target(uplink), policy.name) {
                (Ok(target), Some((name, _))) => {
                    let allow = policy.spec.allow();
                    policies.push(Policy { name, target, cgroups, parent, allow, file: self.source.file.clone() });
                }
                (Ok(_), None) => {}
                (Err(conflicts), _) => {
                    for conflict in conflicts {
                        let message = format!("{}{}", conflict.problem, hint(conflict.key, &policy.spec, defaults));
                        self.problem(table.span(), &format!("{at}.{}", conflict.key), "", message);
                    }
                }
            }
        }
        self.name_problems("policy", tables);
        let (needed, marks) = (config.marks(), config.route.marks().numbers().count());
        if needed > marks {
            let message = format!(
                "policies with `local` or `except` need {needed} marks, one for each uplink, and `mark_mask` has {marks}; expected fewer such \
                 policies, or a wider mask in [route]"
            );
            self.wrong("policy", value, message);
        }
    }

    fn policy<'v, 'i>(&mut self, at: &str, span: Range<usize>, fields: &'v DeTable<'i>) -> PolicyFields<'v, 'i> {
        let mut policy = PolicyFields::default();
        let mut seen = BTreeSet::new();
        for (key, value) in fields {
            let name = key.get_ref().as_ref();
            let path = format!("{at}.{name}");
            seen.insert(name);
            match (name, spec::key(name)) {
                ("name", _) => {
                    policy.name = self.short_text(&path, value, NAME_BYTES).map(|name| (name, value));
                }
                // Short for a group of tiers.
                ("interface", _) if let Some(list) = value.get_ref().as_array() => {
                    let names: Option<Vec<_>> = list.iter().map(|item| item.get_ref().as_str()).collect();
                    let name = names.ok_or_else(|| "expected the names of interfaces in quotes".to_owned());
                    match name.and_then(|names| GroupName::of_list(&names)) {
                        Ok(name) => policy.spec.uplink = Some(name),
                        Err(problem) => self.wrong(&path, value, problem),
                    }
                }
                (_, Some(key)) => {
                    let accepted = self.key_of_policy(&path, key, value, &mut policy.spec);
                    if key.name == "parent" {
                        policy.parent = accepted.first().copied();
                    }
                    policy.items.insert(key.name, accepted.into_iter());
                }
                (_, None) => {
                    let written = self.source.text.get(value.span()).unwrap_or_default();
                    let known: Vec<_> = ["name"].into_iter().chain(KEYS.iter().map(|key| key.name)).collect();
                    let message = unknown(name, &known, &known.join(", "));
                    self.problem(key.span(), &path, written.lines().next().unwrap_or_default(), message);
                }
            }
        }
        if !seen.contains("name") {
            self.problem(
                span.clone(),
                &format!("{at}.name"),
                "",
                "missing; expected name = \"...\", unique in the file",
            );
        }
        if !seen.iter().any(|key| Named::is_key(key)) {
            let expected = "missing; expected units = [\"x.service\"], user_units, users, or cgroups = [\"/...\"]";
            self.problem(span.clone(), &format!("{at}.units"), "", expected);
        }
        match (seen.contains("interface"), seen.contains("uplink")) {
            (false, false) => {
                let expected = "missing; expected interface = \"...\", the uplink's name, or \"none\" to exempt";
                self.problem(span, &format!("{at}.interface"), "", expected);
            }
            (true, true) => self.problem(span, &format!("{at}.uplink"), "", "expected interface or uplink, not both"),
            _ => {}
        }
        policy
    }
}

/// The groups that there are, for a message about a name that none has.
fn groups(name: &str, groups: &[String]) -> String {
    if let Some(near) = nearest(name, groups.iter().cloned()) {
        return format!("; did you mean {near:?}?");
    }
    match groups {
        [] => "; the file has no [[uplink]]".to_owned(),
        [only] => format!("; there is only {only:?}"),
        _ => format!("; there are {}", groups.join(", ")),
    }
}

#[derive(Default)]
struct PolicyFields<'v, 'i> {
    name: Option<(String, &'v Spanned<DeValue<'i>>)>,
    spec: PolicySpec,
    /// Where the items of each key are written.
    items: BTreeMap<&'static str, std::vec::IntoIter<&'v Spanned<DeValue<'i>>>>,
    /// Where `parent` is written.
    parent: Option<&'v Spanned<DeValue<'i>>>,
}

#[cfg(test)]
mod tests {
    use super::{Source, parse, parse_all};
    use crate::model::spec::{Enforcement, Existing, OtherNetns};

    #[test]
    fn a_whole_file() {
        let text = r#"
            [[policy]]
            name = "vpn"
            interface = "wg0"
            cgroups = ["/system.slice/transmission.service", '/user.slice/**/app-*firefox*.scope']

            [[policy]]
            name = "direct"
            interface = "none"
            cgroups = ["/system.slice/transmission.service/direct"]
            other_netns = "refuse"
        "#;
        let config = parse("steer.toml", text).expect("valid");
        assert_eq!(config.policies.len(), 2);
        assert_eq!(config.policies[0].interface(), Some("wg0"));
        assert_eq!(config.policies[0].cgroups[0].as_str(), "/system.slice/transmission.service");
        assert_eq!(
            (config.policies[1].interface(), config.policies[1].target.enforcement.other_netns),
            (None, OtherNetns::Refuse)
        );
        assert!(parse("steer.toml", "").expect("empty is valid").policies.is_empty());
    }

    #[test]
    fn every_mistake_at_once() {
        let text = "color = 1
[[policy]]
name = \"a\"
interface = \"wg 0\"
cgroups = [\"/a\", \"b\", 3]
[[policy]]
name = \"a\"
interfaces = \"eth0\"
cgroups = [\"/a/\", \"/**\"]
other_netns = true
[[policy]]
";
        let problems = parse("f.toml", text).expect_err("mistakes");
        let lines = problems.to_string();
        let want = [
            "f.toml:1:1: color: unknown key",
            "f.toml:4:13: policy \"a\": interface = \"wg 0\": expected the name",
            "f.toml:5:18: policy \"a\": cgroups = \"b\": it does not start with /",
            "f.toml:5:23: policy \"a\": cgroups = 3: expected a list",
            "f.toml:6:1: policy \"a\": interface: missing",
            "f.toml:7:8: policy \"a\": name = \"a\": policy 1 has this name",
            "f.toml:8:1: policy \"a\": interfaces = \"eth0\": unknown key",
            "f.toml:9:12: policy \"a\": cgroups = \"/a/\": policy \"a\" claims the same",
            "f.toml:9:19: policy \"a\": cgroups = \"/**\": it matches the root",
            "f.toml:10:15: policy \"a\": other_netns = true: expected \"leave\"",
            "f.toml:11:1: policy 3: name: missing",
            "f.toml:11:1: policy 3: interface: missing",
            "f.toml:11:1: policy 3: units: missing",
        ];
        for expected in want {
            assert!(lines.lines().any(|line| line.starts_with(expected)), "{expected}\nin\n{lines}");
        }
        assert_eq!(problems.problems.len(), want.len(), "{lines}");
    }

    #[test]
    fn several_files_are_one_configuration() {
        let source = |file: &str, name, cgroup| Source {
            file: file.to_owned(),
            text: format!("[[policy]]\nname = \"{name}\"\ninterface = \"wg0\"\ncgroups = [\"{cgroup}\"]\n"),
        };
        let config = parse_all(&[source("a.toml", "a", "/a"), source("b.toml", "b", "/b")]).expect("valid");
        let files: Vec<_> = config.policies.iter().map(|policy| policy.file.as_str()).collect();
        assert_eq!(files, ["a.toml", "b.toml"]);
        let problems = parse_all(&[source("a.toml", "a", "/a"), source("b.toml", "a", "/a/")]).expect_err("clashes");
        let want = "b.toml:2:8: policy \"a\": name = \"a\": policy 1 of a.toml has this name already; expected another\n\
                    b.toml:4:12: policy \"a\": cgroups = \"/a/\": policy \"a\" of a.toml claims the same cgroups; expected each \
                    only once, in one policy";
        assert_eq!(problems.to_string(), want);
    }

    #[test]
    fn existing_sockets() {
        let parsed = |interface: &str, existing: &str| {
            let text = format!("[[policy]]\nname = \"a\"\ninterface = \"{interface}\"\ncgroups = [\"/a\"]\n");
            parse("f.toml", &format!("{text}existing = \"{existing}\"\n"))
        };
        let enforcement = |existing| parsed("wg0", existing).expect("valid").policies[0].target.enforcement;
        assert_eq!(enforcement("rebind").existing, Existing::Rebind);
        assert_eq!(enforcement("destroy").existing, Existing::Destroy);
        assert_eq!(enforcement("keep"), Enforcement::default());
        let wrong = parsed("wg0", "leave").expect_err("a mistake").to_string();
        assert!(wrong.contains("f.toml:5:12: policy \"a\": existing = \"leave\": expected \"keep\""), "{wrong}");
        assert!(parsed("none", "rebind").expect_err("a mistake").to_string().contains("binds no socket"));
    }

    #[test]
    fn broken_syntax_has_a_place() {
        let problems = parse("f.toml", "[[policy]]\nname = \n").expect_err("broken");
        assert_eq!(problems.problems[0].line, 2, "{problems}");
    }
}
