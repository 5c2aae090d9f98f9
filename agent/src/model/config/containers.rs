//! `[containers]`: what a container may request by its annotations.

use std::time::Duration;

use steer_common::record::{INTERFACE_BYTES, NAME_BYTES};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{allowed::Allowed, reader::Reader};
use crate::model::{
    cgroup_path::CgroupPath,
    spec::{self, Enforce, Exception, Near, Word},
};

pub use crate::model::spec::Missing;

/// What the host allows containers to request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containers {
    /// `policies`: names of policies that they may request. `*` does not include policies that exempt.
    pub policies: Allowed,
    /// `interfaces`: the interfaces that they may request.
    pub interfaces: Allowed,
    /// `dns`: the resolvers that they may request, in the spelling of [`std::net::IpAddr`].
    pub dns: Allowed,
    /// `local`: the words of it that they may request.
    pub local: Allowed<Near>,
    /// `except`: the exceptions that they may request, each also for a part of its prefix.
    pub except: Allowed<Exception>,
    /// `enforce`: the weakest enforcement that they may request.
    pub enforce: Enforce,
    /// `missing`: what happens if their uplink is missing at the start.
    pub missing: Missing,
    /// `timeout_ms`: how long a hook waits for other processes that change pins.
    pub timeout: Duration,
    /// `exempt_namespaces`: namespaces of Kubernetes whose containers steer ignores.
    pub exempt_namespaces: Vec<String>,
    /// `parent`: a cgroup that is kept closed. A container in it can send after it is classified.
    pub parent: Option<CgroupPath>,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            policies: Allowed::default(),
            interfaces: Allowed::default(),
            dns: Allowed::default(),
            local: Allowed::default(),
            except: Allowed::default(),
            enforce: Enforce::default(),
            missing: Missing::default(),
            timeout: Duration::from_millis(DEFAULT_TIMEOUT_MS),
            exempt_namespaces: Vec::new(),
            parent: None,
        }
    }
}

/// Below 2 s, the time after which container runtimes stop waiting for an NRI plugin.
const DEFAULT_TIMEOUT_MS: u64 = 1500;
const MOST_TIMEOUT_MS: i64 = 60_000;

const KEYS: [&str; 10] = [
    "policies",
    "interfaces",
    "dns",
    "local",
    "except",
    "enforce",
    "missing",
    "timeout_ms",
    "exempt_namespaces",
    "parent",
];

