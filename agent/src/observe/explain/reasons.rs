//! Why an attachment decides, or why none does. Pure.

use super::{
    chain::{Attached, Deciding, Level, matches, winner},
    document::{Kind, Match},
    look::Facts,
};

/// Sentences, the most important first.
pub(super) fn reasons(facts: &Facts, deciding: Deciding<'_>) -> Vec<String> {
    let is_inside = |level: &&Level| match deciding {
        Deciding::Attachment(decider, _) | Deciding::OtherVersion(decider) => {
            level.path != decider.path && level.path.is_in(&decider.path)
        }
        Deciding::Nobody => true,
    };
    let mut reasons = Vec::new();
    match deciding {
        Deciding::Attachment(level, attached) => reasons.extend(selection(facts, level, attached)),
        Deciding::OtherVersion(level) => reasons.push(format!(
            "{} was attached by another version of steer, whose records this version cannot read; `steer detach {0}` detaches it",
            level.path
        )),
        Deciding::Nobody => {}
    }
    // From the innermost to the outermost, as they would decide.
    reasons.extend(facts.levels.iter().rev().filter(is_inside).filter_map(|level| passed_over(facts, level)));
    match deciding {
        Deciding::Attachment(decider, _) => {
            if decider.path != facts.cgroup {
                reasons.push(format!(
                    "the policy of {} applies to all cgroups in it without their own attachment",
                    decider.path
                ));
            }
            let outer =
                facts.levels.iter().rev().filter(|level| level.path != decider.path && decider.path.is_in(&level.path));
            let outer = outer.filter_map(|level| Some((level, level.attached.as_ref()?)));
            reasons.extend(outer.map(|(level, attached)| {
                format!(
                    "policy {} on {} does not apply: the most specific cgroup wins, and {} is in it",
                    attached.policy_name(),
                    level.path,
                    decider.path
                )
            }));
        }
        Deciding::Nobody if reasons.is_empty() => reasons.push(nothing(facts)),
        Deciding::OtherVersion(_) | Deciding::Nobody => {}
    }
    reasons
}

/// Why the cgroup that decides has this policy.
fn selection(facts: &Facts, level: &Level, attached: &Attached) -> Vec<String> {
    let (path, policy) = (&level.path, attached.policy_name());
    let matches = matches(&facts.policies, path);
    let winner = winner(&matches);
    if attached.attachment.is_manual() {
        let manual = format!(
            "{path} was attached to policy {policy} manually (`steer attach`, `steer exec` or a unit's drop-in)"
        );
        let configured = winner.filter(|winner| winner.policy != policy).map(|winner| {
            format!("{}, but does not apply: the daemon does not change manual attachments", named(winner, path))
        });
        return [manual].into_iter().chain(configured).collect();
    }
    let file = &facts.configuration.file;
    match winner {
        Some(winner) if winner.policy == policy => {
            let losers = matches.iter().filter(|found| !found.wins);
            [named(winner, path)].into_iter().chain(losers.map(|loser| loses(loser, winner))).collect()
        }
        Some(winner) => vec![format!(
            "{path} was attached to policy {policy} by a daemon whose configuration differs from {file}: there, {}",
            named(winner, path)
        )],
        None => {
            let now = match &facts.configuration.problem {
                None => format!("{file} does not name it now"),
                Some(problem) => format!("that configuration was not read: {file}: {problem}"),
            };
            vec![format!("{path} was attached to policy {policy} by a daemon's configuration; {now}")]
        }
    }
}

fn named(found: &Match, path: &crate::model::cgroup_path::CgroupPath) -> String {
    let kind = match (found.key, found.kind) {
        ("units", _) => "unit",
        ("user_units", _) => "unit of users",
        ("users", _) => "user",
        (_, Kind::Path) => "path",
        (_, Kind::Glob) => "glob",
    };
    format!("policy {} names {path} by the {kind} {:?}, in {}", found.policy, found.pattern, found.file)
}

fn loses(loser: &Match, winner: &Match) -> String {
    let why = match (loser.kind, winner.kind) {
        (Kind::Glob, Kind::Path) => "a path takes precedence over a glob".to_owned(),
        _ => format!("{} comes first in the configuration", winner.policy),
    };
    format!("policy {} also names it, by {:?}, but does not apply: {why}", loser.policy, loser.pattern)
}

/// Why a cgroup that has or should have its own attachment does not decide. `None`: it should not have one.
fn passed_over(facts: &Facts, level: &Level) -> Option<String> {
    let path = &level.path;
    if let Some(attached) = &level.attached {
        return Some(format!(
            "{path} is attached to policy {}, but its program sock_create is missing, so it does not bind new sockets; `steer \
             doctor` shows the repair",
            attached.policy_name()
        ));
    }
    let matches = matches(&facts.policies, path);
    let named = named(winner(&matches)?, path);
    let manual = |path: &crate::model::cgroup_path::CgroupPath| {
        let mut levels = facts.levels.iter();
        let attached = levels.find(|level| level.path == *path).and_then(|level| level.attached.as_ref());
        attached.is_some_and(|attached| attached.attachment.is_manual())
    };
    if facts.policies.attaching(path, manual).is_none() {
        return Some(format!("{named}, but that policy already applies through the cgroup around it"));
    }
    // The programs of the nearest cgroup decide.
    let mut outwards = facts.levels.iter().rev().filter(|level| path.is_in(&level.path));
    let nearest = outwards.find(|level| level.sock_create.is_some());
    let why = match nearest.and_then(|level| level.keeps_out(path)) {
        Some(foreign) => foreign,
        None if facts.daemon => {
            "the running daemon has another configuration, or has not noticed the cgroup; `steer doctor` shows the repair"
                .to_owned()
        }
        None => "no daemon runs; `steer daemon` attaches it".to_owned(),
    };
    Some(format!("{named}, but nothing is attached there: {why}"))
}

fn nothing(facts: &Facts) -> String {
    let configured = match &facts.configuration.problem {
        None => format!("no policy of {} names one of them", facts.configuration.file),
        Some(problem) => format!("no configuration was read ({}: {problem})", facts.configuration.file),
    };
    format!("nothing is attached to {} or to a cgroup around it, and {configured}", facts.cgroup)
}
