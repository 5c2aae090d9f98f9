//! Names in the configuration that this host does not know: they are probably misspelt, and steer nothing. And names that another policy has,
//! too.
//!
//! **Invariant:** a doubt is no error. What a policy names may be installed later.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use nix::net::if_::if_nametoindex;
use serde::Serialize;

use crate::{
    host::{
        account,
        cgroup::Hierarchy,
        link::Table,
        resolver,
        units::{self, Manager},
    },
    model::{
        cgroup_path::CgroupPath,
        config::{Config, Policy},
        similar::nearest,
        spec::{Enforce, Exceptions, Named, Near, Pattern, Uplink},
        uplink::group::{self, Group},
    },
};

/// A name that this host does not know, or that has no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doubt {
    /// The policy; empty: it is about the daemon.
    pub policy: String,
    /// The key that has it.
    pub key: &'static str,
    /// The name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
    /// A known name that may be meant.
    pub perhaps: Option<String>,
}

impl fmt::Display for Doubt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.policy.as_str() {
            "" => write!(formatter, "{}: {}", self.key, self.problem)?,
            policy => write!(formatter, "policy {policy}: {}", self.problem)?,
        }
        self.perhaps.as_ref().map_or(Ok(()), |name| write!(formatter, "; perhaps {name}"))
    }
}

/// The doubts about all names of a configuration.
pub fn doubts(config: &Config) -> Vec<Doubt> {
    let found = Hierarchy::find().and_then(|hierarchy| hierarchy.descendants(&CgroupPath::root()));
    let cgroups: Vec<_> = found.unwrap_or_default().into_iter().map(|found| found.path).collect();
    let group = config.daemon.socket_group.as_deref().and_then(missing_group);
    let named: Vec<_> = config.policies.iter().map(|policy| (policy.name.as_str(), &*policy.cgroups)).collect();
    let of_policies = of_policies(&config.policies, &cgroups).into_iter().chain(shadowed(&named, &cgroups));
    group
        .into_iter()
        .chain(of_policies)
        .chain(config.policies.iter().flat_map(missing_accounts))
        .chain(config.policies.iter().filter_map(|policy| group_as_interface(config, policy)))
        .chain(config.policies.iter().filter_map(observes))
        .chain(config.policies.iter().flat_map(|policy| no_resolvers(policy, &resolver::broadcasts())))
        .collect()
}

/// The doubts about resolvers that cannot be any.
fn no_resolvers(policy: &Policy, broadcasts: &[IpAddr]) -> Vec<Doubt> {
    let why = |address: &IpAddr| match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(
            "is a link-local address, which is valid with a zone only, and `dns` has none: name another address of the resolver, or use `dns = \"link\"`",
        ),
        address if broadcasts.contains(address) => Some("is the broadcast address of a network of this host"),
        _ => None,
    };
    let found = policy.target.enforcement.dns.iter().filter_map(|address| {
        let problem = format!("{address} {}", why(&address)?);
        Some(Doubt { policy: policy.name.clone(), key: "dns", name: address.to_string(), problem, perhaps: None })
    });
    found.collect()
}

/// The doubts about those who may run commands by a policy.
fn missing_accounts(policy: &Policy) -> Vec<Doubt> {
    let is_name = |name: &&String| name.parse::<u32>().is_err();
    let doubt = |key, kind: &str, name: &String| {
        let problem = format!("there is no {kind} {name}");
        Doubt { policy: policy.name.clone(), key, name: name.clone(), problem, perhaps: None }
    };
    let allow = &policy.allow;
    let users = allow.users.0.iter().filter(is_name).filter(|name| matches!(account::find(name), Ok(None)));
    let groups = allow.groups.0.iter().filter(is_name).filter(|name| !account::has_group(name));
    let users = users.map(|name| doubt("allow_users", "user", name));
    users.chain(groups.map(|name| doubt("allow_groups", "group", name))).collect()
}

/// The doubt about the group of the daemon's socket.
fn missing_group(name: &str) -> Option<Doubt> {
    let is_id = name.parse::<u32>().is_ok();
    (!is_id && !account::has_group(name)).then(|| Doubt {
        policy: String::new(),
        key: "socket_group",
        name: name.to_owned(),
        problem: format!("there is no group {name}, so only root may use the daemon's socket"),
        perhaps: None,
    })
}