impl Reader<'_> {
    /// Reads the table. Invalid values keep their defaults.
    pub(super) fn containers(&mut self, table: &Spanned<DeValue<'_>>) -> Containers {
        let mut containers = Containers::default();
        let Some(fields) = table.get_ref().as_table() else {
            self.wrong("containers", table, "expected [containers], with single brackets");
            return containers;
        };
        self.container_fields(fields, &mut containers);
        containers
    }

    fn container_fields(&mut self, fields: &DeTable<'_>, containers: &mut Containers) {
        for (key, value) in fields {
            let path = format!("containers.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "policies" => containers.policies = self.allowed(&path, value, NAME_BYTES),
                "interfaces" => containers.interfaces = self.allowed(&path, value, INTERFACE_BYTES),
                "dns" => containers.dns = self.allowed_resolvers(&path, value),
                "local" => containers.local = self.allowed_words(&path, value),
                "except" => containers.except = self.allowed_exceptions(&path, value),
                "enforce" => self.word(&path, value, &mut containers.enforce),
                "missing" => self.word(&path, value, &mut containers.missing),
                "timeout_ms" => match value.get_ref().as_integer().map(|number| number.as_str().parse::<i64>()) {
                    Some(Ok(ms @ 1..=MOST_TIMEOUT_MS)) => containers.timeout = Duration::from_millis(ms.unsigned_abs()),
                    _ => self.wrong(&path, value, format!("expected milliseconds, 1 to {MOST_TIMEOUT_MS}")),
                },
                "exempt_namespaces" => containers.exempt_namespaces = self.names(&path, value, NAME_BYTES),
                "parent" => containers.parent = self.parent(&path, value),
                _ => self.unknown_key(key, &path, &KEYS),
            }
        }
    }

    fn word<W: Word>(&mut self, key: &str, value: &Spanned<DeValue<'_>>, word: &mut W) {
        match value.get_ref().as_str().map_or_else(|| Err(W::expected()), W::read) {
            Ok(read) => *word = read,
            Err(expected) => self.wrong(key, value, expected),
        }
    }

    pub(super) fn names(&mut self, key: &str, value: &Spanned<DeValue<'_>>, bytes: usize) -> Vec<String> {
        let Some(list) = value.get_ref().as_array() else {
            self.wrong(key, value, "expected a list of names");
            return Vec::new();
        };
        list.iter().filter_map(|item| self.short_text(key, item, bytes)).collect()
    }

    fn parent(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<CgroupPath> {
        match spec::parent(value.get_ref().as_str().unwrap_or_default()) {
            Ok(path) => Some(path),
            Err(problem) => {
                self.wrong(key, value, problem);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Containers, Missing};
    use crate::model::{
        config::{Allowed, parse},
        spec::{Enforce, Exception, Near, OtherNetns},
    };

    #[test]
    fn the_default_allows_nothing() {
        let config = parse("f.toml", "").expect("valid");
        assert_eq!(config.containers, Containers::default());
        assert!(!config.containers.interfaces.allow("eth0"));
        assert!(!config.containers.policies.allow("vpn"));
    }

    #[test]
    fn a_whole_table() {
        let text = r#"
            [containers]
            policies = ["vpn"]
            interfaces = ["eth1"]
            dns = ["10.0.0.1", "2001:DB8::1"]
            local = ["lan", "host"]
            except = [{ to = "10.0.0.0/8", by = "eth0" }, "192.0.2.0/24=refuse"]
            enforce = "steer"
            missing = "close"
            timeout_ms = 250
            exempt_namespaces = ["kube-system"]
            parent = "/kubepods.slice"
        "#;
        let config = parse("f.toml", text).expect("valid");
        let containers = &config.containers;
        let named = |names: &[&str]| Allowed::Named(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!((&containers.policies, &containers.interfaces), (&named(&["vpn"]), &named(&["eth1"])));
        assert_eq!(containers.dns, named(&["10.0.0.1", "2001:db8::1"]));
        assert_eq!(containers.local, Allowed::Named(vec![Near::Host, Near::Lan]));
        assert!(containers.local.allow_word(Near::Lan) && !containers.local.allow_word(Near::Discovery));
        for (text, allowed) in [
            ("10.0.0.0/8=eth0", true),
            ("10.1.0.0/16=eth0", true),
            ("10.1.0.0/16=eth1", false),
            ("10.0.0.0/7=eth0", false),
            ("192.0.2.1=refuse", true),
        ] {
            let wanted = Exception::parse(text).expect(text);
            assert_eq!(containers.except.allow_exception(&wanted), allowed, "{text}");
        }
        let any = parse("f.toml", "[containers]\nlocal = [\"*\"]\nexcept = [\"*\"]\n").expect("valid").containers;
        assert_eq!((any.local, any.except), (Allowed::Any, Allowed::Any));
        assert_eq!((containers.enforce, containers.missing), (Enforce::Steer, Missing::Close));
        assert_eq!(containers.timeout, Duration::from_millis(250));
        assert_eq!(containers.exempt_namespaces, ["kube-system"]);
        let [held] = &config.policies[..] else { panic!("the parent is a policy: {config:?}") };
        assert!(held.is_closed() && held.target.enforcement.enforce == Enforce::Strict);
        assert_eq!(held.target.enforcement.other_netns, OtherNetns::Refuse, "whatever namespace a container has");
        assert_eq!(held.cgroups[0].as_str(), "/kubepods.slice");
    }

    #[test]
    fn mistakes() {
        let cases = [
            ("policies = \"vpn\"", "f.toml:2:12: containers.policies = \"vpn\": expected a list of names"),
            (
                "interfaces = [\"*\", \"eth0\"]",
                "f.toml:2:14: containers.interfaces = [\"*\", \"eth0\"]: \"*\" stands for all",
            ),
            ("dns = [\"vpn\"]", "f.toml:2:7: containers.dns = [\"vpn\"]: \"vpn\" is not an IP address"),
            ("local = \"*\"", "f.toml:2:9: containers.local = \"*\": expected a list of words"),
            ("local = [\"*\", \"lan\"]", "f.toml:2:10: containers.local = \"*\": expected \"host\""),
            (
                "except = [{ to = \"::/0\", by = \"a\" }]",
                "f.toml:2:18: containers.except 1: to = \"::/0\": that is the whole",
            ),
            ("enforce = \"bind\"", "f.toml:2:11: containers.enforce = \"bind\": expected \"steer\""),
            ("missing = 1", "f.toml:2:11: containers.missing = 1: expected \"refuse\""),
            ("timeout_ms = 0", "f.toml:2:14: containers.timeout_ms = 0: expected milliseconds"),
            ("parent = \"/\"", "f.toml:2:10: containers.parent = \"/\": it is the root cgroup"),
            ("parent = \"/a/*\"", "f.toml:2:10: containers.parent = \"/a/*\": expected the path of one cgroup"),
            ("polices = []", "f.toml:2:1: containers.polices: unknown key"),
        ];
        for (line, want) in cases {
            let problems = parse("f.toml", &format!("[containers]\n{line}\n")).expect_err(line).to_string();
            assert!(problems.starts_with(want), "{line}: {problems}");
        }
        let twice = "[containers]\nparent = \"/a\"\n[[policy]]\nname = \"b\"\ninterface = \"c\"\ncgroups = [\"/a\"]\n";
        assert!(parse("f.toml", twice).expect_err("claimed twice").to_string().contains("claims the same cgroups"));
    }
}
