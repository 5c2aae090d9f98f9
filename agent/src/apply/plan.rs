//! What a reload would change. It decides with the code of the reload, and changes nothing.
//!
//! **Invariant:** all that a reload attaches, detaches and changes is in the plan, unless the host changes in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Serialize;
use steer_common::{CLOSED_IFINDEX, Owner, PolicyRecord};
use strum::Display;

use super::{
    blind_spots::BlindSpots,
    converge::{
        InForce,
        decision::{self, Decision},
        refuse_foreign,
    },
    released,
    resolve::{self, Namespace},
    routes,
    takeover::foreseen::{Coming, foresee},
};
use crate::{
    host::{
        cgroup::{Found, Hierarchy},
        link, process,
    },
    kernel::{self, Attachment, Datapath, Pins, Placement, PolicyEntry, text},
    model::{
        cgroup_path::CgroupPath,
        plan::Step,
        policy::Policies,
        spec::{Existing, changes},
    },
};

/// The plan. The field names are stable.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    /// The policies that differ from those in force, by name.
    pub policies: Vec<PolicyChange>,
    /// The cgroups whose attachments change, by path.
    pub cgroups: Vec<CgroupChange>,
}

/// A policy that differs.
#[derive(Debug, Serialize)]
pub struct PolicyChange {
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub change: Change,
    /// The keys that differ. Empty also where only its group of uplinks differs.
    pub keys: Vec<String>,
    /// Its uplink is missing: it is closed until that exists.
    pub missing: Option<String>,
}

/// What happens to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Change {
    /// It is not in force yet.
    New,
    /// It is in force with other keys.
    Changed,
    /// It is in force, and no longer configured.
    Removed,
}

/// What happens to the attachment of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// It is made.
    Attach,
    /// It gets another policy, or the changed one of the same name.
    Change,
    /// Programs that are missing are attached.
    Repair,
    /// It is removed.
    Detach,
    /// It was made by hand with a policy that is no longer configured: nothing gets out until it is detached.
    Close,
}

/// A cgroup whose attachment changes.
#[derive(Debug, Serialize)]
pub struct CgroupChange {
    /// The cgroup.
    pub path: CgroupPath,
    /// Its id.
    pub id: u64,
    /// What happens.
    pub action: Action,
    /// Whether the attachment was made by `attach` or `exec`.
    pub manual: bool,
    /// The policy that holds its processes now, its own or that of a cgroup around it.
    pub before: Option<String>,
    /// The policy that holds them then.
    pub after: Option<String>,
    /// The processes that it concerns.
    pub processes: Vec<Process>,
    /// The number of their open sockets.
    pub sockets: usize,
    /// What the policy does with sockets that are bound elsewhere.
    pub existing: Option<Existing>,
    /// How many of the sockets are bound to the uplink. Absent if that is not known before.
    pub bound: Option<usize>,
    /// How many of the sockets are destroyed. Absent if that is not known before.
    pub destroyed: Option<usize>,
}

