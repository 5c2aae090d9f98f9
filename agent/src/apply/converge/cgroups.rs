//! Handles cgroups that are created and removed.

use std::collections::{BTreeMap, BTreeSet};

use super::{InForce, Steering};
use crate::{
    apply::{blind_spots::BlindSpots, permit},
    host::cgroup::{self, Directory, Found, Hierarchy},
    kernel::{Datapath, Error},
    model::{cgroup_path::CgroupPath, plan::Desired},
};

/// How many names of a directory one listing returns.
const LISTED: usize = 256;

impl Steering {
    /// Handles a cgroup that was created or removed; its path shows which. If it was created and removed, there is nothing to do.
    pub(crate) fn cgroup_changed(&mut self, directory: Directory, name: &str) -> Result<(), Error> {
        let Some(parent) = self.watch.path(directory) else { return Ok(()) };
        let path = parent.child(name);
        self.note_gone(&path);
        self.steer_new(&path)
    }

    /// Notes that the cgroup that was attached at `path` is gone. Its attachment stays until the kernel has released it. A new cgroup may
    /// have the same path now.
    fn note_gone(&mut self, path: &CgroupPath) {
        for (attached, manual) in [(&mut self.attached, false), (&mut self.manual, true)] {
            if let Some(&cgroup_id) = attached.get(path)
                && self.hierarchy.is_gone(cgroup_id)
            {
                attached.remove(path);
                self.lingering.add(cgroup_id, manual);
                log::info!("{path} is gone");
            }
        }
    }

    /// Steers new cgroups at `path` and below it.
    fn steer_new(&mut self, path: &CgroupPath) -> Result<(), Error> {
        let manual = |path: &CgroupPath| is_manual_cgroup(&self.hierarchy, &self.datapath, path);
        let mut blind_spots = self.blind_spots.clone();
        let mut found =
            named_in(&self.hierarchy, path, &self.in_force, manual, Some(&mut self.watch), &mut blind_spots)?;
        blind_spots.log_since(&self.blind_spots);
        self.blind_spots = blind_spots;
        found.retain(|cgroup_id, desired| self.attached.get(&desired.path) != Some(cgroup_id));
        if found.is_empty() {
            return Ok(());
        }
        let lock = self.datapath.lock()?;
        let mut changed = BTreeSet::new();
        for (cgroup_id, desired) in found {
            let existing = self.datapath.attachment(cgroup_id)?;
            if existing.as_ref().is_none_or(permit::configuration_may_change) {
                changed.extend(self.attach(&lock, cgroup_id, &desired)?);
            }
        }
        self.datapath.log_unreported();
        self.take_over_sockets(&lock, &changed);
        Ok(())
    }

    /// Lists a directory after events were lost: the sorted names, after `after`, of cgroups to check. Their number is bounded. The
    /// second value is the name to continue after; `None`: the list is complete.
    pub(crate) fn list(
        &self,
        directory: Directory,
        after: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>), Error> {
        let Some(parent) = self.watch.path(directory) else { return Ok((Vec::new(), None)) };
        let mut names = BTreeSet::new();
        let mut present = BTreeSet::new();
        for child in self.hierarchy.children(parent)? {
            let is_steered = self.attached.get(&child.path) == Some(&child.id);
            present.insert(child.id);
            if !is_steered || self.in_force.policies.may_name_below(&child.path) {
                names.insert(child.path.name().to_owned());
            }
        }
        for attached in [&self.attached, &self.manual] {
            let below = attached.range(parent.child("")..).take_while(|(path, _)| path.is_in(parent));
            let gone = below.filter(|(path, id)| !present.contains(id) && path.parent().as_ref() == Some(parent));
            names.extend(gone.map(|(path, _)| path.name().to_owned()));
        }
        let mut names = names.into_iter().filter(|name| after.is_none_or(|after| name.as_str() > after));
        let listed: Vec<String> = names.by_ref().take(LISTED).collect();
        let next = names.next().and(listed.last().cloned());
        Ok((listed, next))
    }

    /// Stops watching a directory that is gone.
    pub(crate) fn close(&mut self, directory: Directory) {
        self.watch.close(directory);
    }
}

/// The cgroups at `path` and below it that get a policy, by id. Watches those in which more may be created, if `watch` is given.
pub(super) fn named_in(
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    in_force: &InForce,
    manual: impl Fn(&CgroupPath) -> bool,
    mut watch: Option<&mut cgroup::Watch>,
    blind_spots: &mut BlindSpots,
) -> Result<BTreeMap<u64, Desired>, Error> {
    let InForce { policies, slots } = in_force;
    let mut named = BTreeMap::new();
    if let Some(parent) = path.parent().filter(|_| !hierarchy.is_reachable(path)) {
        blind_spots.skipped(&parent, &cgroup::Skipped::Path);
        return Ok(named);
    }
    let mut waiting = match hierarchy.id(path) {
        Ok(id) => vec![Found { path: path.clone(), id }],
        Err(cgroup::Error::Missing { .. }) => return Ok(named),
        Err(error) => return Err(error.into()),
    };
    while let Some(Found { path, id }) = waiting.pop() {
        if let Some(&slot) = policies.attaching(&path, &manual).and_then(|policy| slots.get(policy)) {
            named.insert(id, Desired { path: path.clone(), slot });
        }
        if policies.may_name_below(&path) {
            // Watch before listing, so that no new cgroup is missed.
            if let Some(watch) = &mut watch
                && let Err(error) = watch.add(hierarchy, &path)
            {
                blind_spots.unwatched(&path, &error);
            }
            let listing = hierarchy.list(&path)?;
            listing.skipped.iter().for_each(|skipped| blind_spots.skipped(&path, skipped));
            waiting.extend(listing.found);
        }
    }
    Ok(named)
}

/// Whether a cgroup has a manual attachment. One that cannot be read counts as the configuration's.
fn is_manual_cgroup(hierarchy: &Hierarchy, datapath: &Datapath, path: &CgroupPath) -> bool {
    let attachment = hierarchy.open(path).map_err(Error::from).and_then(|cgroup| datapath.is_manual_cgroup(cgroup.id));
    attachment.unwrap_or_default()
}