/// The doubt about an interface that does not exist and has the name of a group.
fn group_as_interface(config: &Config, policy: &Policy) -> Option<Doubt> {
    let name = policy.interface()?;
    let is_group = config.uplinks.iter().any(|group| group.name.to_string() == name);
    (is_group && if_nametoindex(name).is_err()).then(|| Doubt {
        policy: policy.name.clone(),
        key: "interface",
        name: name.to_owned(),
        problem: format!("there is no interface {name}, but an [[uplink]] of this name"),
        perhaps: Some(format!("uplink = {name:?}")),
    })
}

/// The doubt about a policy that is to be tried, and cuts its programs off from this host.
fn observes(policy: &Policy) -> Option<Doubt> {
    let observes = policy.target.enforcement.enforce == Enforce::Observe && policy.interface().is_some();
    (observes && !policy.target.reach.local.has(Near::Host)).then(|| Doubt {
        policy: policy.name.clone(),
        key: "enforce",
        name: "observe".to_owned(),
        problem:
            "enforce = \"observe\" refuses calls to this host, as \"steer\" does; `local = [\"host\"]` lets them pass"
                .to_owned(),
        perhaps: None,
    })
}

/// The names without effect: those by which a policy names a cgroup that another one, which comes before it, names as exactly. `policies`:
/// each with what it names, in their order. A glob is meant to give way.
pub fn shadowed(policies: &[(&str, &[Pattern])], cgroups: &[CgroupPath]) -> Vec<Doubt> {
    let all =
        policies.iter().enumerate().flat_map(|(index, (_, patterns))| patterns.iter().map(move |one| (index, one)));
    let literals: Vec<(usize, &Pattern)> = all.filter(|(_, pattern)| pattern.is_literal()).collect();
    // There may be thousands of paths, which need no comparison with all others.
    let mut by_path: BTreeMap<CgroupPath, Vec<usize>> = BTreeMap::new();
    let mut others = Vec::new();
    for (position, (_, pattern)) in literals.iter().enumerate() {
        match pattern.as_str().parse::<CgroupPath>() {
            Ok(path) if pattern.named() == Named::Cgroup => by_path.entry(path).or_default().push(position),
            _ => others.push(position),
        }
    }
    let mut found: BTreeMap<usize, Doubt> = BTreeMap::new();
    for path in by_path.keys().chain(cgroups) {
        let parts: Vec<_> = path.parts().collect();
        let of_path = by_path.get(path).into_iter().flatten().copied();
        let all = of_path.chain(others.iter().copied().filter(|&position| literals[position].1.matches(&parts)));
        let naming: Vec<usize> = all.collect();
        let Some(first) = naming.iter().map(|&position| literals[position].0).min() else { continue };
        for position in naming.into_iter().filter(|&position| literals[position].0 != first) {
            let (policy, pattern) = literals[position];
            let (name, other) = (pattern.as_str(), policies[first].0);
            let problem = format!("{name} has no effect: policy {other} names {path}, too, and stands before it");
            found.entry(position).or_insert_with(|| new(policies[policy].0, pattern, problem, None));
        }
    }
    found.into_values().collect()
}

/// The doubts about all interfaces that the policies of a configuration name.
pub fn about_links(config: &Config, links: &Table) -> Vec<Doubt> {
    let of_policy = |policy: &Policy| {
        let target = &policy.target;
        missing_links(&policy.name, (&target.uplink, &target.reach.except), &config.uplinks, links)
    };
    config.policies.iter().flat_map(of_policy).collect()
}

/// The interfaces that a policy names, and that do not exist.
pub fn missing_links(
    policy: &str,
    (uplink, exceptions): (&Uplink, &Exceptions),
    groups: &[Group],
    links: &Table,
) -> Vec<Doubt> {
    let is_missing = |name: &&str| links.resolve(name).is_none();
    let doubt = |key: &'static str, name: &str, effect: &str| {
        let is_group = key == "interface" && groups.iter().any(|group| group.name.as_str() == name);
        let known = links.links().map(|(_, names)| names.name.clone()).filter(|name| name != "lo");
        let perhaps = if is_group { Some(format!("uplink = {name:?}")) } else { nearest(name, known) };
        let problem = format!("there is no interface {name}; until there is, {effect}");
        Doubt { policy: policy.to_owned(), key, name: name.to_owned(), problem, perhaps }
    };
    let mut found = Vec::new();
    match uplink {
        Uplink::Interface(name) if is_missing(&name.as_str()) => {
            found.push(doubt("interface", name, "what the policy names has no network"));
        }
        Uplink::Group(name) => {
            let group = group::named(groups, name);
            let members = group.iter().flat_map(|group| &group.members).map(|member| member.interface.as_str());
            found.extend(members.filter(is_missing).map(|name| doubt("uplink", name, "it is not chosen")));
        }
        _ => {}
    }
    for exception in exceptions.iter() {
        if let Some(name) = exception.by.interface().filter(is_missing) {
            found.push(doubt("except", name, &format!("{} is closed", exception.to)));
        }
    }
    found
}

