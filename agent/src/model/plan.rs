//! The steps from the actual attachments to the desired ones. Pure.
//!
//! **Invariant:** the steps, executed in order, never unsteer a cgroup that should be steered, and never change a manual
//! attachment. They can be repeated, and interrupted at any point.

use std::collections::BTreeMap;

use crate::model::cgroup_path::CgroupPath;

/// A cgroup that should be steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its path.
    pub path: CgroupPath,
    /// The slot of its policy.
    pub slot: u32,
}

/// A cgroup that is steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actual {
    /// The slot of its policy.
    pub slot: u32,
    /// Whether the attachment is manual.
    pub manual: bool,
    /// Whether the attachment is complete.
    pub complete: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Attach, change the policy, or repair.
    Attach {
        /// Id of the cgroup.
        cgroup_id: u64,
        /// The desired state.
        desired: Desired,
    },
    /// Detach.
    Detach {
        /// Id of the cgroup.
        cgroup_id: u64,
    },
}

/// The steps from `actual` to `desired`, both by cgroup id. Attaches from the inside out, then detaches. So an inner cgroup
/// gets its own policy before the outer policy changes, and keeps it until the outer policy is attached.
pub fn steps(desired: &BTreeMap<u64, Desired>, actual: &BTreeMap<u64, Actual>) -> Vec<Step> {
    let mut attach = desired
        .iter()
        .filter(|(id, desired)| {
            actual.get(id).is_none_or(|actual| !actual.manual && (actual.slot != desired.slot || !actual.complete))
        })
        .map(|(&cgroup_id, desired)| Step::Attach { cgroup_id, desired: desired.clone() })
        .collect::<Vec<_>>();
    attach.sort_by(|a, b| match (a, b) {
        (Step::Attach { desired: a, .. }, Step::Attach { desired: b, .. }) => b.path.cmp(&a.path),
        _ => std::cmp::Ordering::Equal,
    });
    let detach = actual
        .iter()
        .filter(|(id, actual)| !actual.manual && !desired.contains_key(id))
        .map(|(&cgroup_id, _)| Step::Detach { cgroup_id });
    attach.into_iter().chain(detach).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Actual, Desired, Step, steps};

    fn desired(path: &str, slot: u32) -> Desired {
        Desired { path: path.parse().expect("a path"), slot }
    }

    const ATTACHED: Actual = Actual { slot: 1, manual: false, complete: true };

    #[test]
    fn no_difference_is_no_step() {
        assert!(steps(&BTreeMap::from([(5, desired("/a", 1))]), &BTreeMap::from([(5, ATTACHED)])).is_empty());
    }

    #[test]
    fn attaches_from_the_inside_out_then_detaches() {
        let want = BTreeMap::from([(9, desired("/a", 1)), (4, desired("/a/b", 2)), (5, desired("/c", 1))]);
        let have = BTreeMap::from([(5, ATTACHED), (7, ATTACHED)]);
        assert_eq!(
            steps(&want, &have),
            [
                Step::Attach { cgroup_id: 4, desired: desired("/a/b", 2) },
                Step::Attach { cgroup_id: 9, desired: desired("/a", 1) },
                Step::Detach { cgroup_id: 7 },
            ]
        );
    }

    #[test]
    fn changes_and_repairs() {
        let want = BTreeMap::from([(5, desired("/a", 2)), (6, desired("/b", 1))]);
        let have = BTreeMap::from([(5, ATTACHED), (6, Actual { complete: false, ..ATTACHED })]);
        assert_eq!(steps(&want, &have).len(), 2);
    }

    #[test]
    fn leaves_manual_attachments() {
        let manual = Actual { manual: true, ..ATTACHED };
        let have = BTreeMap::from([(5, manual), (6, manual)]);
        assert!(steps(&BTreeMap::from([(5, desired("/a", 2))]), &have).is_empty());
    }
}
