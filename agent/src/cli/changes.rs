//! What `steer policy set` has changed.

use std::collections::BTreeMap;

use super::output::{note, say};
use crate::{
    host::{
        account,
        cgroup::{Hierarchy, scope},
        policy_files::Kept,
    },
    model::{
        cgroup_path::CgroupPath,
        policy::naming,
        quote::shown,
        spec::{Exceptions, Existing, Pattern, Uplink, changes},
    },
    observe::doubts::{self, Doubt},
    run::api::{InterfaceDocument, PolicyDocument},
};

/// Prints the difference, where the policy applies now, and names that this host does not know, or that have no effect. `all`: the policies
/// now, in their order.
pub(super) fn print(
    before: Option<&PolicyDocument>,
    now: &PolicyDocument,
    all: &[PolicyDocument],
    links: &[InterfaceDocument],
) -> anyhow::Result<()> {
    let name = shown(&now.name).to_string();
    let place = match now.kept {
        Kept::Runtime => "kept until the next boot".to_owned(),
        Kept::File | Kept::Stored => format!("kept in {}", now.file),
    };
    let changes = before.map(|before| changes(&before.policy, &now.policy));
    match (&changes, before.is_some_and(|before| before.kept != now.kept)) {
        (None, _) => say!("added policy {name}, {place}")?,
        (Some(changes), false) if changes.is_empty() => say!("policy {name} is unchanged")?,
        (Some(changes), true) if changes.is_empty() => say!("policy {name} is unchanged, and {place} now")?,
        (Some(_), _) => say!("changed policy {name}, {place}")?,
    }
    for change in changes.iter().flatten() {
        say!("  {}", shown(change))?;
    }
    let named = Named::of(all);
    let patterns = named.of_policy(&now.name);
    let hierarchy = Hierarchy::find();
    let cgroups = hierarchy.as_ref().map(cgroups).unwrap_or_default();
    let unknown = patterns.iter().filter_map(|pattern| doubts::doubt(&now.name, pattern, &cgroups));
    let shadowed = doubts::shadowed(&named.each(), &cgroups).into_iter().filter(|doubt| doubt.policy == now.name);
    for doubt in unknown.chain(shadowed).chain(missing(now, links)) {
        note(&format!("warning: {}", shown(&doubt.to_string())));
    }
    if changes.is_none_or(|changes| !changes.is_empty())
        && let Ok(hierarchy) = &hierarchy
    {
        running(hierarchy, &named, &cgroups, now)?;
    }
    Ok(())
}

/// What policies name, in their order.
struct Named<'p>(Vec<(&'p str, Vec<Pattern>)>);

impl<'p> Named<'p> {
    fn of(policies: &'p [PolicyDocument]) -> Self {
        let known = account::known(policies.iter().flat_map(|policy| policy.policy.patterns()));
        let resolved = |policy: &PolicyDocument| {
            let mut patterns: Vec<_> = policy.policy.patterns().cloned().collect();
            for pattern in &mut patterns {
                pattern.resolve(&known);
            }
            patterns
        };
        Self(policies.iter().map(|policy| (policy.name.as_str(), resolved(policy))).collect())
    }

    fn each(&self) -> Vec<(&'p str, &[Pattern])> {
        self.0.iter().map(|(name, patterns)| (*name, &**patterns)).collect()
    }

    fn of_policy(&self, name: &str) -> &[Pattern] {
        self.0.iter().find(|(policy, _)| *policy == name).map_or(&[], |(_, patterns)| patterns)
    }

    /// The policy that names exactly this cgroup.
    fn naming(&self, path: &CgroupPath) -> Option<&'p str> {
        let parts: Vec<_> = path.parts().collect();
        naming(&self.0.iter().map(|(_, patterns)| &**patterns), &parts).map(|at| self.0[at].0)
    }

    /// The policy that holds a cgroup: that of the nearest one which is named.
    fn holding(&self, path: &CgroupPath) -> Option<&'p str> {
        path.self_and_ancestors().iter().find_map(|path| self.naming(path))
    }
}

fn cgroups(hierarchy: &Hierarchy) -> Vec<CgroupPath> {
    let found = hierarchy.descendants(&CgroupPath::root()).unwrap_or_default();
    found.into_iter().map(|found| found.path).collect()
}

fn runs(hierarchy: &Hierarchy, path: &CgroupPath) -> bool {
    scope::is_populated(hierarchy, path).unwrap_or(false)
}

/// Some of these, and how many there are besides.
fn some(paths: &[&CgroupPath]) -> String {
    const MOST: usize = 5;
    let named: Vec<_> = paths.iter().take(MOST).map(ToString::to_string).collect();
    let more = if paths.len() > MOST { format!(" and {} more", paths.len() - MOST) } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// Names what runs, and was held by this policy before a change and is not any more.
pub(super) fn released(policy: &str, before: &[PolicyDocument], after: &[PolicyDocument]) -> anyhow::Result<()> {
    let steers =
        |document: &&PolicyDocument| document.name == policy && document.policy.named_uplink() != Some(Uplink::Exempt);
    let Ok(hierarchy) = Hierarchy::find() else { return Ok(()) };
    if !before.iter().any(|document| steers(&document)) {
        return Ok(());
    }
    let (before, after) = (Named::of(before), Named::of(after));
    let mut now: BTreeMap<Option<&str>, Vec<&CgroupPath>> = BTreeMap::new();
    let cgroups = cgroups(&hierarchy);
    for path in cgroups.iter().filter(|path| before.naming(path) == Some(policy) && runs(&hierarchy, path)) {
        now.entry(after.holding(path)).or_default().push(path);
    }
    for (holder, paths) in now {
        match holder {
            Some(holder) if holder == policy => {}
            Some(holder) => say!("held by policy {} now: {}", shown(holder), some(&paths))?,
            None => say!("no longer steered: {}; new sockets follow the routing table", some(&paths))?,
        }
    }
    Ok(())
}

/// The links that a policy names, and this host does not have.
fn missing(now: &PolicyDocument, links: &[InterfaceDocument]) -> Vec<Doubt> {
    let Some(uplink) = now.policy.named_uplink() else { return Vec::new() };
    let exceptions = now.policy.except.clone().unwrap_or(Exceptions::NONE);
    doubts::missing_links(&now.name, (&uplink, &exceptions), &[], &InterfaceDocument::table(links))
}

/// Names what runs already.
fn running(
    hierarchy: &Hierarchy,
    named: &Named<'_>,
    cgroups: &[CgroupPath],
    now: &PolicyDocument,
) -> anyhow::Result<()> {
    let is_named = |path: &&CgroupPath| named.naming(path) == Some(now.name.as_str()) && runs(hierarchy, path);
    let all: Vec<_> = cgroups.iter().filter(is_named).collect();
    if all.is_empty() {
        return Ok(());
    }
    say!("running now: {}", some(&all))?;
    if now.policy.existing.unwrap_or_default() == Existing::Keep {
        say!("restart them so that no older socket is left, or set --existing destroy")?;
    }
    Ok(())
}
