//! Which member of a group of uplinks new sockets get, and why. Pure.

use anyhow::{bail, ensure};
use serde::Serialize;

use super::chain::{Attached, Deciding};
use crate::{
    apply::uplinks,
    kernel::{members, text},
    model::uplink::{
        Family,
        health::{Reason, State},
    },
};

/// A group of uplinks, for one cgroup.
#[derive(Clone, Debug, Serialize)]
pub struct Members {
    /// Its name.
    pub uplink: String,
    /// The member that new IPv4 sockets get; absent if the group is closed.
    pub ipv4: Option<String>,
    /// The same for IPv6.
    pub ipv6: Option<String>,
    /// Sentences: the state of each member.
    pub reasons: Vec<String>,
    /// What would be chosen if the states of `--if` were so.
    pub predicted: Option<Predicted>,
}

/// What would be chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Predicted {
    /// The member for IPv4.
    pub ipv4: Option<String>,
    /// The member for IPv6.
    pub ipv6: Option<String>,
}

/// Fails if a state is assumed of what is no member.
pub(super) fn check(deciding: Deciding<'_>, assumed: &[(String, State)]) -> anyhow::Result<()> {
    if assumed.is_empty() {
        return Ok(());
    }
    let group = match deciding {
        Deciding::Attachment(_, attached) => attached.policy.as_ref().and_then(|policy| policy.group.as_deref()),
        Deciding::OtherVersion(_) | Deciding::Nobody => None,
    };
    let Some(group) = group else { bail!("--if is for members of a group of uplinks, and no group decides here") };
    let names: Vec<_> = members(group).map(|(_, member)| text(&member.interface)).collect();
    for (name, _) in assumed {
        let of = text(&group.name);
        ensure!(names.contains(name), "--if: {name} is no member of uplink {of}; its members are {}", names.join(", "));
    }
    Ok(())
}

pub(super) fn members_of(attached: &Attached, assumed: &[(String, State)]) -> Option<Members> {
    let group = attached.policy.as_ref()?.group.as_deref()?;
    let id = attached.attachment.cgroup_id;
    let chosen = uplinks::chosen(group, id);
    let predicted = (!assumed.is_empty()).then(|| {
        let predicted = uplinks::predict(group, id, assumed);
        Predicted { ipv4: predicted.v4, ipv6: predicted.v6 }
    });
    let mut reasons = Vec::new();
    for (position, member) in members(group) {
        let states = Family::ALL.map(|family| {
            let health = group.health[family as usize][position];
            let known = (State::from_repr(health.state), Reason::from_repr(health.reason));
            match known {
                (Some(state), Some(reason)) if health.since_ns != 0 => format!("{state}: {reason}"),
                _ => "not looked at yet".to_owned(),
            }
        });
        let state =
            if states[0] == states[1] { states[0].clone() } else { format!("IPv4 {}; IPv6 {}", states[0], states[1]) };
        reasons.push(format!("{}, tier {}, is {state}", text(&member.interface), member.tier));
    }
    Some(Members { uplink: text(&group.name), ipv4: chosen.v4, ipv6: chosen.v6, reasons, predicted })
}

impl Members {
    /// As lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.uplink, both(self.ipv4.as_deref(), self.ipv6.as_deref()))];
        lines.extend(self.reasons.iter().cloned());
        if let Some(predicted) = &self.predicted {
            lines.push(format!("if that were so: {}", both(predicted.ipv4.as_deref(), predicted.ipv6.as_deref())));
        }
        lines
    }
}

fn both(v4: Option<&str>, v6: Option<&str>) -> String {
    let one = |member: Option<&str>| member.unwrap_or("closed").to_owned();
    if v4 == v6 { one(v4) } else { format!("IPv4 {}, IPv6 {}", one(v4), one(v6)) }
}
