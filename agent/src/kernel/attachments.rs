//! Attachments: the links of one cgroup and its record.
//!
//! **Invariant:** a pinned link always has a filled record, because links are pinned last. When an attachment gets its
//! first link, all attachments below it already have the nested flag and the programs that write the note.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use steer_common::{AttachmentRecord, POLICY_SLOTS, attachment_flags, map};

use super::{
    Datapath, Error, Lock, bpf, nesting, object,
    pins::{file_name, list},
    refusal::{is_unsupported, refused},
};
use crate::host::cgroup::{Cgroup, Hierarchy};

/// One steered cgroup, as pinned.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Id of the cgroup: its inode number.
    pub cgroup_id: u64,
    /// The record that its programs read.
    pub record: AttachmentRecord,
    /// Names of the programs that are attached.
    pub hooks: Vec<&'static str>,
    /// Their ids, in the same order.
    pub program_ids: Vec<u32>,
    /// Whether these are exactly the programs that its policy and those around it need, and the record is filled.
    pub complete: bool,
    /// Whether any hook is attached; false after the kernel has released the cgroup.
    pub live: bool,
}

impl Attachment {
    /// Whether it is manual.
    pub fn is_manual(&self) -> bool {
        self.record.flags & attachment_flags::MANUAL != 0
    }
}