/// The doubts about all names of these policies.
pub fn of_policies(policies: &[Policy], cgroups: &[CgroupPath]) -> Vec<Doubt> {
    let patterns = policies.iter().flat_map(|policy| policy.cgroups.iter().map(move |pattern| (policy, pattern)));
    patterns.filter_map(|(policy, pattern)| doubt(&policy.name, pattern, cgroups)).collect()
}

/// The doubt about one name. `cgroups` are those that exist.
pub fn doubt(policy: &str, pattern: &Pattern, cgroups: &[CgroupPath]) -> Option<Doubt> {
    let mut paths = cgroups.iter().map(|path| path.parts().collect::<Vec<_>>());
    if paths.any(|parts| pattern.matches(&parts)) {
        return None;
    }
    let name = pattern.as_str();
    let (problem, known) = match pattern.named() {
        Named::User => {
            let problem = match account::find(name) {
                Ok(Some(_)) => return None,
                Ok(None) => format!("there is no user {name}"),
                Err(errno) => format!("user {name} cannot be looked up: {}", errno.desc()),
            };
            (problem, account::local_names())
        }
        Named::Unit if pattern.is_literal() => (missing_unit(name)?, known_units(Manager::System, cgroups)),
        Named::Unit => {
            let known = known_units(Manager::System, cgroups);
            // A template stands for its instances.
            let matches = |unit: &String| pattern.matches(&[unit]) || pattern.matches(&[&unit.replace("@.", "@x.")]);
            if known.iter().any(matches) {
                return None;
            }
            (format!("no unit matches {name}"), Vec::new())
        }
        Named::UserUnit if is_installed_kind(name) && !units::has_file(Manager::User, name) => {
            (format!("there is no unit {name} of all users, and none runs"), known_units(Manager::User, cgroups))
        }
        Named::UserUnit => return None,
        Named::Cgroup if name.split('/').any(|part| part.trim() != part) => {
            let trimmed = name.split('/').map(str::trim).collect::<Vec<_>>().join("/");
            let problem = format!("there is no cgroup {name:?}, which has a space before or after a name");
            return Some(new(policy, pattern, problem, Some(trimmed)));
        }
        Named::Cgroup => {
            let path = name.parse::<CgroupPath>().ok().filter(|_| pattern.is_literal())?;
            let above: Vec<_> = path.ancestors();
            if !above.iter().all(|outer| outer.is_root() || outer.name().strip_suffix(".slice").is_some()) {
                return None;
            }
            let unit = Pattern::unit(path.name()).ok().filter(|unit| unit.as_str() == path.name())?;
            let elsewhere = cgroups.iter().find(|other| unit.matches(&other.parts().collect::<Vec<_>>()));
            if let Some(elsewhere) = elsewhere {
                let problem = format!("there is no cgroup {path}: {} is {elsewhere}", path.name());
                return Some(new(policy, pattern, problem, Some(format!("units = [{:?}]", path.name()))));
            }
            (missing_unit(path.name())?, known_units(Manager::System, cgroups))
        }
    };
    let perhaps = nearest(pattern.as_str().rsplit('/').next().unwrap_or_default(), known);
    Some(new(policy, pattern, problem, perhaps))
}

fn new(policy: &str, pattern: &Pattern, problem: String, perhaps: Option<String>) -> Doubt {
    let (policy, name) = (policy.to_owned(), pattern.as_str().to_owned());
    Doubt { policy, key: pattern.named().key(), name, problem, perhaps }
}

/// Whether a unit of this kind has a file before it runs. Scopes are made by programs, and slices by their members.
fn is_installed_kind(name: &str) -> bool {
    !crate::model::unit_name::is_glob(name) && [".service", ".socket"].iter().any(|ending| name.ends_with(ending))
}

fn missing_unit(name: &str) -> Option<String> {
    (is_installed_kind(name) && !units::exists(name)).then(|| format!("there is no unit {name}"))
}

/// The units that have a file or a cgroup.
fn known_units(manager: Manager, cgroups: &[CgroupPath]) -> Vec<String> {
    let any = match manager {
        Manager::System => Pattern::unit("*"),
        Manager::User => Pattern::user_unit("*"),
    };
    let running =
        cgroups.iter().filter(|path| any.as_ref().is_ok_and(|any| any.matches(&path.parts().collect::<Vec<_>>())));
    let running = running.map(|path| path.name().to_owned()).collect::<Vec<_>>();
    units::files(manager).into_iter().chain(running).collect()
}

