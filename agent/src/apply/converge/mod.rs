//! Handles an event of the daemon: resolves names, plans the difference, and changes the datapath.
//!
//! All of it may wait for the lock or the kernel, so the daemon runs it on its worker thread.
//!
//! **Invariant:** if one cgroup cannot be steered, the others still are.

mod cgroups;
pub(super) mod decision;
mod lingering;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::bail;
use steer_common::{CLOSED_IFINDEX, Owner};
use tokio::sync::watch;

use self::lingering::Lingering;
use super::follow::Namespaces;
use crate::{
    apply::{
        blind_spots::BlindSpots,
        released,
        resolve::{self, Namespace},
        routes::{self, Elsewhere, Written},
        takeover::{self, TakenOver},
        uplinks::Groups,
    },
    host::{
        cgroup::{self, Hierarchy, scope},
        link::Table,
    },
    kernel::{self, Attachment, Datapath, Error, Lock, PolicyEntry, Remaining},
    model::{
        cgroup_path::CgroupPath,
        plan::{Actual, Desired, Step},
        policy::Policies,
        spec::Target,
    },
};

/// How many cgroups that are not steered are named in the answer to a reload.
const MOST_OPEN: usize = 20;

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
    /// The removed cgroups whose attachments stay until the kernel has released them.
    lingering: Lingering,
    namespaces: Namespaces,
    blind_spots: BlindSpots,
    /// The file of what `steer off` has released. `None` once it was restored.
    released: Option<PathBuf>,
    routes: Written,
    /// When to look again at the connections that need rules of former policies.
    leftovers_due: Option<Instant>,
    /// Whether a policy has the resolvers of its link.
    asks_resolvers: watch::Sender<bool>,
    groups: Groups,
    /// What the last application of the configuration could not attach, with the error.
    open: Vec<NotAttached>,
    /// The attachments whose sockets `existing` has not been applied to yet.
    untreated: BTreeSet<u64>,
    /// Whether links of the daemon's namespace have changed again. They come before the sockets.
    links_wait: Box<dyn Fn() -> bool + Send>,
}

/// A cgroup that could not be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotAttached {
    /// The policy that names the cgroup.
    pub(crate) policy: String,
    /// That it is not steered, and why.
    pub(crate) what: String,
}

/// Policies and the slots they are in.
#[derive(Default)]
pub(super) struct InForce {
    pub(super) policies: Policies,
    pub(super) slots: Vec<u32>,
}

