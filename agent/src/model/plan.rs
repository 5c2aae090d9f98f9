//! The difference between what should be attached and what is. Pure.
//!
//! **Invariant:** carrying the steps out in their order, any number of times and interrupted anywhere, never unsteers a
//! cgroup that should be steered, and never touches what was attached by hand.

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

/// A cgroup that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actual {
    /// The slot of its policy.
    pub slot: u32,
    /// Whether it was attached by hand.
    pub manual: bool,
    /// Whether nothing of it is missing.
    pub complete: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Attach, or change the policy, or mend.
    Attach {
        /// Id of the cgroup.
        cgroup_id: u64,
        /// What it should be.
        desired: Desired,
    },
    /// Detach.
    Detach {
        /// Id of the cgroup.
        cgroup_id: u64,
    },
}

/// The steps from `actual` to `desired`, both by cgroup id. Attach from the inside out, then detach: what an outer policy
/// no longer holds for has its own before the outer one changes, and keeps it until the outer one is there.
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

    const MADE: Actual = Actual { slot: 1, manual: false, complete: true };

    #[test]
    fn nothing_to_do_is_no_step() {
        assert!(steps(&BTreeMap::from([(5, desired("/a", 1))]), &BTreeMap::from([(5, MADE)])).is_empty());
    }

    #[test]
    fn attaches_from_the_inside_out_then_detaches() {
        let want = BTreeMap::from([(9, desired("/a", 1)), (4, desired("/a/b", 2)), (5, desired("/c", 1))]);
        let have = BTreeMap::from([(5, MADE), (7, MADE)]);
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
        let have = BTreeMap::from([(5, MADE), (6, Actual { complete: false, ..MADE })]);
        assert_eq!(steps(&want, &have).len(), 2);
    }

    #[test]
    fn leaves_manual_attachments() {
        let manual = Actual { manual: true, ..MADE };
        let have = BTreeMap::from([(5, manual), (6, manual)]);
        assert!(steps(&BTreeMap::from([(5, desired("/a", 2))]), &have).is_empty());
    }
}
