//! `[defaults]`: keys for all policies of all files, and for commands that steer by an interface.
//!
//! **Invariant:** a key that a policy has itself, also an empty list, wins.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Problems, Source,
    reader::{Reader, unknown},
};
use crate::model::spec::{self, DEFAULTS, Enforce, Ingress, PolicySpec};

/// The name of the table.
pub(super) const NAME: &str = "defaults";

/// Reads `[defaults]` of the configuration file. Mistakes elsewhere in it are no error, unless the syntax is wrong.
pub fn defaults(source: &Source) -> Result<PolicySpec, Problems> {
    let mut reader = Reader { source, problems: Vec::new() };
    let table = reader.table();
    let mut defaults = PolicySpec::default();
    // If the syntax is wrong, the meaning of the rest is uncertain.
    if reader.problems.is_empty() {
        defaults = reader.defaults(table.get_ref());
    }
    let problems = reader.sorted();
    if problems.is_empty() { Ok(defaults) } else { Err(Problems { problems }) }
}

impl Reader<'_> {
    /// Reads the table, if it is there.
    pub(super) fn defaults(&mut self, file: &DeTable<'_>) -> PolicySpec {
        let mut defaults = PolicySpec::default();
        let Some(table) = file.get(NAME) else { return defaults };
        let Some(fields) = table.get_ref().as_table() else {
            self.wrong(NAME, table, "expected [defaults], with single brackets");
            return defaults;
        };
        for (key, value) in fields {
            let name = key.get_ref().as_ref();
            let path = format!("{NAME}.{name}");
            match spec::key(name).filter(|key| DEFAULTS.contains(&key.name)) {
                Some(key) => {
                    self.key_of_policy(&path, key, value, &mut defaults);
                }
                None => self.unknown_default(&path, key.span(), value),
            }
        }
        defaults
    }

    fn unknown_default(&mut self, path: &str, span: std::ops::Range<usize>, value: &Spanned<DeValue<'_>>) {
        let written = self.source.text.get(value.span()).unwrap_or_default().lines().next().unwrap_or_default();
        self.problem(
            span,
            path,
            written,
            unknown(path.rsplit('.').next().unwrap_or_default(), &DEFAULTS, &DEFAULTS.join(", ")),
        );
    }
}