impl Datapath {
    /// All attachments, by cgroup id.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        let available = object::available(&self.pins);
        let mut attachments = list(&self.pins.links())?
            .iter()
            .filter_map(|path| file_name(path).parse().ok())
            .map(|cgroup_id| self.read_attachment(cgroup_id, &available))
            .collect::<Result<Vec<_>, _>>()?;
        attachments.sort_by_key(|attachment| attachment.cgroup_id);
        Ok(attachments)
    }

    /// Whether a cgroup has a manual attachment.
    pub fn is_manual_cgroup(&self, cgroup_id: u64) -> Result<bool, Error> {
        let record = if self.pins.attachment(cgroup_id).exists() { self.record(cgroup_id)? } else { None };
        Ok(record.is_some_and(|record| record.flags & attachment_flags::MANUAL != 0))
    }

    /// Ids of the cgroups attached to one of these slots.
    pub fn attachments_to(&self, slots: &[u32]) -> Result<BTreeSet<u64>, Error> {
        self.attachments_with(|record| slots.contains(&record.policy))
    }

    /// The values of the policies that some attachment names, of policies by slot.
    pub fn used_among(&self, values: &BTreeMap<u32, u32>) -> Result<BTreeSet<u32>, Error> {
        let all: BTreeSet<u32> = values.values().copied().collect();
        let mut used = BTreeSet::new();
        for path in list(&self.pins.links())? {
            if used == all {
                break;
            }
            let Ok(cgroup_id) = file_name(&path).parse() else { continue };
            used.extend(self.record(cgroup_id)?.and_then(|record| values.get(&record.policy).copied()));
        }
        Ok(used)
    }

    fn attachments_with(&self, wanted: impl Fn(&AttachmentRecord) -> bool) -> Result<BTreeSet<u64>, Error> {
        let records = self.records()?.into_iter();
        Ok(records.filter(|(_, record)| record.as_ref().is_some_and(&wanted)).map(|(id, _)| id).collect())
    }

    /// The ids of all attached cgroups, with their records; no record if the kernel has released the cgroup.
    pub(super) fn records(&self) -> Result<Vec<(u64, Option<AttachmentRecord>)>, Error> {
        let ids = list(&self.pins.links())?;
        let ids = ids.iter().filter_map(|path| file_name(path).parse().ok());
        ids.map(|cgroup_id| Ok((cgroup_id, self.record(cgroup_id)?))).collect()
    }

    /// The slot of the policy that a cgroup is attached to; `None` if it is not attached itself.
    pub fn slot_of(&self, cgroup_id: u64) -> Result<Option<u32>, Error> {
        if !self.pins.attachment(cgroup_id).exists() {
            return Ok(None);
        }
        Ok(self.record(cgroup_id)?.map(|record| record.policy))
    }

    /// The attachment of one cgroup.
    pub fn attachment(&self, cgroup_id: u64) -> Result<Option<Attachment>, Error> {
        if !self.pins.attachment(cgroup_id).exists() {
            return Ok(None);
        }
        self.read_attachment(cgroup_id, &object::available(&self.pins)).map(Some)
    }

    fn read_attachment(&self, cgroup_id: u64, available: &[&object::Hook]) -> Result<Attachment, Error> {
        let record = self.record(cgroup_id)?;
        let pins = list(&self.pins.attachment(cgroup_id))?;
        let pins: Vec<_> = pins.iter().map(|pin| (pin.file_name(), pin)).collect();
        let (mut hooks, mut program_ids) = (Vec::new(), Vec::new());
        for hook in &object::HOOKS {
            // This is faster than trying to open every possible pin.
            let Some((_, pin)) = pins.iter().find(|(name, _)| *name == Some(OsStr::new(hook.name))) else { continue };
            let info = bpf::open_pin(pin).and_then(|link| bpf::link_info(link.as_fd())).ok();
            if let Some(info) = info.filter(|info| info.cgroup_id == Some(cgroup_id)) {
                hooks.push(hook.name);
                program_ids.push(info.program_id);
            }
        }
        let flags = self.flags_of(&record)?;
        let around = record.map_or(0, |record| record.around);
        let wanted = available.iter().filter(|hook| hook.is_wanted(flags, around));
        Ok(Attachment {
            cgroup_id,
            record: record.unwrap_or_default(),
            complete: wanted.map(|hook| hook.name).eq(hooks.iter().copied())
                && record.is_some_and(|record| record.policy != 0),
            live: !hooks.is_empty(),
            hooks,
            program_ids,
        })
    }

    /// `None`: the cgroup was never attached, or the kernel has released it.
    pub(super) fn record(&self, cgroup_id: u64) -> Result<Option<AttachmentRecord>, Error> {
        bpf::map_get(self.attachments.fd().as_fd(), &cgroup_id).map_err(|source| Error::Map {
            action: "read an attachment",
            name: map::ATTACHMENTS,
            source,
        })
    }

    /// Writes the record of a cgroup that has one; false when it has none.
    pub(super) fn set_record(&self, cgroup_id: u64, record: AttachmentRecord) -> Result<bool, Error> {
        self.set_steered(cgroup_id, record.policy);
        match bpf::map_set(self.attachments.fd().as_fd(), &cgroup_id, &record) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Map { action: "write an attachment", name: map::ATTACHMENTS, source }),
        }
    }

    /// Writes or removes what is looked up when a process is moved. If the map is full, moves out of this cgroup are not reported.
    fn set_steered(&self, cgroup_id: u64, slot: u32) {
        let map = self.steered.fd().as_fd();
        let written = if slot == 0 { bpf::map_remove(map, &cgroup_id) } else { bpf::map_set(map, &cgroup_id, &slot) };
        if let Err(error) = written {
            log::debug!("write cgroup {cgroup_id} to map {}: {error}", map::STEERED);
            self.unreported.borrow_mut().insert(cgroup_id, error.to_string());
        }
    }

    /// Logs how many cgroups could not be written to the map of moves since the last call: one line, for a full map refuses all.
    pub fn log_unreported(&self) {
        let unreported = self.unreported.take();
        if let Some(error) = unreported.values().next() {
            let (count, map) = (unreported.len(), map::STEERED);
            log::warn!(
                "processes that leave {count} of the steered cgroups are not reported: write to map {map}: {error}"
            );
        }
    }

    /// Makes a manual attachment one that the configuration may change or take away.
    pub fn hand_over(&mut self, _lock: &Lock, cgroup_id: u64) -> Result<(), Error> {
        if let Some(record) = self.record(cgroup_id)? {
            let flags = record.flags & !attachment_flags::MANUAL;
            self.set_record(cgroup_id, AttachmentRecord { flags, ..record })?;
        }
        Ok(())
    }

    /// Points a removed cgroup, of which sockets are still open, to another policy. Programs cannot be attached to it any more.
    pub fn repoint(&mut self, _lock: &Lock, cgroup_id: u64, slot: u32) -> Result<(), Error> {
        if let Some(record) = self.record(cgroup_id)? {
            self.set_record(cgroup_id, AttachmentRecord { policy: slot, ..record })?;
        }
        Ok(())
    }

    /// Steers a cgroup by the policy in `slot`. A repeated call changes the policy, or repairs an incomplete attachment.
    pub fn attach(
        &mut self,
        lock: &Lock,
        hierarchy: &Hierarchy,
        cgroup: &Cgroup,
        slot: u32,
        manual: bool,
    ) -> Result<(), Error> {
        let is_new = !self.pins.attachment(cgroup.id).exists();
        let attached = self.try_attach(hierarchy, cgroup, slot, manual, is_new);
        // Remove a partial new attachment: an outer policy must not rely on it to decide. An older attachment keeps the
        // programs that it has.
        if attached.is_err()
            && is_new
            && let Err(error) = self.detach(lock, hierarchy, cgroup.id)
        {
            log::warn!("{error}");
        }
        attached
    }

    fn try_attach(
        &mut self,
        hierarchy: &Hierarchy,
        cgroup: &Cgroup,
        slot: u32,
        manual: bool,
        is_new: bool,
    ) -> Result<(), Error> {
        let outer = self.outer(hierarchy, &cgroup.path)?;
        let inner = if cgroup.is_leaf() { Vec::new() } else { self.inner(hierarchy, &cgroup.path)? };
        let mut record = AttachmentRecord {
            policy: slot,
            flags: if manual { attachment_flags::MANUAL } else { 0 },
            cgroup_id: cgroup.id,
            level: nesting::level(&cgroup.path),
            around: self.flags_of(outer.iter().map(|(_, record)| record))?,
        };
        if !outer.is_empty() {
            record.flags |= attachment_flags::NESTED;
        }
        if !inner.is_empty() {
            record.flags |= attachment_flags::HAS_INNER;
        }
        for (cgroup_id, record) in outer {
            let flags = record.flags | attachment_flags::HAS_INNER;
            self.set_record(cgroup_id, AttachmentRecord { flags, ..record })?;
        }
        // Inner attachments must write notes before this one acts. Programs that they no longer need are removed afterwards.
        let around = record.around | self.flags_of([&record])?;
        for (found, record) in &inner {
            let flags = record.flags | attachment_flags::NESTED;
            let around = record.around | around;
            self.put_inside(hierarchy, found, *record, AttachmentRecord { flags, around, ..*record })?;
        }
        // Fill the record before any program runs. If the cgroup was attached before, the record still exists. Otherwise the
        // anchor creates it.
        let anchor = if self.set_record(cgroup.id, record)? { None } else { Some(self.anchor(hierarchy, cgroup)?) };
        if anchor.is_some() && !self.set_record(cgroup.id, record)? {
            // The anchor program uses other maps than these.
            return Err(Error::Foreign { path: self.pins.abi() });
        }
        self.link(hierarchy, cgroup, &record, is_new)?;
        if record.flags & attachment_flags::NESTED != 0 {
            self.add_decider(&record)?;
        }
        if is_new || inner.is_empty() { Ok(()) } else { self.refresh_inner(hierarchy, &cgroup.path) }
    }

    /// Changes the links of an attachment to those that its record needs: first adds missing links, then removes others.
    pub(super) fn link(
        &self,
        hierarchy: &Hierarchy,
        cgroup: &Cgroup,
        record: &AttachmentRecord,
        is_new: bool,
    ) -> Result<(), Error> {
        let flags = self.flags_of([record])?;
        let directory = self.pins.attachment(cgroup.id);
        let mut created: Vec<(&str, OwnedFd)> = Vec::new();
        let mut superfluous = Vec::new();
        let mut missing = Vec::new();
        for program in self.programs()? {
            let pin = directory.join(program.hook.name);
            if !program.hook.is_wanted(flags, record.around) {
                if !is_new {
                    superfluous.push(pin);
                }
            } else if is_new || !refresh_link(&pin, program, cgroup.id)? {
                missing.push(program);
            }
        }
        self.cleared.check(missing.iter().map(|program| program.hook), hierarchy, cgroup)?;
        for program in missing {
            match bpf::link_create(program.fd.as_fd(), cgroup.fd(), program.hook.attach_type) {
                Err(error) if program.hook.is_optional() && is_unsupported(&error) => {
                    object::remove_program(&self.pins, program.hook)?;
                }
                Err(error) => return Err(refused(program.hook, hierarchy, cgroup, error)),
                Ok(link) => created.push((program.hook.name, link)),
            }
        }
        self.still_there()?;
        let pinned = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Pin { action, path, source }
        };
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(pinned("create", &directory)(error));
            }
            _ => {}
        }
        for (name, link) in created {
            let path = directory.join(name);
            bpf::pin(link.as_fd(), &path).map_err(pinned("pin", &path))?;
        }
        superfluous.iter().try_for_each(|pin| detach_link(pin))
    }

    /// The combined flags of the policies that records name.
    pub(super) fn flags_of<'r>(&self, records: impl IntoIterator<Item = &'r AttachmentRecord>) -> Result<u32, Error> {
        let mut named = records.into_iter().filter(|record| record.policy < POLICY_SLOTS);
        named.try_fold(0, |flags, record| Ok(flags | self.policy(record.policy)?.flags))
    }

    /// Removes a cgroup's links and clears its record. A repeated call is no error.
    pub fn detach(&mut self, lock: &Lock, hierarchy: &Hierarchy, cgroup_id: u64) -> Result<(), Error> {
        self.forget(lock, cgroup_id)?;
        match hierarchy.path_of(cgroup_id) {
            Some(path) => self.refresh_inner(hierarchy, &path),
            None => Ok(()),
        }
    }

    /// As [`Self::detach`], for a released cgroup, which has no cgroups in it.
    pub fn forget(&mut self, _lock: &Lock, cgroup_id: u64) -> Result<(), Error> {
        // First, so that an outer policy takes over before this one ends.
        self.remove_decider(cgroup_id)?;
        detach_links(&self.pins.attachment(cgroup_id))?;
        // The storage lives as long as the cgroup. An old record would be in force again at the next attach.
        self.set_record(cgroup_id, AttachmentRecord::default())?;
        Ok(())
    }

    fn programs(&self) -> Result<&[object::Pinned], Error> {
        if let Some(programs) = self.programs.get() {
            return Ok(programs);
        }
        let programs = object::programs(&self.pins)?;
        Ok(self.programs.get_or_init(|| programs))
    }

    /// Attaches the program that makes the kernel allocate the cgroup's record, until the link is dropped.
    fn anchor(&self, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Result<OwnedFd, Error> {
        if self.anchor.get().is_none() {
            let _ = self.anchor.set(object::open(&self.pins, &object::ANCHOR)?);
        }
        let program = self.anchor.get().ok_or_else(|| Error::Foreign { path: self.pins.abi() })?;
        self.cleared.check([program.hook], hierarchy, cgroup)?;
        bpf::link_create(program.fd.as_fd(), cgroup.fd(), program.hook.attach_type)
            .map_err(|source| refused(program.hook, hierarchy, cgroup, source))
    }

    /// Updates all links to the pinned programs. Repairs manual attachments, and nested flags that a killed process has left.
    /// Returns all attachments as they were read before. Nested flags and program ids may have changed since, and no
    /// attachment has become less complete.
    pub fn refresh(&mut self, lock: &Lock, hierarchy: &Hierarchy) -> Result<Vec<Attachment>, Error> {
        let attachments = self.attachments()?;
        let programs = self.programs()?;
        for attachment in &attachments {
            let directory = self.pins.attachment(attachment.cgroup_id);
            let links = || attachment.hooks.iter().zip(&attachment.program_ids);
            let is_old =
                |program: &&object::Pinned| links().any(|(hook, id)| *hook == program.hook.name && *id != program.id);
            for program in programs.iter().filter(is_old) {
                refresh_link(&directory.join(program.hook.name), program, attachment.cgroup_id)?;
            }
        }
        self.refresh_all(hierarchy, &attachments)?;
        for attachment in &attachments {
            if attachment.is_manual() && attachment.live && !attachment.complete {
                self.repair(lock, hierarchy, attachment);
            }
        }
        Ok(attachments)
    }

    /// Attaches the programs that a manual attachment lacks: new ones, or those that a killed process did not attach.
    fn repair(&mut self, lock: &Lock, hierarchy: &Hierarchy, attachment: &Attachment) {
        let Some(path) = hierarchy.path_of(attachment.cgroup_id) else { return };
        let cgroup = hierarchy.open(&path).map_err(Error::from);
        let repaired = cgroup.and_then(|cgroup| self.attach(lock, hierarchy, &cgroup, attachment.record.policy, true));
        if let Err(error) = repaired {
            log::warn!("{path} lacks some of its programs: {error}");
        }
    }
}

