//! Removes pins that are no longer needed, or all of them.
//!
//! **Invariant:** removal continues after errors and reports all of them. It needs only the pins, so it works without a
//! daemon, beside a daemon that hangs, and on the pins of any version.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use steer_common::Owner;

use super::{
    Datapath, Error, Lock, Pins,
    attachments::{Attachment, detach_links},
    bpf, bpffs,
    pins::{file_name, list},
};
use crate::host::cgroup::{Hierarchy, scope};

/// The attachments that a clean-up has left.
#[derive(Clone, Debug, Default)]
pub struct Remaining {
    /// Those of existing cgroups.
    pub attached: Vec<Attachment>,
    /// Those of removed cgroups of which sockets are still open. They must stay: a packet of such a socket would leave by any link.
    pub lingering: Vec<Attachment>,
}

/// What `off` removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Ids of the cgroups that were steered.
    pub cgroups: Vec<u64>,
    /// Paths of pinned programs and maps.
    pub pins: Vec<String>,
    /// What could not be removed, and why.
    pub errors: Vec<String>,
}

/// Removes every link, map and program below the pin directory, and the directory itself. It is no error if there is none.
pub fn off(pins: &Pins) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    // A process that hangs while it holds the lock must not block removal: continue without the lock.
    let lock = match pins.lock() {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => return Ok(removed),
        Err(error @ Error::Locked { .. }) => {
            removed.errors.push(format!("{error}; continued without the lock"));
            None
        }
        Err(error) => return Err(error),
    };
    for version in pins.versions()? {
        for attachment in listed(&version.join("links"), &mut removed.errors) {
            if let Err(error) = detach_links(&attachment) {
                removed.errors.push(error.to_string());
            }
            removed.cgroups.extend(file_name(&attachment).parse::<u64>().ok());
        }
        for kind in ["programs", "maps"] {
            for pin in listed(&version.join(kind), &mut removed.errors) {
                removed.pins.push(pin.display().to_string());
            }
        }
    }
    remove_pins(pins, &mut removed.errors);
    drop(lock);
    removed.cgroups.sort_unstable();
    Ok(removed)
}

/// Entries of a directory; collects errors.
fn listed(directory: &Path, errors: &mut Vec<String>) -> Vec<PathBuf> {
    list(directory).unwrap_or_else(|error| {
        errors.push(error.to_string());
        Vec::new()
    })
}

/// Removes the pin directory with all that steer has made in it, and its mount, if steer has made that. The lock on the
/// directory is still held, so the mount ends with the lock.
fn remove_pins(pins: &Pins, errors: &mut Vec<String>) {
    for version in pins.versions().unwrap_or_default() {
        remove_tree(&version, errors);
    }
    remove_tree(&pins.daemon(), errors);
    remove_tree(&pins.reader(), errors);
    // Its own file system, of another mount namespace.
    let own_mount = pins.anchor().map(|fd| Path::new("/proc/self/fd").join(fd.to_string()));
    if own_mount.as_deref() == Some(pins.root()) {
        let name = pins.name().display();
        errors.push(format!(
            "{name} is empty, but stays: it is mounted in another mount namespace; `umount {name}` there removes it"
        ));
        return;
    }
    if bpffs::is_mount_point(pins.root())
        && let Err(error) = nix::mount::umount2(pins.root(), nix::mount::MntFlags::MNT_DETACH)
    {
        errors.push(format!("unmount {}: {error}", pins.root().display()));
    }
    match fs::remove_dir(pins.root()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("remove {}: {error}", pins.root().display()));
        }
        _ => {}
    }
}

/// Removes a directory with its content; collects errors.
fn remove_tree(directory: &Path, errors: &mut Vec<String>) {
    for path in listed(directory, errors) {
        if path.is_dir() {
            remove_tree(&path, errors);
        } else if let Err(error) = fs::remove_file(&path) {
            errors.push(format!("remove {}: {error}", path.display()));
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("remove {}: {error}", directory.display()));
        }
        _ => {}
    }
}

impl Datapath {
    /// Removes attachments whose cgroup the kernel has released, leftovers of killed `steer exec` commands, and unused manual
    /// slots. Keeps an attachment that has lost only some of its links, because its cgroup would no longer be steered.
    pub fn clean_up(&mut self, lock: &Lock, hierarchy: &Hierarchy) -> Result<Remaining, Error> {
        let attachments = self.attachments()?;
        self.clean_up_attachments(lock, hierarchy, attachments)
    }

    /// As [`Self::clean_up`], of all attachments as they have just been read.
    pub fn clean_up_attachments(
        &mut self,
        lock: &Lock,
        hierarchy: &Hierarchy,
        attachments: Vec<Attachment>,
    ) -> Result<Remaining, Error> {
        let mut remaining = Remaining::default();
        for attachment in attachments {
            let cgroup_id = attachment.cgroup_id;
            if !attachment.live {
                self.forget(lock, cgroup_id)?;
            } else if hierarchy.is_gone(cgroup_id)
                || (attachment.is_manual() && remove_if_abandoned(hierarchy, cgroup_id))
            {
                remaining.lingering.push(attachment);
            } else {
                remaining.attached.push(attachment);
            }
        }
        self.remove_stale_deciders()?;
        let all = remaining.attached.iter().chain(&remaining.lingering);
        self.free_unused(&all.map(|attachment| attachment.record.policy).collect())?;
        Ok(remaining)
    }

