//! Handles an event of the daemon: resolves names, plans the difference, and changes the datapath.
//!
//! All of it may wait for the lock or the kernel, so the daemon runs it on its worker thread.
//!
//! **Invariant:** if one cgroup cannot be steered, the others still are.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use anyhow::bail;
use steer_common::{CLOSED_IFINDEX, Owner};

use super::follow::{self, Namespaces};
use crate::{
    apply::{
        blind_spots::BlindSpots,
        permit,
        resolve::{self, Namespace},
        takeover::{self, TakenOver},
    },
    host::{
        cgroup::{self, Directory, Found, Hierarchy},
        link::{self, Table},
        netns,
    },
    kernel::{self, Attachment, Datapath, Error, Lock, PolicyEntry},
    model::{
        cgroup_path::CgroupPath,
        plan::{self, Actual, Desired, Step},
        policy::Policies,
    },
};

/// How many names of a directory one listing returns.
const LISTED: usize = 256;

/// The daemon's view of the host, and the operations that change it.
pub(crate) struct Steering {
    datapath: Datapath,
    hierarchy: Hierarchy,
    /// The directories that are watched for new and removed cgroups.
    watch: cgroup::Watch,
    /// The policies of the configuration.
    wanted: Policies,
    /// The policies that have been applied.
    in_force: InForce,
    table: Table,
    netns_cookie: u64,
    /// Whether the attachments found at the start have been repaired.
    refreshed: bool,
    /// Ids of the cgroups that the configuration attaches. The kernel reports a removed cgroup only by its path.
    attached: BTreeMap<CgroupPath, u64>,
    /// The same for manual attachments.
    manual: BTreeMap<CgroupPath, u64>,
    namespaces: Namespaces,
    blind_spots: BlindSpots,
}

/// Policies and the slots they are in.
#[derive(Default)]
struct InForce {
    policies: Policies,
    slots: Vec<u32>,
}

impl Steering {
    pub(crate) fn new(
        datapath: Datapath,
        hierarchy: Hierarchy,
        watch: cgroup::Watch,
        wanted: Policies,
        namespaces: Namespaces,
    ) -> anyhow::Result<Self> {
        let netns_cookie = kernel::netns_cookie()?;
        let foreign = |entry: &PolicyEntry| {
            entry.is_owned_by(Owner::Config) && !entry.exempts() && entry.record.netns_cookie != netns_cookie
        };
        if let Some(entry) = datapath.policies()?.iter().find(|entry| foreign(entry)) {
            bail!(
                "policy {} is in force for another network namespace, and the index of its uplink is not valid in this one: \
                 start the daemon there, use another --bpffs here, or end steering with `steer off`",
                entry.name()
            );
        }
        Ok(Self {
            datapath,
            hierarchy,
            watch,
            wanted,
            in_force: InForce::default(),
            table: Table::default(),
            netns_cookie,
            refreshed: false,
            attached: BTreeMap::new(),
            manual: BTreeMap::new(),
            namespaces,
            blind_spots: BlindSpots::default(),
        })
    }

    /// The policies that were read last.
    pub(crate) fn policies(&self) -> &Policies {
        &self.wanted
    }

    /// Where it does not see new cgroups.
    pub(crate) fn blind_spots(&self) -> &BlindSpots {
        &self.blind_spots
    }

    /// Whether there is a policy to apply.
    pub(crate) fn has_policies(&self) -> bool {
        self.wanted.targets().next().is_some()
    }

    /// Sets the policies that [`Self::converge`] applies.
    pub(crate) fn set_policies(&mut self, policies: Policies) {
        self.wanted = policies;
    }

    /// Handles added, removed and renamed links.
    pub(crate) fn links_changed(&mut self, links: Table) -> Result<(), Error> {
        self.table = links;
        let lock = self.datapath.lock()?;
        self.follow_uplinks(&lock)
    }

