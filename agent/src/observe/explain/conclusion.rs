//! What happens to new sockets, in a sentence. Pure.

use steer_common::{Counter, Verdict, decide};

use super::{
    chain::{Attached, Deciding, Level, matches, winner},
    document::{LinkState, Outcome, Uplink},
    look::Facts,
};
use crate::{
    model::{cgroup_path::CgroupPath, config::UNCLASSIFIED, quote::shown},
    observe::elsewhere::Elsewhere,
};

/// The outcome, and the sentence. `uplink` is that of the policy; the module `reasons` returns `reasons`.
pub(super) fn conclude(
    facts: &Facts,
    deciding: Deciding<'_>,
    uplink: Option<&Uplink>,
    reasons: &[String],
) -> (Outcome, String) {
    let subject = subject(facts);
    let (level, attached) = match deciding {
        Deciding::Attachment(level, attached) => (level, attached),
        Deciding::OtherVersion(level) => {
            let path = &level.path;
            let sentence = format!(
                "{subject} are steered by another version of steer on {path}, whose records this version cannot read"
            );
            return (Outcome::OtherVersion, sentence);
        }
        Deciding::Nobody => {
            let because = reasons.first().map(|reason| format!(", because {reason}")).unwrap_or_default();
            return (Outcome::Unsteered, format!("{subject} are not steered{because}"));
        }
    };
    // The command has looked from its own namespace. Processes of a cgroup may be in any.
    let they = if facts.process.is_some() { "they" } else { "those of this command's network namespace" };
    let by = by(facts, level, attached);
    let record = attached.policy.as_ref().map(|policy| &policy.record);
    let decided = attached.line();
    let (outcome, sentence) = match decide(record, decided, facts.netns.cookie) {
        Verdict::Leave(Counter::LeftExempt) => {
            (Outcome::Exempt, format!("{subject} are not steered: they are exempt by {by}"))
        }
        Verdict::Leave(_) => {
            let sentence = format!(
                "{subject} are not steered, because {they} are in another network namespace than that of {by}, whose interface \
                 index is not valid there"
            );
            (Outcome::OtherNetns, sentence)
        }
        Verdict::Refuse(_) => {
            let sentence = format!(
                "{subject} are refused (EPERM), because {they} are in another network namespace than that of {by}, which has \
                 other_netns = \"refuse\""
            );
            (Outcome::Refused, sentence)
        }
        Verdict::Close(Counter::ClosedMissing) if attached.policy_name() == UNCLASSIFIED => {
            let sentence = format!(
                "{subject} are closed, by {by}, because `parent` holds {} closed, and no policy names a cgroup in it that they are in",
                level.path
            );
            (Outcome::Closed, sentence)
        }
        Verdict::Close(Counter::ClosedMissing) => {
            let why = uplink.map_or_else(|| "it has no uplink".to_owned(), closed);
            (Outcome::Closed, format!("{subject} are closed, by {by}, because {why}"))
        }
        Verdict::Close(_) => {
            let path = &level.path;
            let sentence = format!("{subject} are closed, because the attachment of {path} names no policy");
            (Outcome::Closed, sentence)
        }
        verdict @ (Verdict::Bind(_) | Verdict::Mark(_)) => match uplink {
            Some(uplink) if uplink.state != LinkState::Missing => {
                let link = uplink.link.as_deref().unwrap_or(&uplink.interface);
                let (index, state) = (decided.ifindex, state(uplink.state));
                match verdict {
                    Verdict::Mark(mark) => {
                        let mark = mark.value;
                        let sentence =
                            format!("{subject} are routed to {link} (index {index}, mark {mark:#x}){state}, by {by}");
                        (Outcome::Routed, sentence)
                    }
                    _ => (Outcome::Bound, format!("{subject} are bound to {link} (index {index}){state}, by {by}")),
                }
            }
            uplink => {
                let why = uplink.map_or_else(|| "no interface has its index".to_owned(), closed);
                let but = match verdict {
                    Verdict::Mark(_) => "; what `local` and `except` name is still reached",
                    _ => "",
                };
                (Outcome::Closed, format!("{subject} are closed, by {by}, because {why}{but}"))
            }
        },
    };
    (outcome, sentence + last_word(facts, deciding, outcome) + &elsewhere(facts))
}

/// The processes to which the sentence does not apply, or the way of the process that is not steered.
fn elsewhere(facts: &Facts) -> String {
    let note = |elsewhere: &Elsewhere| match facts.process {
        Some(_) => format!("; {}", elsewhere.way),
        None => format!("; but {elsewhere}"),
    };
    facts.elsewhere.iter().map(note).collect()
}

fn subject(facts: &Facts) -> String {
    match &facts.process {
        Some(process) => format!("new sockets of process {} ({})", process.pid, shown(&process.comm)),
        None => format!("new sockets of processes in {}", facts.cgroup),
    }
}

/// The policy, where it is attached, and where it comes from.
fn by(facts: &Facts, level: &Level, attached: &Attached) -> String {
    let (path, policy) = (&level.path, attached.policy_name());
    format!("policy {policy} on {path}, {}", source(facts, path, &policy, attached.attachment.is_manual()))
}

fn source(facts: &Facts, path: &CgroupPath, policy: &str, is_manual: bool) -> String {
    if is_manual {
        return "attached manually".to_owned();
    }
    let matches = matches(&facts.policies, path);
    match winner(&matches).filter(|winner| winner.policy == policy) {
        Some(winner) => format!("from {}", winner.file),
        None => "from a configuration that was not read".to_owned(),
    }
}

/// Why an uplink is closed.
fn closed(uplink: &Uplink) -> String {
    let Uplink { interface, .. } = uplink;
    if interface.is_empty() {
        return "the policy is no longer in the configuration".to_owned();
    }
    let hint = "the policy was not updated: start a daemon, or attach the cgroup again";
    match (uplink.ifindex, uplink.present_ifindex) {
        (_, None) => format!("its uplink {interface} is missing"),
        (None, Some(present)) => {
            format!("it records its uplink as missing, but {interface} has index {present}; {hint}")
        }
        (Some(ifindex), Some(present)) => {
            format!("no interface has its uplink's index {ifindex}, but {interface} has index {present}; {hint}")
        }
    }
}

fn state(state: LinkState) -> &'static str {
    match state {
        LinkState::Up | LinkState::Missing => "",
        LinkState::Down => ", which is down (ENETUNREACH)",
        LinkState::NoCarrier => ", which has no carrier",
    }
}

/// A note about a program of another owner that may bind the sockets again.
fn last_word(facts: &Facts, deciding: Deciding<'_>, outcome: Outcome) -> &'static str {
    let may_be_bound = matches!(outcome, Outcome::Bound | Outcome::Routed | Outcome::Closed);
    let mut foreign = facts.levels.iter().flat_map(|level| level.foreign(deciding));
    if may_be_bound && foreign.any(|program| program.last_word) {
        return "; but another program runs after steer's, and may bind them to another interface";
    }
    ""
}