/// A process.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Its PID.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// Makes the plan for these policies in a namespace. `pins`: absent if nothing is pinned. `released`: the file of what `steer off` has
/// released, for the start of a daemon.
pub fn plan(
    pins: Option<&Pins>,
    hierarchy: &Hierarchy,
    policies: Policies,
    namespace: Namespace<'_>,
    released: Option<&Path>,
) -> anyhow::Result<Plan> {
    let datapath = pins.map(Datapath::open).transpose()?.flatten();
    // Nobody changes anything while it is read.
    let lock = datapath.as_ref().map(Datapath::lock).transpose()?;
    if let Some(datapath) = &datapath {
        refuse_foreign(datapath, namespace.cookie)?;
    }
    let targets = policies.targets();
    let wanted: Vec<_> =
        targets.map(|(name, target)| resolve::policy(name, target, Owner::Config, namespace)).collect();
    let taken = routes::taken(&wanted, namespace)?;
    let mut placement = Datapath::place(datapath.as_ref(), &wanted, &taken)?;
    if let Some(error) = placement.without_mark.take() {
        return Err(error.into());
    }
    let entries = datapath.as_ref().map_or_else(|| Ok(Vec::new()), Datapath::policies)?;
    let mut attached = datapath.as_ref().map_or_else(|| Ok(Vec::new()), Datapath::attachments)?;
    attached.retain(|attachment| attachment.live && !hierarchy.is_gone(attachment.cgroup_id));
    let announced = match (pins, &lock) {
        (Some(pins), Some(lock)) => pins.announced(lock)?,
        _ => BTreeSet::new(),
    };
    let changed = changed_policies(&entries, &placement, &policies);
    let in_force = InForce { policies, slots: placement.slots.clone() };
    let decision = decision::decide(hierarchy, &in_force, &attached, &announced, None, &mut BlindSpots::default())?;
    let heirs = match &datapath {
        Some(datapath) => datapath.heirs(&placement.records, &placement.slots)?,
        None => Vec::new(),
    };
    let mut steps = Steps { decision, attached: &attached, entries: &entries, placement: &placement }.all(heirs);
    for released in released.map(released::read).transpose()?.into_iter().flatten() {
        if hierarchy.path_of(released.cgroup).is_some() && !attached.iter().any(|it| it.cgroup_id == released.cgroup) {
            let after = After::Named(released.policy);
            steps.insert(released.cgroup, Planned { action: Action::Attach, manual: true, after });
        }
    }
    let before = attached.iter().map(|it| (it.cgroup_id, it.record.policy)).collect();
    let cgroups = Cgroups { hierarchy, before, records: &placement.records, steps: &steps };
    Ok(Plan { policies: changed, cgroups: cgroups.all(namespace.cookie)? })
}

fn changed_policies(entries: &[PolicyEntry], placement: &Placement, policies: &Policies) -> Vec<PolicyChange> {
    let in_force: Vec<_> =
        entries.iter().filter(|entry| entry.is_owned_by(Owner::Config) && !entry.is_retired()).collect();
    let mut changed = Vec::new();
    for ((name, target), slot) in policies.targets().zip(&placement.slots) {
        if in_force.iter().any(|entry| entry.slot == *slot) {
            continue;
        }
        let record = &placement.records[slot];
        let earlier = in_force.iter().find(|entry| entry.record.name == record.name);
        let keys =
            earlier.map(|entry| changes(&resolve::target(&entry.record, &entry.exceptions).spec(), &target.spec()));
        let is_missing = record.ifindex == CLOSED_IFINDEX;
        changed.push(PolicyChange {
            name: name.to_owned(),
            change: if earlier.is_some() { Change::Changed } else { Change::New },
            keys: keys.unwrap_or_default(),
            missing: target.uplink.interface().filter(|_| is_missing).map(str::to_owned),
        });
    }
    let is_wanted =
        |entry: &PolicyEntry| placement.slots.iter().any(|slot| placement.records[slot].name == entry.record.name);
    changed.extend(in_force.into_iter().filter(|entry| !is_wanted(entry)).map(|entry| PolicyChange {
        name: entry.name(),
        change: Change::Removed,
        keys: Vec::new(),
        missing: None,
    }));
    changed.sort_by(|a, b| a.name.cmp(&b.name));
    changed
}

/// What is planned for a cgroup.
struct Planned {
    action: Action,
    manual: bool,
    after: After,
}

/// What a cgroup is attached to afterwards.
enum After {
    Slot(u32),
    /// A policy that has no slot yet.
    Named(String),
    Nothing,
}

struct Steps<'a> {
    decision: Decision,
    attached: &'a [Attachment],
    entries: &'a [PolicyEntry],
    placement: &'a Placement,
}

