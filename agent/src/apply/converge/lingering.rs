//! Removed cgroups of which sockets are still open.
//!
//! Their attachments stay until the kernel has released the cgroup: otherwise packets of these sockets would leave by any link. The kernel does
//! not report the release. So each cgroup is checked again after a delay that grows.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::{Duration, Instant},
};

use super::Steering;
use crate::{apply::routes::Elsewhere, kernel::Error};

/// The delay before the first check. Without an open socket, the kernel releases a cgroup in some tens of milliseconds.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The longest delay between two checks.
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// The delay between two looks at the connections that need rules of former policies. Most end within a minute.
const LEFTOVERS_DELAY: Duration = Duration::from_secs(5);
/// How many cgroups are checked in one turn.
const CHECKED: usize = 256;

/// The removed cgroups that are checked, by id.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    due: BTreeSet<(Instant, u64)>,
    checks: BTreeMap<u64, Check>,
}

/// The next check of a cgroup.
#[derive(Debug)]
struct Check {
    at: Instant,
    delay: Duration,
    manual: bool,
}

impl Lingering {
    /// Adds a removed cgroup. `manual`: its attachment is manual.
    pub(super) fn add(&mut self, cgroup_id: u64, manual: bool) {
        let at = Instant::now() + FIRST_DELAY;
        if let Entry::Vacant(entry) = self.checks.entry(cgroup_id) {
            entry.insert(Check { at, delay: FIRST_DELAY, manual });
            self.due.insert((at, cgroup_id));
        }
    }

    /// The cgroups to check now. Each is due again after twice its delay.
    fn due(&mut self, now: Instant) -> Vec<u64> {
        let due: Vec<_> = self.due.range(..=(now, u64::MAX)).take(CHECKED).copied().collect();
        for (at, cgroup_id) in &due {
            self.due.remove(&(*at, *cgroup_id));
            if let Some(check) = self.checks.get_mut(cgroup_id) {
                check.delay = LONGEST_DELAY.min(check.delay * 2);
                check.at = now + check.delay;
                self.due.insert((check.at, *cgroup_id));
            }
        }
        due.into_iter().map(|(_, cgroup_id)| cgroup_id).collect()
    }

    /// Removes a released cgroup. Whether its attachment was manual.
    fn remove(&mut self, cgroup_id: u64) -> bool {
        let check = self.checks.remove(&cgroup_id);
        check.is_some_and(|check| self.due.remove(&(check.at, cgroup_id)) && check.manual)
    }
}

impl Steering {
    /// When [`Self::forget_released`] has something to check. `None`: no cgroup waits for its release, and no rule for the end of
    /// connections.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let cgroup = self.lingering.due.first().map(|(at, _)| *at);
        cgroup.into_iter().chain(self.leftovers_due).min()
    }

    /// Notes whether rules wait for the end of connections.
    pub(super) fn note_leftovers(&mut self) {
        self.leftovers_due = self.routes.has_leftovers().then(|| Instant::now() + LEFTOVERS_DELAY);
    }

    /// Removes the attachments of cgroups that the kernel has released, of those that are due, and rules that no connection needs any more.
    pub(crate) fn forget_released(&mut self) -> Result<(), Error> {
        if self.leftovers_due.is_some_and(|due| due <= Instant::now()) {
            self.leftovers_due = None;
            let lock = self.datapath.lock()?;
            self.follow_routes(&lock)?;
            for change in self.namespaces.known() {
                self.follow_namespace(&lock, &change)?;
            }
        }
        let mut released = Vec::new();
        for cgroup_id in self.lingering.due(Instant::now()) {
            if self.datapath.is_released(cgroup_id)? {
                released.push(cgroup_id);
            }
        }
        if released.is_empty() {
            return Ok(());
        }
        let lock = self.datapath.lock()?;
        let mut manual = false;
        for cgroup_id in released {
            self.datapath.forget(&lock, cgroup_id)?;
            manual |= self.lingering.remove(cgroup_id);
        }
        self.datapath.retire_policies(&lock, &self.in_force.slots, self.netns_cookie)?;
        if manual {
            let elsewhere = Elsewhere::read(&self.datapath)?;
            self.datapath.free_unused_policies(&lock)?;
            self.follow_routes(&lock)?;
            elsewhere.release(&self.datapath)?;
            self.namespaces.follow(&self.datapath, &self.hierarchy, self.netns_cookie)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{CHECKED, FIRST_DELAY, LONGEST_DELAY, Lingering};

    #[test]
    fn each_cgroup_is_checked_after_a_delay_that_grows_up_to_a_bound() {
        let mut lingering = Lingering::default();
        lingering.add(7, true);
        lingering.add(7, false);
        assert!(lingering.due(Instant::now()).is_empty());
        let mut now = Instant::now() + FIRST_DELAY;
        for _ in 0..20 {
            assert_eq!(lingering.due(now), [7]);
            assert!(lingering.due(now).is_empty());
            now = lingering.due.first().map_or(now, |(at, _)| *at);
        }
        assert_eq!(lingering.checks[&7].delay, LONGEST_DELAY);
        assert!(lingering.remove(7));
        assert!(lingering.due(now).is_empty());
    }

    #[test]
    fn the_number_of_checks_of_one_turn_is_bounded() {
        let mut lingering = Lingering::default();
        (0..300).for_each(|cgroup_id| lingering.add(cgroup_id, false));
        let now = Instant::now() + FIRST_DELAY;
        assert_eq!(lingering.due(now).len(), CHECKED);
        assert_eq!(lingering.due(now).len(), 300 - CHECKED);
    }
}
