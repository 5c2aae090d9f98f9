//! Removing what is no longer needed, and everything.
//!
//! **Invariant:** removal goes on past errors and reports them all; it needs nothing but the pins, so it works without a
//! daemon, beside a hung one, and on the pins of any version.

use std::{collections::BTreeSet, fs, io, os::fd::AsFd as _, path::Path};

use steer_common::Owner;

use super::{
    Datapath, Error, Lock, Pins,
    attachments::detach_links,
    bpf,
    pins::{file_name, list},
};

/// What `off` took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Ids of the cgroups that were steered.
    pub cgroups: Vec<u64>,
    /// Paths of pinned programs and maps.
    pub pins: Vec<String>,
    /// What could not be removed, and why.
    pub errors: Vec<String>,
}

/// Removes every link, map and program below the pin directory, and the directory. Removing nothing is no error.
pub fn off(pins: &Pins) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    // A process that hangs with the lock in its hand must not keep traffic captive: go on without it.
    let lock = match pins.lock() {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => return Ok(removed),
        Err(error @ Error::Locked { .. }) => {
            removed.errors.push(format!("{error}; went on all the same"));
            None
        }
        Err(error) => return Err(error),
    };
    for version in list(pins.root())? {
        for attachment in list(&version.join("links"))? {
            if let Err(error) = detach_links(&attachment) {
                removed.errors.push(error.to_string());
            }
            removed.cgroups.extend(file_name(&attachment).parse::<u64>().ok());
        }
        for pin in
            ["programs", "maps"].iter().map(|kind| list(&version.join(kind))).collect::<Result<Vec<_>, _>>()?.concat()
        {
            removed.pins.push(pin.display().to_string());
        }
    }
    remove_tree(pins.root(), &mut removed.errors);
    drop(lock);
    removed.cgroups.sort_unstable();
    Ok(removed)
}

/// Removes a directory with all that is in it, collecting errors.
fn remove_tree(directory: &Path, errors: &mut Vec<String>) {
    let entries = list(directory).unwrap_or_else(|error| {
        errors.push(error.to_string());
        Vec::new()
    });
    for path in entries {
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
    /// Takes away attachments whose cgroup is gone, and slots made by hand that nobody uses. One that has lost only some
    /// of its links is left as it is: taking the rest away would unsteer it.
    /// Returns how many attachments went.
    pub fn sweep(&mut self, lock: &Lock) -> Result<usize, Error> {
        let mut used = BTreeSet::new();
        let mut swept = 0;
        for attachment in self.attachments()? {
            if attachment.live {
                used.insert(attachment.record.policy);
            } else {
                self.forget(lock, attachment.cgroup_id)?;
                swept += 1;
            }
        }
        for entry in self.policies()? {
            if entry.is_owned_by(Owner::Manual) && !used.contains(&entry.slot) {
                self.free_policy(entry.slot)?;
            }
        }
        Ok(swept)
    }
}

/// Sweeps, and removes everything once nothing is steered, no configured policy waits for a cgroup, and no daemon runs; also
/// what a failed start left. Returns whether it did.
pub fn tidy(pins: &Pins, lock: Lock) -> Result<bool, Error> {
    let mut waiting = false;
    if let Some(mut datapath) = Datapath::open(pins)? {
        datapath.sweep(&lock)?;
        waiting = !datapath.policies()?.is_empty();
    }
    let unused = !waiting && list(&pins.links())?.is_empty() && pins.other_abis()?.is_empty() && !pins.daemon_runs()?;
    if unused {
        let mut errors = Vec::new();
        remove_tree(pins.root(), &mut errors);
        for error in &errors {
            log::warn!("{error}");
        }
    }
    drop(lock);
    Ok(unused)
}

impl Datapath {
    /// Takes away the pins of other ABI versions whose cgroup this version steers, or that is gone. Returns the ids of the
    /// other cgroups, which stay as they are.
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

/// Whether any link of an attachment's directory is still attached.
fn is_live(directory: &Path) -> Result<bool, Error> {
    Ok(list(directory)?.iter().any(|pin| {
        bpf::open_pin(pin).and_then(|link| bpf::link_info(link.as_fd())).is_ok_and(|link| link.cgroup_id.is_some())
    }))
}
