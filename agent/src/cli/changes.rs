//! What `steer policy set` has changed.

use super::output::{note, say};
use crate::{
    host::{
        account,
        cgroup::{Hierarchy, scope},
        policy_files::Kept,
    },
    model::{
        cgroup_path::CgroupPath,
        quote::shown,
        spec::{Existing, Pattern, changes},
    },
    observe::doubts,
    run::api::PolicyDocument,
};

/// Prints the difference, where the policy applies now, and names that this host does not know.
pub(super) fn print(before: Option<&PolicyDocument>, now: &PolicyDocument) -> anyhow::Result<()> {
    let name = shown(&now.name).to_string();
    let place = match now.kept {
        Kept::Runtime => "kept until the next boot".to_owned(),
        Kept::File | Kept::Stored => format!("kept in {}", now.file),
    };
    let changes = before.map(|before| changes(&before.policy, &now.policy));
    match (&changes, before.is_some_and(|before| before.kept != now.kept)) {
        (None, _) => say!("added policy {name}, {place}")?,
        (Some(changes), false) if changes.is_empty() => say!("policy {name} is unchanged")?,
        (Some(_), _) => say!("changed policy {name}, {place}")?,
    }
    for change in changes.iter().flatten() {
        say!("  {}", shown(change))?;
    }
    let mut patterns: Vec<_> = now.policy.patterns().cloned().collect();
    let known = account::known(patterns.iter());
    for pattern in &mut patterns {
        pattern.resolve(&known);
    }
    let hierarchy = Hierarchy::find();
    let found = hierarchy.as_ref().map(|hierarchy| hierarchy.descendants(&CgroupPath::root()).unwrap_or_default());
    let cgroups: Vec<_> = found.unwrap_or_default().into_iter().map(|found| found.path).collect();
    for doubt in patterns.iter().filter_map(|pattern| doubts::doubt(&now.name, pattern, &cgroups)) {
        note(&format!("warning: {}", shown(&doubt.to_string())));
    }
    if changes.is_none_or(|changes| !changes.is_empty())
        && let Ok(hierarchy) = &hierarchy
    {
        running(hierarchy, &patterns, &cgroups, now)?;
    }
    Ok(())
}

/// Names what runs already.
fn running(
    hierarchy: &Hierarchy,
    patterns: &[Pattern],
    cgroups: &[CgroupPath],
    now: &PolicyDocument,
) -> anyhow::Result<()> {
    const MOST: usize = 5;
    let is_named = |path: &&CgroupPath| {
        let parts: Vec<_> = path.parts().collect();
        patterns.iter().any(|pattern| pattern.matches(&parts)) && scope::is_populated(hierarchy, path).unwrap_or(false)
    };
    let all: Vec<_> = cgroups.iter().filter(is_named).collect();
    if all.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = all.iter().take(MOST).map(ToString::to_string).collect();
    let more = if all.len() > MOST { format!(" and {} more", all.len() - MOST) } else { String::new() };
    say!("running now: {}{more}", named.join(", "))?;
    if now.policy.existing.unwrap_or_default() == Existing::Keep {
        say!("restart them so that no older socket is left, or set --existing destroy")?;
    }
    Ok(())
}
