//! The manual attachments that `steer off` has released. The next daemon restores them.
//!
//! They are in a file under /run, by the ids of their cgroups, so the file is meaningless and gone after a boot.
//!
//! **Invariant:** an entry stays until its cgroup is steered or gone.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};
use steer_common::Owner;

use super::{
    resolve::{self, Namespace},
    routes,
};
use crate::{
    host::{cgroup::Hierarchy, file, link::Table},
    kernel::{self, Attachment, Datapath, Lock, Pins},
    model::{
        cgroup_path::CgroupPath,
        spec::{PolicySpec, Target, Uplink},
    },
};

/// A released attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Id of the cgroup.
    pub cgroup: u64,
    /// The name of its policy.
    pub policy: String,
    /// Whether that is a policy of the configuration. It is found by its name.
    configured: bool,
    /// The network namespace of the uplink.
    netns_cookie: u64,
    /// The policy. `None`: closed.
    spec: Option<PolicySpec>,
}

impl Released {
    fn target(&self) -> Target {
        let spec = self.spec.as_ref();
        let target = spec.and_then(|spec| spec.target(spec.named_uplink().unwrap_or(Uplink::Closed)).ok());
        target.unwrap_or(Target::CLOSED)
    }
}

/// Reads the file. It is no error if there is none. A file that other users may write is refused: an entry can exempt.
pub fn read(path: &Path) -> io::Result<Vec<Released>> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let found = file.metadata()?;
    if found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("other users may write it; remove it"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::from)
}

/// Writes the file. Removes it if nothing is released.
pub fn write(path: &Path, released: &[Released]) -> io::Result<()> {
    if released.is_empty() { file::remove(path) } else { file::replace(path, &serde_json::to_string_pretty(released)?) }
}

/// Removes a cgroup from the file.
pub fn forget(path: &Path, cgroup_id: u64) -> io::Result<bool> {
    let mut released = read(path)?;
    let before = released.len();
    released.retain(|entry| entry.cgroup != cgroup_id);
    let was_there = released.len() != before;
    if was_there {
        write(path, &released)?;
    }
    Ok(was_there)
}

/// The manual attachments in force, before they are released.
pub fn in_force(pins: &Pins, hierarchy: &Hierarchy) -> Result<Vec<Released>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let policies = datapath.policies()?;
    for attachment in datapath.attachments()? {
        if !attachment.is_manual() || hierarchy.is_gone(attachment.cgroup_id) {
            continue;
        }
        let Some(policy) = policies.iter().find(|entry| entry.slot == attachment.record.policy) else { continue };
        let (target, record) = (resolve::target(&policy.record, &policy.exceptions), &policy.record);
        found.push(Released {
            cgroup: attachment.cgroup_id,
            policy: kernel::text(&record.name),
            configured: record.owner == Owner::Config as u32,
            netns_cookie: record.netns_cookie,
            spec: (target.uplink != Uplink::Closed).then(|| target.spec()),
        });
    }
    Ok(found)
}

/// The removed cgroups of which sockets are still open. Released, they are so for good: no program can be attached to a removed cgroup.
pub fn lingering(pins: &Pins, hierarchy: &Hierarchy) -> Result<BTreeSet<u64>, kernel::Error> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(BTreeSet::new()) };
    let lingers = |attachment: &Attachment| attachment.live && hierarchy.is_gone(attachment.cgroup_id);
    Ok(datapath.attachments()?.iter().filter(|attachment| lingers(attachment)).map(|it| it.cgroup_id).collect())
}

/// Attaches what was released, unless something steers the cgroup manually now. A policy of another namespace than `namespace` is closed
/// until the links there are known. `slot_of` finds a policy of the configuration. Returns the cgroups, and what could not be restored.
pub(super) fn restore(
    datapath: &mut Datapath,
    lock: &Lock,
    hierarchy: &Hierarchy,
    namespace: Namespace<'_>,
    released: Vec<Released>,
    slot_of: impl Fn(&str) -> Option<u32>,
) -> (BTreeSet<u64>, Vec<Released>) {
    let (mut restored, mut left) = (BTreeSet::new(), Vec::new());
    let none = Table::default();
    for entry in released {
        let Some(path) = hierarchy.path_of(entry.cgroup) else { continue };
        let elsewhere = Namespace::own(&none, entry.netns_cookie, namespace.marks, namespace.groups);
        let is_here = entry.configured || entry.netns_cookie == namespace.cookie;
        let namespace = if is_here { namespace } else { elsewhere };
        match entry.restore(datapath, lock, hierarchy, &path, namespace, &slot_of) {
            Ok(false) => {}
            Ok(true) => {
                restored.insert(entry.cgroup);
                log::info!("steering {path} again, as before `steer off`");
            }
            Err(error) => {
                log::error!("{path} is NOT steered, as it was before `steer off`: {error}");
                left.push(entry);
            }
        }
    }
    (restored, left)
}

impl Released {
    /// False if the cgroup is gone, or something steers it manually now.
    fn restore(
        &self,
        datapath: &mut Datapath,
        lock: &Lock,
        hierarchy: &Hierarchy,
        path: &CgroupPath,
        namespace: Namespace<'_>,
        slot_of: &impl Fn(&str) -> Option<u32>,
    ) -> Result<bool, kernel::Error> {
        let cgroup = hierarchy.open(path)?;
        if cgroup.id != self.cgroup || datapath.is_manual_cgroup(self.cgroup)? {
            return Ok(false);
        }
        let slot = if let Some(slot) = slot_of(&self.policy).filter(|_| self.configured) {
            slot
        } else {
            let (target, owner) = if self.configured {
                let policy = &self.policy;
                log::error!(
                    "{path} is closed: policy {policy:?}, by which it was steered, is not in the configuration"
                );
                (Target { uplink: Uplink::Closed, ..self.target() }, Owner::Config)
            } else {
                (self.target(), Owner::Manual)
            };
            let policy = [resolve::policy(&self.policy, &target, owner, namespace)];
            let taken = routes::taken(&policy, namespace)?;
            datapath.put_policies(lock, &policy, &taken)?[0]
        };
        datapath.attach(lock, hierarchy, &cgroup, slot, true).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::{Released, read, write};
    use crate::model::spec::{Target, Uplink};

    #[test]
    fn what_is_written_is_read_back() {
        let directory = std::env::temp_dir().join(format!("steer-released-{}", std::process::id()));
        let file = directory.join("steer.released");
        assert_eq!(read(&file).expect("no file"), []);
        let target = Target { uplink: Uplink::Interface("wg0".to_owned()), ..Target::exempt() };
        let entry = |target: &Target| Released {
            cgroup: 7,
            policy: "p".to_owned(),
            configured: false,
            netns_cookie: 9,
            spec: (target.uplink != Uplink::Closed).then(|| target.spec()),
        };
        write(&file, &[entry(&target)]).expect("written");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("changed");
        assert!(read(&file).is_err());
        for target in [target, Target::exempt(), Target::CLOSED] {
            write(&file, &[entry(&target)]).expect("written");
            assert_eq!(read(&file).expect("read"), [entry(&target)]);
            assert_eq!(entry(&target).target(), target);
        }
        super::forget(&file, 8).expect("nothing to do");
        assert!(file.exists());
        super::forget(&file, 7).expect("removed");
        assert!(!file.exists());
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