impl Steering {
    pub(crate) fn new(
        datapath: Datapath,
        hierarchy: Hierarchy,
        watch: cgroup::Watch,
        wanted: Policies,
        namespaces: Namespaces,
        released: &Path,
        asks_resolvers: watch::Sender<bool>,
    ) -> anyhow::Result<Self> {
        let netns_cookie = kernel::netns_cookie()?;
        refuse_foreign(&datapath, netns_cookie)?;
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
            lingering: Lingering::default(),
            namespaces,
            blind_spots: BlindSpots::default(),
            released: Some(released.to_owned()),
            routes: Written::default(),
            leftovers_due: None,
            asks_resolvers,
            groups: Groups::probing(),
            open: Vec::new(),
            untreated: BTreeSet::new(),
            links_wait: Box::new(|| false),
        })
    }

    /// Sets what tells whether links have changed again. The sockets wait then.
    pub(crate) fn links_come_first(&mut self, wait: impl Fn() -> bool + Send + 'static) {
        self.links_wait = Box::new(wait);
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

    /// The daemon's own network namespace.
    fn namespace(&self) -> Namespace<'_> {
        Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks())
    }

    /// Applies `existing` to the sockets of cgroups that have a new policy.
    fn take_over_sockets(&mut self, lock: &Lock, attachments: &BTreeSet<u64>) {
        let (datapath, hierarchy) = (&self.datapath, &self.hierarchy);
        let (done, is_complete) =
            takeover::take_over_until(lock, datapath, hierarchy, self.netns_cookie, attachments, &*self.links_wait);
        report(&done);
        if !is_complete {
            self.untreated.extend(attachments);
        }
    }

    /// The same for those that were interrupted, and for cgroups whose uplink has changed. A user with many sockets delays it.
    pub(crate) fn take_over_untreated(&mut self) -> Result<(), Error> {
        if self.untreated.is_empty() {
            return Ok(());
        }
        let lock = self.datapath.lock()?;
        let untreated = std::mem::take(&mut self.untreated);
        self.take_over_sockets(&lock, &untreated);
        Ok(())
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

    /// The policies of the configuration, for the kernel.
    fn resolve(&self) -> Vec<kernel::Policy> {
        // Log a missing uplink once, not on each run.
        let logged = &self.in_force.policies;
        let has_changed = *logged != self.wanted;
        let resolve = |(name, target): (&str, &Target)| {
            let policy = resolve::policy(name, target, Owner::Config, self.namespace());
            if let Some(interface) = target.uplink.interface()
                && policy.record.ifindex == CLOSED_IFINDEX
                && has_changed
            {
                log::warn!("policy {name}: uplink {interface} is missing; its sockets are closed until it exists");
            }
            policy
        };
        self.wanted.targets().map(resolve).collect()
    }

    /// The cgroups that the last [`Self::converge`] could not attach, with the error.
    pub(crate) fn open(&self) -> &[NotAttached] {
        &self.open
    }

    /// Applies the configuration to all cgroups.
    pub(crate) fn converge(&mut self) -> Result<(), Error> {
        self.open.clear();
        let lock = self.datapath.lock()?;
        let policies = self.resolve();
        let elsewhere = Elsewhere::read(&self.datapath)?;
        let taken = routes::taken(&policies, self.namespace())?;
        let (slots, marked) = self.datapath.put_or_close(&lock, &policies, &taken)?;
        // Until it has been followed, a new group is closed. The routes come first, too: without the rule of its mark, packets of a socket
        // are stopped. If either fails, they stay stopped, and everything else goes on.
        let chosen = self.choose(&lock);
        let routed = self.follow_routes(&lock).and(chosen);
        let next = InForce { policies: self.wanted.clone(), slots };
        let mut changed = self.restore(&lock, &next);
        let is_first = !self.refreshed;
        let attachments = self.read_attachments(&lock)?;
        let Remaining { attached, lingering } =
            self.datapath.clean_up_attachments(&lock, &self.hierarchy, attachments)?;
        for attachment in &lingering {
            self.lingering.add(attachment.cgroup_id, attachment.is_manual());
        }
        let announced = self.datapath.pins().announced(&lock)?;
        let mut blind_spots = BlindSpots::default();
        let watch = Some(&mut self.watch);
        let decision::Decision { desired, actual, steps } =
            decision::decide(&self.hierarchy, &next, &attached, &announced, watch, &mut blind_spots)?;
        blind_spots.log_since(&self.blind_spots);
        self.blind_spots = blind_spots;
        let ours = |id: &u64| actual.get(id).is_some_and(|actual| !actual.manual);
        self.attached = desired.iter().filter(|(id, _)| ours(id)).map(|(&id, to)| (to.path.clone(), id)).collect();
        self.manual.clear();
        for (&id, _) in actual.iter().filter(|(_, actual)| actual.manual) {
            match self.hierarchy.path_of(id) {
                Some(path) => drop(self.manual.insert(path, id)),
                // It was removed since it was read.
                None => self.lingering.add(id, true),
            }
        }
        if is_first {
            log_manual(&self.manual, &actual, &next);
        }
        for parent in self.manual.keys().filter_map(CgroupPath::parent) {
            if let Err(error) = self.watch.add(&self.hierarchy, &parent) {
                log::warn!("{parent} cannot be watched, so manual attachments in it are cleaned up late: {error}");
            }
        }
        // A cgroup that was removed before its parent was watched is not reported.
        for (_, cgroup_id) in self.manual.extract_if(.., |_, id| self.hierarchy.is_gone(*id)) {
            self.lingering.add(cgroup_id, true);
        }
        let has_steps = !steps.is_empty();
        for step in steps {
            match step {
                Step::Attach { cgroup_id, desired } => changed.extend(self.attach(&lock, cgroup_id, &desired)?),
                // The configuration names it no longer because it was removed since it was read. Sockets of it may be open.
                Step::Detach { cgroup_id } if self.hierarchy.is_gone(cgroup_id) => self.lingering.add(cgroup_id, false),
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
        self.datapath.pins().confirm(&lock, &announced)?;
        let moved = self.move_to_heirs(&lock, &next.slots, &mut changed);
        self.datapath.retire_policies(&lock, &next.slots, self.netns_cookie)?;
        let routed = routed.and(self.follow_routes(&lock)).and(elsewhere.release(&self.datapath));
        self.in_force = next;
        self.datapath.log_unreported();
        self.take_over_sockets(&lock, &changed);
        self.namespaces.follow(&self.datapath, &self.hierarchy, self.netns_cookie)?;
        moved.and(routed).and(marked)
    }

    /// Attaches what `steer off` has released. Returns the cgroups.
    fn restore(&mut self, lock: &Lock, next: &InForce) -> BTreeSet<u64> {
        let Some(file) = self.released.take() else { return BTreeSet::new() };
        let released = released::read(&file).unwrap_or_else(|error| {
            log::error!("what `steer off` has released is not restored: read {}: {error}", file.display());
            Vec::new()
        });
        if released.is_empty() {
            return BTreeSet::new();
        }
        let slot_of = |name: &str| {
            let index = next.policies.targets().position(|(known, _)| known == name)?;
            next.slots.get(index).copied()
        };
        let namespace = Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks());
        let (restored, left) =
            released::restore(&mut self.datapath, lock, &self.hierarchy, namespace, released, slot_of);
        if let Err(error) = released::write(&file, &left) {
            log::warn!("write {}: {error}", file.display());
        }
        restored
    }

    /// Attaches what was attached to a policy by its name to the changed policy of that name, with the programs that it asks for now. What
    /// cannot be is closed with its policy. The error is that of the last such attachment.
    fn move_to_heirs(&mut self, lock: &Lock, slots: &[u32], changed: &mut BTreeSet<u64>) -> Result<(), Error> {
        let mut moved = Ok(());
        for (cgroup_id, is_manual, heir) in self.datapath.heirs(&self.datapath.policy_records()?, slots)? {
            let Some(path) = self.hierarchy.path_of(cgroup_id) else {
                self.datapath.repoint(lock, cgroup_id, heir)?;
                continue;
            };
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
                let what = format!("{} is NOT steered: {error}", desired.path);
                log::error!("{what}");
                if self.open.len() < MOST_OPEN {
                    let policy = self.datapath.policy(desired.slot).map(|record| kernel::text(&record.name));
                    self.open.push(NotAttached { policy: policy.unwrap_or_default(), what });
                }
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

/// Fails where policies of the configuration are in force for another network namespace.
pub(super) fn refuse_foreign(datapath: &Datapath, netns_cookie: u64) -> anyhow::Result<()> {
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
    Ok(())
}

/// Logs the manual attachments from before the daemon that go before what the configuration names.
fn log_manual(manual: &BTreeMap<CgroupPath, u64>, actual: &BTreeMap<u64, Actual>, in_force: &InForce) {
    for (path, cgroup_id) in manual.iter().filter(|(path, _)| !scope::is_scope(path)) {
        let Some(policy) = in_force.policies.before_manual(path) else { continue };
        let slot = in_force.policies.naming(path).and_then(|index| in_force.slots.get(index));
        if actual.get(cgroup_id).map(|actual| actual.slot) != slot.copied() {
            log::warn!(
                "{path} has a manual attachment, which goes before policy {} of the configuration; `steer detach {path}` ends it",
                policy.name
            );
        }
    }
}

fn report(done: &[TakenOver]) {
    for done in done.iter().filter(|done| !done.is_nothing()) {
        log::info!("{done}");
    }
}
