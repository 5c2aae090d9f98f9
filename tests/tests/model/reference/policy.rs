//! Policies as a person writes them: what they do, and which cgroups they name.

use std::{fmt, net::IpAddr};

use steer_lab::Family;

use super::reach::Reach;
use crate::model::operation::GROUPS;

/// How far a policy goes against a program that wants out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Steer,
    /// For what leaves, the same.
    Observe,
    Strict,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steer => "steer",
            Self::Observe => "observe",
            Self::Strict => "strict",
        }
    }
}

/// What a policy does.
#[expect(clippy::struct_excessive_bools, reason = "each is one key of a policy, of two values")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The name of the uplink or group; `none` exempts, and the empty one is nobody's.
    pub(crate) uplink: &'static str,
    pub(crate) level: Level,
    /// `other_netns = "refuse"`.
    pub(crate) refuses: bool,
    pub(crate) dns: Dns,
    /// `ingress = "uplink"`.
    pub(crate) ingress: bool,
    /// `existing = "rebind"`.
    pub(crate) rebinds: bool,
    /// `account = true`, which changes nothing for any packet.
    pub(crate) accounts: bool,
    pub(crate) reach: Reach,
}

/// The resolvers that policies name; nobody has these addresses.
const RESOLVERS: [&str; 2] = ["198.51.100.53", "fd00:ffff::53"];

/// The families for which a policy has a resolver, or a member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

impl Dns {
    pub(crate) const NONE: Self = Self { v4: false, v6: false };

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    pub(crate) fn has(self, family: Family) -> bool {
        if family == Family::V4 { self.v4 } else { self.v6 }
    }

    /// Those of these two addresses, of which the first is of IPv4, that are resolvers.
    pub(crate) fn of<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        let both = [(self.v4, v4), (self.v6, v6)];
        both.into_iter().filter(|(has, _)| *has).map(|(_, address)| address).collect()
    }

    fn addresses(self) -> Vec<&'static str> {
        self.of(RESOLVERS)
    }

    /// The resolver of a policy.
    pub(crate) fn resolver(self, family: Family) -> Option<IpAddr> {
        let [v4, v6] = RESOLVERS;
        let address = if family == Family::V4 { v4 } else { v6 };
        self.has(family).then(|| address.parse().ok()).flatten()
    }
}

impl Spec {
    /// By this uplink, as the defaults are.
    pub(crate) const fn by(uplink: &'static str) -> Self {
        let (level, reach) = (Level::Strict, Reach::NONE);
        Self { uplink, level, refuses: false, dns: Dns::NONE, ingress: false, rebinds: false, accounts: false, reach }
    }

    /// What `parent` of `[containers]` does: nothing gets out, in no network namespace.
    pub(crate) const CLOSED: Self = Self { refuses: true, ..Self::by("") };

