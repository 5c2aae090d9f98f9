//! A sample of all counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use jiff::Timestamp;
use steer_common::meter::{TrafficKey, TrafficRecord};

use crate::{
    host::{cgroup::Hierarchy, link},
    kernel::{self, Meter, Pins},
    model::cgroup_path::CgroupPath,
    observe::{
        status::{self, Status},
        uplinks::{self, UplinkStatus},
    },
};

/// The state of all counters at one time.
#[derive(Debug)]
pub struct Sample {
    /// When it was taken.
    pub time: Timestamp,
    /// The same time on a monotonic clock.
    pub at: Instant,
    /// What is in force.
    pub status: Status,
    /// The groups of uplinks in force.
    pub uplinks: Vec<UplinkStatus>,
    /// Cookie of this process's network namespace.
    pub netns_cookie: u64,
    /// Sockets made, by cgroup id.
    pub sockets: BTreeMap<u64, u64>,
    /// Traffic sent, by cgroup and link.
    pub traffic: BTreeMap<TrafficKey, TrafficRecord>,
    /// For the id of each counted cgroup, the id of the steered cgroup that it is or is in.
    pub steered: BTreeMap<u64, u64>,
    /// Names of this network namespace's links.
    pub links: BTreeMap<u32, String>,
}

/// Takes samples.
pub struct Watcher {
    pins: Pins,
    hierarchy: Hierarchy,
    meter: Meter,
    netns_cookie: u64,
    /// As in [`Sample`]. A removed cgroup keeps its entry.
    steered: BTreeMap<u64, u64>,
}

impl Watcher {
    /// Starts to count.
    pub fn new(pins: Pins) -> Result<Self, kernel::Error> {
        Ok(Self {
            pins,
            hierarchy: Hierarchy::find()?,
            meter: Meter::load()?,
            netns_cookie: kernel::netns_cookie()?,
            steered: BTreeMap::new(),
        })
    }

    /// Takes a sample. A newly steered cgroup is counted from the next sample on.
    pub fn look(&mut self) -> Result<Sample, kernel::Error> {
        let status = status::read(&self.pins, &self.hierarchy)?;
        let cgroups = cgroups(&status);
        let outermost = outermost(&cgroups).filter_map(|path| self.hierarchy.open(path).ok());
        self.meter.follow(&outermost.collect::<Vec<_>>());
        let (sockets, traffic) = (self.meter.sockets()?, self.meter.traffic()?);
        let counted: BTreeSet<u64> = sockets.keys().copied().chain(traffic.keys().map(|key| key.cgroup_id)).collect();
        self.steered.retain(|id, _| counted.contains(id));
        for id in counted {
            let Some(path) = self.hierarchy.path_of(id) else { continue };
            if let Some(steered) = path.self_and_ancestors().iter().find_map(|path| cgroups.get(path)) {
                self.steered.insert(id, *steered);
            }
        }
        let indexes: BTreeSet<u32> = traffic.keys().map(|key| key.ifindex).collect();
        let name = |index: u32| Some((index, link::name_of(i32::try_from(index).ok()?)?));
        Ok(Sample {
            time: Timestamp::now(),
            at: Instant::now(),
            netns_cookie: self.netns_cookie,
            links: indexes.into_iter().filter_map(name).collect(),
            steered: self.steered.clone(),
            status,
            uplinks: uplinks::read(&self.pins, &[])?,
            sockets,
            traffic,
        })
    }
}

/// The steered cgroups that exist, with their ids.
fn cgroups(status: &Status) -> BTreeMap<CgroupPath, u64> {
    let all = status.policies.iter().flat_map(|policy| &policy.cgroups);
    all.filter_map(|cgroup| Some((cgroup.path.clone()?, cgroup.id))).collect()
}

/// The cgroups that are in no other one of these.
fn outermost(cgroups: &BTreeMap<CgroupPath, u64>) -> impl Iterator<Item = &CgroupPath> {
    cgroups.keys().filter(|path| !path.ancestors().iter().any(|outer| cgroups.contains_key(outer)))
}

#[cfg(test)]
mod tests {
    use super::outermost;

    #[test]
    fn only_the_outermost_is_counted() {
        let cgroups = ["/a", "/a/b/c", "/ab", "/b/c"].map(|path| (path.parse().expect("a path"), 1)).into();
        let found: Vec<_> = outermost(&cgroups).map(ToString::to_string).collect();
        assert_eq!(found, ["/a", "/ab", "/b/c"]);
    }
}
