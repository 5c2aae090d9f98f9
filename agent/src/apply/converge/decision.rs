//! Decides the steps of a change: for the daemon, which takes them, and for `steer plan`, which shows them.
//!
//! **Invariant:** it changes nothing, so what is shown is what happens.

use std::collections::{BTreeMap, BTreeSet};

use super::{InForce, cgroups::named_in};
use crate::{
    apply::{blind_spots::BlindSpots, permit},
    host::cgroup::{self, Hierarchy},
    kernel::{Attachment, Error},
    model::{
        cgroup_path::CgroupPath,
        plan::{self, Actual, Desired, Step},
    },
};

/// What was decided, by cgroup id.
pub(in crate::apply) struct Decision {
    pub(in crate::apply) desired: BTreeMap<u64, Desired>,
    pub(in crate::apply) actual: BTreeMap<u64, Actual>,
    pub(in crate::apply) steps: Vec<Step>,
}

/// Decides. `attached`: the attachments of cgroups that exist. `announced`: the cgroups that commands are about to attach. `watch`:
/// watches the directories in which a match can appear.
pub(in crate::apply) fn decide(
    hierarchy: &Hierarchy,
    in_force: &InForce,
    attached: &[Attachment],
    announced: &BTreeSet<u64>,
    watch: Option<&mut cgroup::Watch>,
    blind_spots: &mut BlindSpots,
) -> Result<Decision, Error> {
    let is_manual = |attached: &&Attachment| !permit::configuration_may_change(attached);
    let by_hand = attached.iter().filter(is_manual).map(|attached| attached.cgroup_id);
    let manual: BTreeSet<u64> = by_hand.chain(announced.iter().copied()).collect();
    let manual =
        |path: &CgroupPath| !manual.is_empty() && hierarchy.open(path).is_ok_and(|cgroup| manual.contains(&cgroup.id));
    let desired = named_in(hierarchy, &CgroupPath::root(), in_force, manual, watch, blind_spots)?;
    let actual: BTreeMap<u64, Actual> = attached
        .iter()
        .map(|attachment| {
            let actual = Actual {
                slot: attachment.record.policy,
                manual: is_manual(&attachment),
                complete: attachment.complete,
            };
            (attachment.cgroup_id, actual)
        })
        .collect();
    let steps = plan::steps(&desired, &actual);
    Ok(Decision { desired, actual, steps })
}
