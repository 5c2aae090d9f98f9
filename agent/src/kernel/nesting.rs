//! Nested attachments: keeps their records and programs correct, and records which of them decide.
//!
//! **Invariant:** `DECIDERS` has only complete attachments. An attachment is added after its links are pinned, and removed
//! before its links. For an attachment that is missing there, the outer policy acts.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::maps::MapError;
use steer_common::{AttachmentRecord, attachment_flags, map};

use super::{Attachment, Datapath, Error, map_error};
use crate::{
    host::cgroup::{Found, Hierarchy},
    model::cgroup_path::CgroupPath,
};

impl Datapath {
    /// The attachments above a cgroup.
    pub(super) fn outer(
        &self,
        hierarchy: &Hierarchy,
        path: &CgroupPath,
    ) -> Result<Vec<(u64, AttachmentRecord)>, Error> {
        let mut outer = Vec::new();
        for ancestor in path.ancestors() {
            let id = hierarchy.id(&ancestor)?;
            // Check the record first: most cgroups have none, so this is faster.
            if let Some(record) = self.record(id)?
                && self.pins.attachment(id).exists()
            {
                outer.push((id, record));
            }
        }
        Ok(outer)
    }

    /// The attachment in force for a cgroup without one: the nearest above it.
    pub fn around(&self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<u64>, Error> {
        Ok(self.outer(hierarchy, path)?.first().map(|(id, _)| *id))
    }

    /// The cgroups whose sockets an attachment decides about: its own cgroup, and those below up to the next attachment.
    pub fn decided_by(&self, hierarchy: &Hierarchy, attached: Found) -> Result<Vec<Found>, Error> {
        Ok(hierarchy.part(attached, |id| self.pins.attachment(id).exists())?)
    }

    /// The attachments below a cgroup, with their records.
    pub(super) fn inner(
        &self,
        hierarchy: &Hierarchy,
        path: &CgroupPath,
    ) -> Result<Vec<(Found, AttachmentRecord)>, Error> {
        let mut inner = Vec::new();
        for found in hierarchy.descendants(path)? {
            if let Some(record) = self.record(found.id)?
                && self.pins.attachment(found.id).exists()
            {
                inner.push((found, record));
            }
        }
        Ok(inner)
    }

    /// Updates the nesting state of the attachments below a cgroup, after one above them has changed or is gone.
    pub(super) fn refresh_inner(&mut self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
        let mut around: Vec<_> = self.outer(hierarchy, path)?.into_iter().map(|(_, record)| record).collect();
        if let Ok(id) = hierarchy.id(path)
            && self.pins.attachment(id).exists()
        {
            around.extend(self.record(id)?);
        }
        self.update(hierarchy, &around, &self.inner(hierarchy, path)?)
    }

    /// Updates the nesting state of all attachments, as they have just been read.
    pub(super) fn refresh_all(&mut self, hierarchy: &Hierarchy, attachments: &[Attachment]) -> Result<(), Error> {
        let records: BTreeMap<u64, AttachmentRecord> =
            attachments.iter().map(|attachment| (attachment.cgroup_id, attachment.record)).collect();
        if records.is_empty() {
            return Ok(());
        }
        let root = CgroupPath::root();
        let around = hierarchy.id(&root).ok().and_then(|id| records.get(&id)).copied();
        let found = hierarchy.descendants(&root)?.into_iter();
        let inner: Vec<_> = found.filter_map(|found| records.get(&found.id).map(|record| (found, *record))).collect();
        self.update(hierarchy, around.as_slice(), &inner)
    }

    /// Writes into the records of these attachments whether others are above and below them, and attaches the programs that
    /// they need for this. `around` are above all of them.
    fn update(
        &mut self,
        hierarchy: &Hierarchy,
        around: &[AttachmentRecord],
        inner: &[(Found, AttachmentRecord)],
    ) -> Result<(), Error> {
        let attached: BTreeMap<&CgroupPath, &AttachmentRecord> =
            inner.iter().map(|(found, record)| (&found.path, record)).collect();
        let above = |found: &Found| -> Vec<CgroupPath> {
            found.path.ancestors().into_iter().filter(|outer| attached.contains_key(outer)).collect()
        };
        let with_inner: BTreeSet<CgroupPath> = inner.iter().flat_map(|(found, _)| above(found)).collect();
        for (found, record) in inner {
            let above = above(found);
            let outer = || around.iter().chain(above.iter().filter_map(|path| attached.get(path).copied()));
            let mut flags = record.flags & !(attachment_flags::NESTED | attachment_flags::HAS_INNER);
            if outer().next().is_some() {
                flags |= attachment_flags::NESTED;
            }
            if with_inner.contains(&found.path) {
                flags |= attachment_flags::HAS_INNER;
            }
            let around = self.flags_of(outer())?;
            let level = level(&found.path);
            self.put_inside(hierarchy, found, *record, AttachmentRecord { flags, around, level, ..*record })?;
        }
        Ok(())
    }

    /// Writes the record of a nested attachment, and attaches the programs that it needs for this. If they cannot be attached,
    /// it keeps the programs that it has: calls that it cannot note are decided by the attachments around it.
    pub(super) fn put_inside(
        &mut self,
        hierarchy: &Hierarchy,
        found: &Found,
        old: AttachmentRecord,
        new: AttachmentRecord,
    ) -> Result<(), Error> {
        if new != old {
            self.set_record(found.id, new)?;
        }
        if new.around != old.around {
            let cgroup = hierarchy.open(&found.path).map_err(Error::from);
            let linked = cgroup.and_then(|cgroup| self.link(hierarchy, &cgroup, &new, false));
            if let Err(error) = linked {
                log::warn!("{} lacks programs that it needs inside other policies: {error}", found.path);
            }
        }
        if new.flags & attachment_flags::NESTED == 0 {
            self.remove_decider(found.id)?;
        }
        let may_decide = new.flags & attachment_flags::NESTED != 0
            && self.deciders.get(&found.id, 0).map_or(true, |level| level != new.level);
        if may_decide && self.attachment(found.id)?.is_some_and(|attachment| attachment.complete) {
            self.add_decider(&new)?;
        }
        Ok(())
    }

    /// Records that a complete nested attachment decides instead of those around it.
    pub(super) fn add_decider(&mut self, record: &AttachmentRecord) -> Result<(), Error> {
        let added = self.deciders.insert(record.cgroup_id, record.level, 0);
        added.map_err(|error| map_error("add a nested attachment", map::DECIDERS, error))
    }

    /// Removes nested attachments that are gone, for example after a process was killed between two steps.
    pub(super) fn remove_stale_deciders(&mut self) -> Result<(), Error> {
        let failed = |error| map_error("list the nested attachments", map::DECIDERS, error);
        let ids = self.deciders.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
        for cgroup_id in ids {
            if !self.pins.attachment(cgroup_id).exists() {
                self.remove_decider(cgroup_id)?;
            }
        }
        Ok(())
    }

    pub(super) fn remove_decider(&mut self, cgroup_id: u64) -> Result<(), Error> {
        match self.deciders.remove(&cgroup_id) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(map_error("remove a nested attachment", map::DECIDERS, error)),
        }
    }
}

/// The distance of a cgroup from the root.
pub(super) fn level(path: &CgroupPath) -> u32 {
    path.parts().map(|_| 1).sum()
}