#[cfg(test)]
mod tests {
    use super::of_policies;
    use crate::model::{cgroup_path::CgroupPath, config, spec::Pattern};

    #[test]
    fn what_another_policy_names() {
        let text = "[[policy]]\nname = \"vpn\"\ninterface = \"a\"\ncgroups = [\"/system.slice/t.service\"]\nunits = [\"u\"]\n\
                    [[policy]]\nname = \"x\"\ninterface = \"b\"\nunits = [\"t\", \"u*\", \"v\"]\ncgroups = [\"/a.slice/u.service\"]\n";
        let config = config::parse("f.toml", text).expect("valid");
        let named: Vec<_> = config.policies.iter().map(|policy| (policy.name.as_str(), &*policy.cgroups)).collect();
        let found: Vec<_> = super::shadowed(&named, &[]).iter().map(ToString::to_string).collect();
        let want = [
            "policy x: /a.slice/u.service has no effect: policy vpn names /a.slice/u.service, too, and stands before it",
            "policy x: t.service has no effect: policy vpn names /system.slice/t.service, too, and stands before it",
        ];
        assert_eq!(found.len(), want.len(), "{found:?}");
        assert!(want.iter().all(|want| found.iter().any(|found| found == want)), "{found:?}");
    }

    #[test]
    fn what_is_meant_otherwise() {
        let text = "[[uplink]]\nname = \"internet\"\nmembers = [\"a\", \"b\"]\n\
                    [[policy]]\nname = \"p\"\ninterface = \"internet\"\ncgroups = [\"/x\"]\n\
                    [[policy]]\nname = \"o\"\ninterface = \"a\"\nenforce = \"observe\"\ncgroups = [\"/y\"]\n\
                    [[policy]]\nname = \"h\"\ninterface = \"a\"\nenforce = \"observe\"\nlocal = [\"host\"]\ncgroups = [\"/z\"]\n";
        let config = config::parse("f.toml", text).expect("valid");
        let policy = &config.policies[0];
        let spaced = Pattern::parse("/system.slice/x.service ").expect("a pattern");
        let spaced = super::doubt("p", &spaced, &[]).expect("it matches nothing").to_string();
        assert!(spaced.contains("has a space before or after a name; perhaps /system.slice/x.service"), "{spaced}");
        let mut resolvers = policy.clone();
        for address in ["fe80::1", "192.0.2.255"] {
            resolvers.target.enforcement.dns.add(address).expect("an address");
        }
        let none = super::no_resolvers(&resolvers, &["192.0.2.255".parse().expect("an address")]);
        assert!(none[0].to_string().starts_with("policy p: 192.0.2.255 is the broadcast address"), "{none:?}");
        assert!(none.len() == 2 && none[1].to_string().contains("fe80::1 is a link-local address"), "{none:?}");
        let found: Vec<_> = super::doubts(&config).iter().map(ToString::to_string).collect();
        let want = [
            "policy p: there is no interface internet, but an [[uplink]] of this name; perhaps uplink = \"internet\"",
            "policy o: enforce = \"observe\" refuses calls to this host, as \"steer\" does; `local = [\"host\"]` lets them pass",
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn what_the_host_does_not_know() {
        let text = "[[policy]]\nname = \"p\"\ninterface = \"a\"\nunits = [\"steer-none\", \"runs\", \"steer-none-*.service\"]\n\
                    users = [\"root\", \"steer-nobody\", \"0\"]\nuser_units = [\"app-*.scope\", \"steer-none\"]\n\
                    cgroups = [\"/system.slice/steer-none2.service\", \"/system.slice/runs.service\", \"/x\"]\n";
        let config = config::parse("f.toml", text).expect("valid");
        let cgroups: Vec<CgroupPath> = ["/a.slice/runs.service"].map(|path| path.parse().expect("a path")).into();
        let found: Vec<_> = of_policies(&config.policies, &cgroups).iter().map(ToString::to_string).collect();
        let want = [
            "policy p: there is no unit steer-none2.service",
            "policy p: there is no cgroup /system.slice/runs.service: runs.service is /a.slice/runs.service; perhaps units = [\"runs.service\"]",
            "policy p: there is no unit steer-none.service",
            "policy p: no unit matches steer-none-*.service",
            "policy p: there is no unit steer-none.service of all users, and none runs",
            "policy p: there is no user steer-nobody",
        ];
        assert_eq!(found, want);
    }
}