    /// As [`Self::clean_up`], but faster: only removes the attachments of released cgroups.
    pub fn forget_released(&mut self, lock: &Lock) -> Result<(), Error> {
        let mut used = BTreeSet::new();
        let mut removed = false;
        for (cgroup_id, record) in self.records()? {
            if let Some(record) = record {
                used.insert(record.policy);
            } else {
                self.forget(lock, cgroup_id)?;
                removed = true;
            }
        }
        if removed { self.free_unused(&used) } else { Ok(()) }
    }

    /// Whether the kernel has released a cgroup: it was removed, and none of its sockets is left. Until then the kernel keeps
    /// its links and its record, and its programs run.
    pub fn is_released(&self, cgroup_id: u64) -> Result<bool, Error> {
        Ok(self.record(cgroup_id)?.is_none())
    }

    /// Frees the slots of manual policies that no attachment names.
    pub fn free_unused_policies(&mut self, _lock: &Lock) -> Result<(), Error> {
        let used = self.records()?.into_iter().filter_map(|(_, record)| Some(record?.policy)).collect();
        self.free_unused(&used)
    }

    fn free_unused(&mut self, used: &BTreeSet<u32>) -> Result<(), Error> {
        for entry in self.policies()? {
            if entry.is_owned_by(Owner::Manual) && !used.contains(&entry.slot) {
                self.free_policy(entry.slot)?;
            }
        }
        Ok(())
    }
}

/// Removes an empty cgroup of a `steer exec` that no process holds. False if it is not such a cgroup, or cannot be removed:
/// a daemon may lack the rights in the cgroups of a user. A later command with more rights removes it.
fn remove_if_abandoned(hierarchy: &Hierarchy, cgroup_id: u64) -> bool {
    let Some(path) = hierarchy.path_of(cgroup_id) else { return false };
    scope::remove_abandoned(hierarchy, &path).unwrap_or_else(|error| {
        log::warn!("left for the next command: {error}");
        false
    })
}

/// Removes all pins if there is no attachment, no configured policy waits for a cgroup, no daemon runs, and no process reads the
/// events. Also removes what a failed start has left. Frees no policy: whoever does that also removes its rules.
pub fn remove_unused_pins(pins: &Pins, lock: Lock) -> Result<(), Error> {
    let waiting = match Datapath::open(pins)? {
        Some(datapath) => !datapath.policies()?.is_empty(),
        None => false,
    };
    remove_dead_versions(pins)?;
    let kept = waiting || pins.daemon_runs()? || pins.is_read()?;
    let unused = !kept && list(&pins.links())?.is_empty() && pins.other_abis()?.is_empty();
    if unused {
        let mut errors = Vec::new();
        remove_pins(pins, &mut errors);
        for error in &errors {
            log::warn!("{error}");
        }
    }
    drop(lock);
    Ok(())
}

impl Datapath {
    /// Removes the pins of other ABI versions if this version steers their cgroup, or the cgroup is gone. Returns the ids of
    /// the other cgroups, which stay unchanged.
    pub fn remove_other_versions(&mut self, _lock: &Lock) -> Result<Vec<u64>, Error> {
        let mut left = Vec::new();
        for version in self.pins.other_abis()? {
            let mut emptied = true;
            for directory in list(&version.join("links"))? {
                let Ok(cgroup_id) = file_name(&directory).parse::<u64>() else { continue };
                let replaced = self.attachment(cgroup_id)?.is_some_and(|attachment| attachment.complete);
                if replaced || !is_live(&directory)? {
                    detach_links(&directory)?;
                } else {
                    emptied = false;
                    left.push(cgroup_id);
                }
            }
            if emptied {
                let mut errors = Vec::new();
                remove_tree(&version, &mut errors);
                for error in errors {
                    log::warn!("{error}");
                }
            }
        }
        Ok(left)
    }
}

/// Detaches the programs that other ABI versions have attached to a cgroup.
pub fn detach_other_versions(pins: &Pins, _lock: &Lock, cgroup_id: u64) -> Result<(), Error> {
    pins.other_abis()?.iter().try_for_each(|version| detach_links(&version.join("links").join(cgroup_id.to_string())))
}

/// Removes leftovers of other versions that steer nothing, for example of a start that was killed.
fn remove_dead_versions(pins: &Pins) -> Result<(), Error> {
    for version in dead_versions(pins)? {
        let mut errors = Vec::new();
        remove_tree(&version, &mut errors);
        for error in errors {
            log::warn!("{error}");
        }
    }
    Ok(())
}

/// The pin directories of other versions that steer nothing.
pub(super) fn dead_versions(pins: &Pins) -> Result<Vec<PathBuf>, Error> {
    let mut dead = Vec::new();
    for version in pins.other_abis()? {
        let mut live = false;
        for directory in list(&version.join("links"))? {
            live |= is_live(&directory)?;
        }
        if !live {
            dead.push(version);
        }
    }
    Ok(dead)
}

/// Ids of the cgroups that another ABI version steers.
pub fn steered_by_other_versions(pins: &Pins) -> Result<Vec<u64>, Error> {
    let mut cgroups = Vec::new();
    for version in pins.other_abis()? {
        for directory in list(&version.join("links"))? {
            if is_live(&directory)? {
                cgroups.extend(file_name(&directory).parse::<u64>().ok());
            }
        }
    }
    Ok(cgroups)
}

/// Whether any link of an attachment's directory is still attached.
fn is_live(directory: &Path) -> Result<bool, Error> {
    Ok(list(directory)?.iter().any(|pin| {
        bpf::open_pin(pin).and_then(|link| bpf::link_info(link.as_fd())).is_ok_and(|link| link.cgroup_id.is_some())
    }))
}
