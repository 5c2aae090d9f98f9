//! Attachments above and below others: which of them are told so, and which may say that they decide.
//!
//! **Invariant:** `DECIDERS` never has a cgroup whose attachment is gone for longer than until the next sweep, and what is
//! missing in it lets the outer policy act.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::maps::MapError;
use aya_obj::generated::BPF_NOEXIST;
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
            // First the record, which most have not: that is the shorter way.
            if let Some(record) = self.record(id)?
                && self.pins.attachment(id).exists()
            {
                outer.push((id, record));
            }
        }
        Ok(outer)
    }

    /// The attachment that holds a cgroup which has none of its own: the nearest above it.
    pub fn around(&self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<u64>, Error> {
        Ok(self.outer(hierarchy, path)?.first().map(|(id, _)| *id))
    }

    /// The cgroups about whose sockets the attachment of a cgroup decides: itself, and those below with none in between.
    pub fn decided_by(&self, hierarchy: &Hierarchy, attached: Found) -> Result<Vec<Found>, Error> {
        let mut decided = vec![attached];
        let mut looked_into = 0;
        while let Some(found) = decided.get(looked_into) {
            let children = hierarchy.children(&found.path)?;
            decided.extend(children.into_iter().filter(|child| !self.pins.attachment(child.id).exists()));
            looked_into += 1;
        }
        Ok(decided)
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

    /// Tells the attachments below a cgroup that has none any more whether there is still one above or below them.
    pub(super) fn refresh_inner(&self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<(), Error> {
        let around = !self.outer(hierarchy, path)?.is_empty()
            || hierarchy.id(path).is_ok_and(|id| self.pins.attachment(id).exists());
        self.tell(around, &self.inner(hierarchy, path)?)
    }

    /// Tells all attachments, as they have just been read.
    pub(super) fn refresh_all(&self, hierarchy: &Hierarchy, attachments: &[Attachment]) -> Result<(), Error> {
        let records: BTreeMap<u64, AttachmentRecord> =
            attachments.iter().map(|attachment| (attachment.cgroup_id, attachment.record)).collect();
        if records.is_empty() {
            return Ok(());
        }
        let root = CgroupPath::root();
        let around = hierarchy.id(&root).is_ok_and(|id| records.contains_key(&id));
        let found = hierarchy.descendants(&root)?.into_iter();
        let inner: Vec<_> = found.filter_map(|found| records.get(&found.id).map(|record| (found, *record))).collect();
        self.tell(around, &inner)
    }

    /// Tells these attachments whether there is one above or below them; `around`: there is one above all of them.
    fn tell(&self, around: bool, inner: &[(Found, AttachmentRecord)]) -> Result<(), Error> {
        let attached: BTreeSet<&CgroupPath> = inner.iter().map(|(found, _)| &found.path).collect();
        let above = |found: &Found| found.path.ancestors().into_iter().filter(|outer| attached.contains(outer));
        let with_inner: BTreeSet<CgroupPath> = inner.iter().flat_map(|(found, _)| above(found)).collect();
        for (found, record) in inner {
            let mut flags = record.flags & !(attachment_flags::NESTED | attachment_flags::HAS_INNER);
            if around || above(found).next().is_some() {
                flags |= attachment_flags::NESTED;
            }
            if with_inner.contains(&found.path) {
                flags |= attachment_flags::HAS_INNER;
            }
            if flags != record.flags {
                self.set_record(found.id, AttachmentRecord { flags, ..*record })?;
            }
        }
        Ok(())
    }

    /// Lets a nested attachment decide about the sockets that its programs have noted.
    pub(super) fn add_decider(&mut self, cgroup_id: u64) -> Result<(), Error> {
        match self.deciders.insert(cgroup_id, 0, BPF_NOEXIST.into()) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            added => added.map_err(|error| map_error("note a nested attachment", map::DECIDERS, error)),
        }
    }

    /// Lets a nested attachment, which has all of its programs, decide about sockets that are not there yet, too.
    pub(super) fn confirm_decider(&mut self, cgroup_id: u64) -> Result<(), Error> {
        let confirmed = self.deciders.insert(cgroup_id, 1, 0);
        confirmed.map_err(|error| map_error("note a complete nested attachment", map::DECIDERS, error))
    }

    /// Forgets nested attachments that are no more, as after a process that was killed between two steps.
    pub(super) fn sweep_deciders(&mut self) -> Result<(), Error> {
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
            Err(error) => Err(map_error("forget a nested attachment", map::DECIDERS, error)),
        }
    }
}