/// What to add to the message of a conflict that is not in the policy's own keys.
pub(super) fn hint(key: &str, written: &PolicySpec, defaults: &PolicySpec) -> &'static str {
    let is_by_default = key == "ingress"
        && written.ingress == Some(Ingress::Uplink)
        && written.enforce.is_none()
        && defaults.enforce == Some(Enforce::Steer);
    if is_by_default { "; [defaults] sets enforce = \"steer\"" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::defaults;
    use crate::model::{
        config::{Source, UNCLASSIFIED, parse, parse_all},
        spec::{Enforce, Enforcement, Existing, Near, Reach, Resolvers, Target},
    };

    const DEFAULTS: &str =
        "[defaults]\nlocal = [\"host\", \"lan\"]\ndns = [\"10.0.0.1\"]\nenforce = \"steer\"\nexisting = \"rebind\"\n";

    fn policy(name: &str, interface: &str, rest: &str) -> String {
        format!("[[policy]]\nname = \"{name}\"\ninterface = \"{interface}\"\ncgroups = [\"/{name}\"]\n{rest}\n")
    }

    fn source(file: &str, text: impl Into<String>) -> Source {
        Source { file: file.to_owned(), text: text.into() }
    }

    #[test]
    fn policies_of_all_files_have_them() {
        let main = [&policy("a", "wg0", ""), DEFAULTS].concat();
        let config = parse_all(&[source("steer.toml", main), source("b.toml", policy("b", "wg0", ""))]).expect("valid");
        assert_eq!(config.policies.len(), 2);
        for policy in &config.policies {
            let (enforcement, reach) = (&policy.target.enforcement, &policy.target.reach);
            assert_eq!((enforcement.enforce, enforcement.existing), (Enforce::Steer, Existing::Rebind), "{policy:?}");
            assert_eq!(enforcement.dns.iter().count(), 1, "{policy:?}");
            assert_eq!(reach.local.words().collect::<Vec<_>>(), [Near::Host, Near::Lan], "{policy:?}");
        }
        assert_eq!(config.defaults, defaults(&source("f", DEFAULTS)).expect("valid"));
    }

    #[test]
    fn a_policys_own_keys_win() {
        let own = "local = []\ndns = []\nenforce = \"strict\"\nexisting = \"keep\"";
        let config = parse("f.toml", &[DEFAULTS, &policy("a", "wg0", own)].concat()).expect("valid");
        let target = &config.policies[0].target;
        assert_eq!((&target.enforcement, &target.reach), (&Enforcement::default(), &Reach::NONE));
        let one = "local = [\"discovery\"]";
        let config = parse("f.toml", &[DEFAULTS, &policy("a", "wg0", one)].concat()).expect("valid");
        let reach = &config.policies[0].target.reach;
        assert_eq!(reach.local.words().collect::<Vec<_>>(), [Near::Discovery], "not added to the default");
    }

    #[test]
    fn exemptions_and_closed_policies_have_none() {
        let held = policy("b", "wg0", "parent = \"/\"").replace("\"/b\"", "\"/p/b\"").replace("\"/\"", "\"/p\"");
        let config = parse("f.toml", &[DEFAULTS, &policy("a", "none", ""), &held].concat()).expect("valid");
        let of = |name: &str| config.policies.iter().find(|policy| policy.name == name).expect(name);
        assert_eq!(of("a").target, Target::exempt());
        assert_eq!(of(UNCLASSIFIED).target, Target::CLOSED);
        assert_ne!(of("b").target.enforcement.dns, Resolvers::NONE);
    }

    #[test]
    fn mistakes() {
        for (line, want) in [
            ("local = \"host\"", "f.toml:2:9: defaults.local = \"host\": expected a list of words, of \"host\""),
            ("local = [\"wan\"]", "f.toml:2:10: defaults.local = \"wan\": expected \"host\", \"lan\" or"),
            ("dns = [\"dns\"]", "f.toml:2:8: defaults.dns = \"dns\": \"dns\" is not an IP address"),
            ("enforce = 1", "f.toml:2:11: defaults.enforce = 1: expected \"steer\", \"observe\" or \"strict\""),
            ("ingress = \"any\"", "f.toml:2:1: defaults.ingress = \"any\": unknown key; expected local, dns,"),
            ("except = []", "f.toml:2:1: defaults.except = []: unknown key"),
        ] {
            let text = format!("[defaults]\n{line}\n");
            let problems = parse("f.toml", &text).expect_err(line).to_string();
            assert!(problems.starts_with(want), "{line}: {problems}");
            assert_eq!(defaults(&source("f.toml", text)).expect_err(line).to_string(), problems);
        }
        let problems = parse("f.toml", "[[defaults]]\n").expect_err("an array").to_string();
        assert!(problems.contains("expected [defaults], with single brackets"), "{problems}");
        let elsewhere = [DEFAULTS, "[[policy]]\nname = 1\n"].concat();
        assert!(defaults(&source("f.toml", elsewhere)).is_ok(), "mistakes elsewhere");
        assert!(defaults(&source("f.toml", "[defaults\n")).is_err());
    }

    #[test]
    fn only_in_the_configuration_file() {
        let sources = [source("steer.toml", ""), source("b.toml", "[defaults]\nlocal = []\n[route]\n")];
        let problems = parse_all(&sources).expect_err("in the wrong file").to_string();
        for want in
            ["b.toml:1:2: defaults: expected in steer.toml only", "b.toml:3:2: route: expected in steer.toml only"]
        {
            assert!(problems.lines().any(|line| line.starts_with(want)), "{want}\nin\n{problems}");
        }
    }

    #[test]
    fn a_conflict_with_a_default_says_so() {
        let text = [DEFAULTS, &policy("a", "wg0", "ingress = \"uplink\"")].concat();
        let problems = parse("f.toml", &text).expect_err("a conflict").to_string();
        let want = "f.toml:6:1: policy \"a\": ingress: ingress = \"uplink\" needs enforce = \"strict\" or \"observe\"; [defaults] sets enforce = \"steer\"";
        assert_eq!(problems, want);
    }
}