/// Makes a pinned link run `program`. False if there is no such link, or it is detached; its pin is then removed.
fn refresh_link(pin: &Path, program: &object::Pinned, cgroup_id: u64) -> Result<bool, Error> {
    let failed = |action: &'static str| {
        let path = pin.to_owned();
        move |source: io::Error| Error::Pin { action, path, source }
    };
    let link = match bpf::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed("open")(source)),
    };
    let info = bpf::link_info(link.as_fd()).map_err(failed("read the link of"))?;
    if info.cgroup_id != Some(cgroup_id) {
        fs::remove_file(pin).map_err(failed("remove"))?;
        return Ok(false);
    }
    if info.program_id != program.id {
        bpf::link_update(link.as_fd(), program.fd.as_fd()).map_err(failed("replace the program of"))?;
    }
    Ok(true)
}

/// Detaches and unpins one link. A missing link is no error.
fn detach_link(pin: &Path) -> Result<(), Error> {
    let failed = |source| Error::Pin { action: "detach", path: pin.to_owned(), source };
    match bpf::open_pin(pin) {
        Ok(link) => bpf::link_detach(link.as_fd()).and_then(|()| fs::remove_file(pin)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Detaches and unpins every link in an attachment's directory, of any ABI version, and removes the directory. Continues
/// after errors.
pub(super) fn detach_links(directory: &Path) -> Result<(), Error> {
    let mut errors = Vec::new();
    let mut try_to = |action: &'static str, path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(Error::Pin { action, path: path.to_owned(), source: error });
        }
        _ => {}
    };
    for pin in list(directory)? {
        let detached = bpf::open_pin(&pin).and_then(|link| bpf::link_detach(link.as_fd()));
        try_to("detach", &pin, detached);
        try_to("remove", &pin, fs::remove_file(&pin));
    }
    try_to("remove", directory, fs::remove_dir(directory));
    if errors.is_empty() { Ok(()) } else { Err(Error::Several(errors)) }
}