    pub(crate) const fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }

    pub(crate) const fn reaching(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// The same policy once its name has no uplink any more: closed is closed, also for what it reached.
    pub(crate) fn closed(self) -> Self {
        Self { uplink: "", reach: Reach::NONE, ..self }
    }

    /// Whether its uplink is a group.
    pub(crate) fn is_group(&self) -> bool {
        self.is_list() || GROUPS.contains(&self.uplink)
    }

    /// Whether its uplink is a list of interfaces, which needs no configuration.
    pub(crate) fn is_list(&self) -> bool {
        self.uplink.contains('+')
    }

    pub(crate) fn exempts(&self) -> bool {
        self.uplink == "none"
    }

    /// Without what cannot be written together.
    pub(crate) fn valid(self) -> Self {
        let steers = !self.exempts();
        Self {
            dns: if steers { self.dns } else { Dns::NONE },
            rebinds: self.rebinds && steers,
            ingress: self.ingress && self.level > Level::Steer && steers,
            level: if steers { self.level } else { Level::Strict },
            refuses: self.refuses && steers,
            accounts: self.accounts && steers,
            reach: if steers { self.reach } else { Reach::NONE },
            ..self
        }
    }

    /// What `steer policy set` makes of a policy with the options of this one: what they do not name stays. `None`: that cannot be written
    /// together.
    pub(crate) fn over(self, old: &Self) -> Option<Self> {
        let merged = Self {
            refuses: self.refuses || old.refuses,
            dns: if self.dns.is_none() { old.dns } else { self.dns },
            ingress: self.ingress || old.ingress,
            rebinds: self.rebinds || old.rebinds,
            accounts: self.accounts || old.accounts,
            reach: self.reach.over(&old.reach),
            ..self
        };
        let exempts =
            merged.exempts() && (merged.rebinds || merged.accounts || !merged.dns.is_none() || !merged.reach.is_none());
        let is_lax = merged.ingress && merged.level == Level::Steer;
        (!exempts && !is_lax).then(|| merged.valid())
    }

    /// The options of a command that say the same.
    pub(crate) fn options(&self) -> Vec<String> {
        let uplink = if self.is_group() { "--uplink" } else { "-i" };
        let mut options = [uplink, self.uplink, "--enforce", self.level.name()].map(str::to_owned).to_vec();
        let mut add = |said: bool, words: [&str; 2]| {
            options.extend(said.then_some(words.map(str::to_owned)).into_iter().flatten());
        };
        add(self.refuses, ["--other-netns", "refuse"]);
        add(self.ingress, ["--ingress", "uplink"]);
        add(self.rebinds, ["--existing", "rebind"]);
        add(self.accounts, ["--account", "true"]);
        for resolver in self.dns.addresses() {
            add(true, ["--dns", resolver]);
        }
        let (words, except) = (self.reach.words().join(","), self.reach.except());
        add(!words.is_empty(), ["--local", &words]);
        add(!except.is_empty(), ["--except", &except]);
        options
    }

    fn keys(&self) -> String {
        let uplink = match (self.is_list(), self.is_group()) {
            (true, _) => format!("interface = {:?}", self.uplink.split('+').collect::<Vec<_>>()),
            (false, true) => format!("uplink = \"{}\"", self.uplink),
            (false, false) => format!("interface = \"{}\"", self.uplink),
        };
        let mut text = format!("{uplink}\nenforce = \"{}\"\n", self.level.name());
        let mut add = |said: bool, line: &str| text.push_str(if said { line } else { "" });
        add(self.refuses, "other_netns = \"refuse\"\n");
        add(self.ingress, "ingress = \"uplink\"\n");
        add(self.rebinds, "existing = \"rebind\"\n");
        add(self.accounts, "account = true\n");
        add(!self.dns.is_none(), &format!("dns = {:?}\n", self.dns.addresses()));
        add(!self.reach.is_none(), &self.reach.keys());
        text
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", if self.uplink.is_empty() { "closed" } else { self.uplink })?;
        if !self.exempts() {
            write!(formatter, " {}", self.level.name())?;
        }
        let words = [
            (self.refuses, "refuse"),
            (self.dns.has(Family::V4), "dns4"),
            (self.dns.has(Family::V6), "dns6"),
            (self.ingress, "ingress=uplink"),
            (self.rebinds, "rebind"),
            (self.accounts, "account"),
        ];
        words.iter().filter(|(said, _)| *said).try_for_each(|(_, word)| write!(formatter, " {word}"))?;
        if self.reach.is_none() { Ok(()) } else { write!(formatter, " {:?}", self.reach) }
    }
}

/// A policy of the configuration.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) name: &'static str,
    pub(crate) spec: Spec,
    pub(crate) patterns: Vec<&'static str>,
}

impl Policy {
    pub(crate) fn new(name: &'static str, spec: Spec, patterns: &[&'static str]) -> Self {
        Self { name, spec, patterns: patterns.to_vec() }
    }

    /// As in a file; `@` is the root of the tree.
    pub(crate) fn text(&self) -> String {
        let cgroups: Vec<_> = self.patterns.iter().map(|pattern| format!("@{}", real(pattern))).collect();
        format!("[[policy]]\nname = \"{}\"\n{}cgroups = {cgroups:?}\n", self.name, self.spec.keys())
    }

    /// Whether it names a cgroup, by its path or by a glob.
    pub(crate) fn names(&self, path: &str, literally: bool) -> bool {
        let parts = |text: &'_ str| text.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
        self.patterns.iter().any(|pattern| pattern.contains('*') != literally && matches(&parts(pattern), &parts(path)))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({:?}) on [{}]", self.name, self.spec, self.patterns.join(", "))
    }
}

/// A path or a pattern as it really is: the name of each cgroup contains the id of the container in it.
pub(crate) fn real(path: &str) -> String {
    let is_name = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    let real = |part: &str| if is_name(part) { format!("{part}-{}", container_id(part)) } else { part.to_owned() };
    path.split('/').map(real).collect::<Vec<_>>().join("/")
}

/// The id of the container in a cgroup of this name.
pub(crate) fn container_id(name: &str) -> String {
    format!("{:064x}", name.bytes().fold(0, |id: u64, byte| id << 8 | u64::from(byte)))
}

/// Whether a pattern matches a path, part by part.
fn matches(pattern: &[String], path: &[String]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([star, rest @ ..], _) if star == "**" => {
            matches(rest, path) || !path.is_empty() && matches(pattern, &path[1..])
        }
        ([part, rest @ ..], [name, below @ ..]) => (part == "*" || part == name) && matches(rest, below),
        _ => false,
    }
}

/// Which policy names a cgroup: a path goes before a glob, then the first.
pub(crate) fn naming<'a>(policies: &'a [Policy], path: &str) -> Option<&'a Policy> {
    let find = |literally| policies.iter().find(|policy| policy.names(path, literally));
    find(true).or_else(|| find(false))
}