impl Steps<'_> {
    /// The steps of the configuration, then what happens to the attachments by hand whose policies change.
    fn all(self, heirs: Vec<(u64, bool, u32)>) -> BTreeMap<u64, Planned> {
        let mut all = BTreeMap::new();
        for step in self.decision.steps {
            let (id, action, after) = match step {
                Step::Attach { cgroup_id, desired } => {
                    let action = match self.decision.actual.get(&cgroup_id) {
                        None => Action::Attach,
                        Some(actual) if actual.slot == desired.slot => Action::Repair,
                        Some(_) => Action::Change,
                    };
                    (cgroup_id, action, After::Slot(desired.slot))
                }
                Step::Detach { cgroup_id } => (cgroup_id, Action::Detach, After::Nothing),
            };
            all.insert(id, Planned { action, manual: false, after });
        }
        for (id, manual, slot) in heirs {
            all.entry(id).or_insert(Planned { action: Action::Change, manual, after: After::Slot(slot) });
        }
        let retires = |slot: u32| {
            let entry = self.entries.iter().find(|entry| entry.slot == slot);
            entry.is_some_and(|entry| {
                entry.is_owned_by(Owner::Config) && !entry.is_retired() && !self.placement.slots.contains(&slot)
            })
        };
        for attachment in self.attached.iter().filter(|attachment| retires(attachment.record.policy)) {
            let manual = attachment.is_manual();
            all.entry(attachment.cgroup_id).or_insert(Planned { action: Action::Close, manual, after: After::Nothing });
        }
        all
    }
}

struct Cgroups<'a> {
    hierarchy: &'a Hierarchy,
    /// The slots of the attachments, by cgroup id.
    before: BTreeMap<u64, u32>,
    records: &'a BTreeMap<u32, PolicyRecord>,
    steps: &'a BTreeMap<u64, Planned>,
}

impl Cgroups<'_> {
    fn all(&self, netns_cookie: u64) -> Result<Vec<CgroupChange>, kernel::Error> {
        let (mut changes, mut coming) = (Vec::new(), Vec::new());
        for (&id, planned) in self.steps {
            // It was removed since it was read.
            let Some(path) = self.hierarchy.path_of(id) else { continue };
            let cgroups = self.hierarchy.part(Found { path: path.clone(), id }, |id| self.is_attached_then(id))?;
            let pids = cgroups.iter().flat_map(|cgroup| self.hierarchy.members(&cgroup.path));
            let after = self.after(&path)?;
            let record = after.as_ref().and_then(|after| after.1);
            changes.push(CgroupChange {
                action: planned.action,
                manual: planned.manual,
                before: self.before(&path)?,
                existing: record.map(|record| resolve::existing(record.flags)),
                after: after.map(|after| after.0),
                processes: pids.map(|pid| Process { pid, name: process::name(pid) }).collect(),
                sockets: 0,
                bound: None,
                destroyed: None,
                path,
                id,
            });
            coming.push(Coming { policy: record.copied(), cgroups });
        }
        let foreseen = foresee(&coming, netns_cookie).map_err(link::Error::Socket)?;
        for (change, foreseen) in changes.iter_mut().zip(foreseen) {
            change.sockets = foreseen.sockets;
            (change.bound, change.destroyed) = foreseen.treated.unzip();
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    fn is_attached_then(&self, id: u64) -> bool {
        match self.steps.get(&id) {
            Some(planned) => planned.action != Action::Detach,
            None => self.before.contains_key(&id),
        }
    }

    fn name(&self, slot: u32) -> String {
        self.records.get(&slot).map_or_else(String::new, |record| text(&record.name))
    }

    /// The policy that holds a cgroup now.
    fn before(&self, path: &CgroupPath) -> Result<Option<String>, kernel::Error> {
        for path in path.self_and_ancestors() {
            if let Some(slot) = self.before.get(&self.hierarchy.id(&path)?) {
                return Ok(Some(self.name(*slot)));
            }
        }
        Ok(None)
    }

    /// The policy that holds a cgroup then.
    fn after(&self, path: &CgroupPath) -> Result<Option<(String, Option<&PolicyRecord>)>, kernel::Error> {
        for path in path.self_and_ancestors() {
            let id = self.hierarchy.id(&path)?;
            let slot = match self.steps.get(&id) {
                Some(Planned { after: After::Slot(slot), .. }) => *slot,
                Some(Planned { after: After::Named(name), .. }) => return Ok(Some((name.clone(), None))),
                Some(Planned { action: Action::Detach, .. }) => continue,
                Some(_closed) => return Ok(None),
                None => match self.before.get(&id) {
                    Some(slot) => *slot,
                    None => continue,
                },
            };
            return Ok(Some((self.name(slot), self.records.get(&slot))));
        }
        Ok(None)
    }
}