    /// The daemon's own network namespace.
    fn namespace(&self) -> Namespace<'_> {
        Namespace { links: &self.table, cookie: self.netns_cookie }
    }

    fn follow_uplinks(&mut self, lock: &Lock) -> Result<(), Error> {
        let namespace = Namespace { links: &self.table, cookie: self.netns_cookie };
        let changed = resolve::follow(&mut self.datapath, lock, namespace)?;
        log_uplinks(&changed);
        report(&takeover::follow_uplinks(lock, &self.datapath, &self.hierarchy, self.netns_cookie, &changed)?);
        Ok(())
    }

    /// Handles added, removed and renamed links in the network namespace of a container.
    pub(crate) fn namespace_changed(&mut self, change: &follow::Change) -> Result<(), Error> {
        if !self.namespaces.take_in(change) {
            return Ok(());
        }
        let lock = self.datapath.lock()?;
        self.follow_namespace(&lock, change)
    }

    fn follow_namespace(&mut self, lock: &Lock, change: &follow::Change) -> Result<(), Error> {
        let cookie = change.netns_cookie;
        let changed = resolve::follow(&mut self.datapath, lock, Namespace { links: &change.links, cookie })?;
        if changed.is_empty() {
            return Ok(());
        }
        log_uplinks(&changed);
        let (pins, hierarchy) = (self.datapath.pins(), &self.hierarchy);
        let followed = netns::inside(change.netns.as_fd(), || match Datapath::open(pins)? {
            Some(datapath) => takeover::follow_uplinks(lock, &datapath, hierarchy, cookie, &changed),
            None => Ok(Vec::new()),
        });
        report(&followed.map_err(link::Error::Socket)??);
        Ok(())
    }

    /// Applies `existing` to the sockets of cgroups that have a new policy.
    fn take_over_sockets(&self, lock: &Lock, attachments: &BTreeSet<u64>) {
        report(&takeover::take_over(lock, &self.datapath, &self.hierarchy, self.netns_cookie, attachments));
    }

    /// Does everything again after a failure.
    pub(crate) fn catch_up(&mut self) -> Result<(), Error> {
        let lock = self.datapath.lock()?;
        self.follow_uplinks(&lock)?;
        for change in self.namespaces.known() {
            self.follow_namespace(&lock, &change)?;
        }
        drop(lock);
        self.converge()
    }

    /// Handles a cgroup that was created or removed; its path shows which. If it was created and removed, there is nothing to do.
    pub(crate) fn cgroup_changed(&mut self, directory: Directory, name: &str) -> Result<(), Error> {
        let Some(parent) = self.watch.path(directory) else { return Ok(()) };
        let path = parent.child(name);
        self.forget_gone(&path)?;
        self.steer_new(&path)
    }

    /// Removes the attachment of `path` if that cgroup is gone. A new cgroup may have the same path now.
    fn forget_gone(&mut self, path: &CgroupPath) -> Result<(), Error> {
        if let Some(&cgroup_id) = self.attached.get(path)
            && self.hierarchy.is_gone(cgroup_id)
        {
            let lock = self.datapath.lock()?;
            self.datapath.forget(&lock, cgroup_id)?;
            self.attached.remove(path);
            log::info!("{path} is gone");
        }
        if let Some(&cgroup_id) = self.manual.get(path)
            && self.hierarchy.is_gone(cgroup_id)
        {
            let lock = self.datapath.lock()?;
            self.datapath.forget_gone_cgroups(&lock, &self.hierarchy)?;
            self.manual.remove(path);
            self.namespaces.follow(&self.datapath, &self.hierarchy, self.netns_cookie)?;
        }
        Ok(())
    }

    /// Steers new cgroups at `path` and below it.
    fn steer_new(&mut self, path: &CgroupPath) -> Result<(), Error> {
        let manual = |path: &CgroupPath| is_manual_cgroup(&self.hierarchy, &self.datapath, path);
        let mut blind_spots = self.blind_spots.clone();
        let mut found = named_in(&self.hierarchy, path, &self.in_force, manual, &mut self.watch, &mut blind_spots)?;
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

    /// Applies the configuration to all cgroups.
    pub(crate) fn converge(&mut self) -> Result<(), Error> {
        let lock = self.datapath.lock()?;
        // Log a missing uplink once, not on each run.
        let logged = self.in_force.policies.clone();
        let is_new = |name: &str| logged != self.wanted || !logged.targets().any(|(known, _)| known == name);
        let records = self
            .wanted
            .targets()
            .map(|(name, target)| {
                let record = resolve::record(name, target, Owner::Config, self.namespace());
                if let Some(interface) = target.uplink.interface()
                    && record.ifindex == CLOSED_IFINDEX
                    && is_new(name)
                {
                    log::warn!("policy {name}: uplink {interface} is missing; its sockets are closed until it exists");
                }
                record
            })
            .collect::<Vec<_>>();
        let slots = self.datapath.put_policies(&lock, &records)?;
        let next = InForce { policies: self.wanted.clone(), slots };
        let attachments = self.read_attachments(&lock)?;
        let attached = self.datapath.clean_up_attachments(&lock, &self.hierarchy, attachments)?;
        let manual: BTreeSet<u64> = attached
            .iter()
            .filter(|attached| !permit::configuration_may_change(attached))
            .map(|attached| attached.cgroup_id)
            .collect();
        let manual = |path: &CgroupPath| {
            !manual.is_empty() && self.hierarchy.open(path).is_ok_and(|cgroup| manual.contains(&cgroup.id))
        };
        let mut blind_spots = BlindSpots::default();
        let root = CgroupPath::root();
        let desired = named_in(&self.hierarchy, &root, &next, manual, &mut self.watch, &mut blind_spots)?;
        blind_spots.log_since(&self.blind_spots);
        self.blind_spots = blind_spots;
        let actual: BTreeMap<u64, Actual> = attached
            .into_iter()
            .map(|attachment| {
                let actual = Actual {
                    slot: attachment.record.policy,
                    manual: !permit::configuration_may_change(&attachment),
                    complete: attachment.complete,
                };
                (attachment.cgroup_id, actual)
            })
            .collect();
        let ours = |id: &u64| actual.get(id).is_some_and(|actual| !actual.manual);
        self.attached = desired.iter().filter(|(id, _)| ours(id)).map(|(&id, to)| (to.path.clone(), id)).collect();
        let manual = actual.iter().filter(|(_, actual)| actual.manual);
        self.manual = manual.filter_map(|(&id, _)| Some((self.hierarchy.path_of(id)?, id))).collect();
        for parent in self.manual.keys().filter_map(CgroupPath::parent) {
            if let Err(error) = self.watch.add(&self.hierarchy, &parent) {
                log::warn!("{parent} cannot be watched, so manual attachments in it are cleaned up late: {error}");
            }
        }
        // A cgroup that was removed before its parent was watched is not reported.
        if self.manual.values().any(|&id| self.hierarchy.is_gone(id)) {
            self.datapath.forget_gone_cgroups(&lock, &self.hierarchy)?;
            let hierarchy = &self.hierarchy;
            self.manual.retain(|_, id| !hierarchy.is_gone(*id));
        }
        let mut changed = BTreeSet::new();
        let steps = plan::steps(&desired, &actual);
        let has_steps = !steps.is_empty();
        for step in steps {
            match step {
                Step::Attach { cgroup_id, desired } => changed.extend(self.attach(&lock, cgroup_id, &desired)?),
                Step::Detach { cgroup_id } => {
                    self.datapath.detach(&lock, &self.hierarchy, cgroup_id)?;
                    let path = self.hierarchy.path_of(cgroup_id);
                    if let Some(path) = &path {
                        changed.extend(self.datapath.around(&self.hierarchy, path)?);
                    }
                    log::info!("detached {}", path.map_or_else(|| cgroup_id.to_string(), |path| path.to_string()));
                }
            }
        }
        // An attachment that was handed over by `steer detach` may have been the last one of a manual policy.
        if has_steps {
            self.datapath.free_unused_policies(&lock)?;
        }
        let moved = self.move_to_heirs(&lock, &next.slots, &mut changed);
        self.datapath.retire_policies(&lock, &next.slots)?;
        self.in_force = next;
        self.take_over_sockets(&lock, &changed);
        self.namespaces.follow(&self.datapath, &self.hierarchy, self.netns_cookie)?;
        moved
    }

    /// Attaches what was attached to a policy by its name to the changed policy of that name, with the programs that it asks for now. What
    /// cannot be is closed with its policy. The error is that of the last such attachment.
    fn move_to_heirs(&mut self, lock: &Lock, slots: &[u32], changed: &mut BTreeSet<u64>) -> Result<(), Error> {
        let mut moved = Ok(());
        for (cgroup_id, is_manual, heir) in self.datapath.heirs(slots)? {
            let Some(path) = self.hierarchy.path_of(cgroup_id) else { continue };
            let attached = self
                .hierarchy
                .open(&path)
                .map_err(Error::from)
                .and_then(|cgroup| self.datapath.attach(lock, &self.hierarchy, &cgroup, heir, is_manual));
            match attached {
                Ok(()) => {
                    changed.insert(cgroup_id);
                }
                Err(error) => {
                    log::error!("{path} is closed, for it does not get the programs of its changed policy: {error}");
                    moved = Err(error);
                }
            }
        }
        moved
    }

    /// All attachments. The first call, which is slow with many attachments, also repairs those that were found.
    fn read_attachments(&mut self, lock: &Lock) -> Result<Vec<Attachment>, Error> {
        if self.refreshed {
            return self.datapath.attachments();
        }
        let attachments = self.datapath.refresh(lock, &self.hierarchy)?;
        self.refreshed = true;
        Ok(attachments)
    }

    /// Attaches one cgroup, and returns its id. Does nothing if the cgroup was removed in the meantime. Logs another failure, so
    /// that the other cgroups are still attached.
    fn attach(&mut self, lock: &Lock, cgroup_id: u64, desired: &Desired) -> Result<Option<u64>, Error> {
        let attached = self.hierarchy.open(&desired.path).map_err(Error::from).and_then(|cgroup| {
            if cgroup.id != cgroup_id {
                if !self.hierarchy.is_gone(cgroup_id) {
                    log::error!("{} is NOT steered: another file system is mounted on it", desired.path);
                }
                return Ok(None);
            }
            self.datapath.attach(lock, &self.hierarchy, &cgroup, desired.slot, false)?;
            self.attached.insert(desired.path.clone(), cgroup_id);
            log::info!("steering {}", desired.path);
            Ok(Some(cgroup_id))
        });
        match attached {
            Err(Error::Cgroup(cgroup::Error::Missing { .. })) => Ok(None),
            Err(error) if !matches!(error, Error::SwitchedOff { .. }) && self.hierarchy.is_gone(cgroup_id) => {
                log::debug!("{} was removed while it was attached: {error}", desired.path);
                Ok(None)
            }
            Err(error) if !matches!(error, Error::SwitchedOff { .. }) => {
                log::error!("{} is NOT steered: {error}", desired.path);
                Ok(None)
            }
            attached => attached,
        }
    }

    /// Removes the links of another ABI version, after the links of this version have replaced them.
    pub(crate) fn replace_other_versions(&mut self) -> Result<(), Error> {
        let lock = self.datapath.lock()?;
        for cgroup_id in self.datapath.remove_other_versions(&lock)? {
            let path = self.hierarchy.path_of(cgroup_id);
            let name = path.map_or_else(|| cgroup_id.to_string(), |path| path.to_string());
            log::warn!(
                "{name} is steered by another version of steer, and the configuration does not name it: it stays as it is \
                 until the cgroup is removed, or until `steer off`"
            );
        }
        Ok(())
    }
}

/// The cgroups at `path` and below it that get a policy, by id. Watches those in which more may be created.
fn named_in(
    hierarchy: &Hierarchy,
    path: &CgroupPath,
    in_force: &InForce,
    manual: impl Fn(&CgroupPath) -> bool,
    watch: &mut cgroup::Watch,
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
            if let Err(error) = watch.add(hierarchy, &path) {
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

/// Logs the new indexes of uplinks.
fn log_uplinks(changed: &[PolicyEntry]) {
    for entry in changed {
        let (name, interface) = (entry.name(), entry.interface());
        if entry.record.ifindex > 0 {
            log::info!("policy {name}: uplink {interface} has index {}", entry.record.ifindex);
        } else {
            log::warn!("policy {name}: uplink {interface} is missing; its sockets are closed until it exists");
        }
    }
}

fn report(done: &[TakenOver]) {
    for done in done.iter().filter(|done| !done.is_nothing()) {
        log::info!("{done}");
    }
}
