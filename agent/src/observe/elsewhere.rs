//! Processes of steered cgroups that are in other network namespaces, and the way of their traffic. A policy with
//! `other_netns = "leave"` does not steer them.
//!
//! **Invariant:** traffic whose way cannot be found counts as traffic that leaves.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    apply::resolve,
    host::{
        cgroup::Hierarchy,
        link::{
            self,
            network::{Kind, Network},
        },
        netns, tun,
    },
    kernel::{self, Datapath, PolicyEntry},
    model::{cgroup_path::CgroupPath, spec::OtherNetns},
};

/// Processes of a steered cgroup in one other network namespace. They are not steered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Elsewhere {
    /// How many processes.
    pub processes: usize,
    /// One of them.
    pub pid: u32,
    /// Inode of the network namespace, as shown by `ls -l /proc/PID/ns/net`.
    pub netns: u64,
    /// The way of their traffic.
    pub way: Way,
    /// Whether their traffic can leave this host without being steered.
    pub leaves: bool,
}

/// The way of the traffic of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Way {
    /// No link is up.
    None,
    /// Only through processes at the other ends of its devices, such as slirp4netns or pasta.
    Relay {
        /// The devices.
        interfaces: Vec<String>,
        /// The processes.
        pids: Vec<u32>,
        /// Whether all of them are steered.
        steered: bool,
    },
    /// By these links.
    Links {
        /// Their names.
        interfaces: Vec<String>,
        /// Whether all are pairs (veth), whose other ends decide about the rest of the way.
        pairs: bool,
    },
    /// It could not be found.
    Unknown {
        /// Why.
        problem: String,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(formatter, "nothing leaves, because no link is up there"),
            Self::Relay { interfaces, pids, steered } => {
                let pids: Vec<_> = pids.iter().map(|pid| format!("process {pid}")).collect();
                let pids = if pids.is_empty() { "an unknown process".to_owned() } else { pids.join(" and ") };
                let steered = if *steered { "steered" } else { "NOT steered" };
                write!(
                    formatter,
                    "their traffic leaves through {pids} at the other end of {}, which is {steered}",
                    interfaces.join(" and ")
                )
            }
            Self::Links { interfaces, pairs } => {
                let rest = if *pairs { ", and then by the routes at the other end" } else { "" };
                write!(formatter, "their traffic leaves by {} there{rest}", interfaces.join(" and "))
            }
            Self::Unknown { problem } => write!(formatter, "the way of their traffic is unknown: {problem}"),
        }
    }
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, pid, netns, way, .. } = self;
        let count = if *processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") };
        write!(formatter, "{count} ({pid}) in network namespace {netns} not steered: {way}")
    }
}

/// Finds such processes.
pub(crate) struct Finder<'a> {
    hierarchy: &'a Hierarchy,
    /// The policies of all attachments, by path.
    attached: BTreeMap<CgroupPath, PolicyEntry>,
    /// Of this process.
    own_netns: (u64, u64),
}

impl<'a> Finder<'a> {
    /// With all attachments in force.
    pub(crate) fn read(datapath: &Datapath, hierarchy: &'a Hierarchy) -> Result<Self, kernel::Error> {
        let policies: BTreeMap<_, _> = datapath.policies()?.into_iter().map(|entry| (entry.slot, entry)).collect();
        let attached = datapath.attachments()?.into_iter().filter_map(|attachment| {
            let policy = policies.get(&attachment.record.policy)?.clone();
            Some((hierarchy.path_of(attachment.cgroup_id)?, policy))
        });
        Self::new(hierarchy, attached)
    }

    /// With these attachments, each with its policy.
    pub(crate) fn new(
        hierarchy: &'a Hierarchy,
        attached: impl Iterator<Item = (CgroupPath, PolicyEntry)>,
    ) -> Result<Self, kernel::Error> {
        let inode = fs::metadata("/proc/thread-self/ns/net").map_or(0, |netns| netns.ino());
        Ok(Self { hierarchy, attached: attached.collect(), own_netns: (inode, kernel::netns_cookie()?) })
    }

    /// The processes in a cgroup and below it that the attachment which decides about the cgroup leaves alone.
    pub(crate) fn in_cgroup(&self, path: &CgroupPath) -> Vec<Elsewhere> {
        let Some((decider, policy)) = self.decider(path) else { return Vec::new() };
        if policy.exempts() || resolve::other_netns(policy.record.flags) == OtherNetns::Refuse {
            return Vec::new();
        }
        let mut by_netns: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let below = self.hierarchy.descendants(path).unwrap_or_default().into_iter().map(|found| found.path);
        let cgroups = std::iter::once(path.clone()).chain(below);
        for cgroup in cgroups.filter(|cgroup| self.decider(cgroup).is_some_and(|(found, _)| found == decider)) {
            for pid in self.hierarchy.members(&cgroup) {
                // A process that has ended has no namespace.
                if let Ok(inode) = inode(pid) {
                    by_netns.entry(inode).or_default().push(pid);
                }
            }
        }
        by_netns.into_iter().filter_map(|(netns, pids)| self.elsewhere(policy, netns, &pids)).collect()
    }

    /// The same for one process.
    pub(crate) fn process(&self, pid: u32) -> Option<Elsewhere> {
        let path = self.hierarchy.of_process(pid).ok()?;
        let (_, policy) = self.decider(&path)?;
        let leaves = !policy.exempts() && resolve::other_netns(policy.record.flags) == OtherNetns::Leave;
        self.elsewhere(policy, inode(pid).ok()?, &[pid]).filter(|_| leaves)
    }

    /// The attachment that decides about a cgroup.
    fn decider(&self, path: &CgroupPath) -> Option<(&CgroupPath, &PolicyEntry)> {
        path.self_and_ancestors().iter().find_map(|path| self.attached.get_key_value(path))
    }

    fn elsewhere(&self, policy: &PolicyEntry, netns: u64, pids: &[u32]) -> Option<Elsewhere> {
        let pid = *pids.first()?;
        if self.is_of(policy, pid, netns) {
            return None;
        }
        let way = self.way(pid, netns).unwrap_or_else(|problem| Way::Unknown { problem });
        let leaves = !matches!(way, Way::None | Way::Relay { steered: true, .. });
        Some(Elsewhere { processes: pids.len(), pid, netns, way, leaves })
    }

    fn way(&self, pid: u32, netns: u64) -> Result<Way, String> {
        let links = links(pid)?;
        let up: Vec<_> = links.into_iter().filter(|link| link.is_up && link.kind != Kind::Nothing).collect();
        let is = |kind| up.iter().all(|link| link.kind == kind);
        let interfaces = up.iter().map(|link| link.name.clone()).collect();
        if up.is_empty() {
            Ok(Way::None)
        } else if is(Kind::Process) {
            let pids = tun::holders(netns);
            let steered = !pids.is_empty() && pids.iter().all(|&pid| self.is_steered(pid));
            Ok(Way::Relay { interfaces, pids, steered })
        } else {
            Ok(Way::Links { interfaces, pairs: is(Kind::Pair) })
        }
    }

    /// Whether a process has a policy that steers in its network namespace.
    fn is_steered(&self, pid: u32) -> bool {
        let (Ok(path), Ok(netns)) = (self.hierarchy.of_process(pid), inode(pid)) else { return false };
        self.decider(&path).is_some_and(|(_, policy)| !policy.exempts() && self.is_of(policy, pid, netns))
    }

    /// Whether a policy is of the network namespace of a process.
    fn is_of(&self, policy: &PolicyEntry, pid: u32, netns: u64) -> bool {
        let (own, cookie) = self.own_netns;
        let wanted = policy.record.netns_cookie;
        if netns == own || cookie == wanted {
            return netns == own && cookie == wanted;
        }
        cookie_of(pid).is_ok_and(|found| found.is_none_or(|found| found == wanted))
    }
}

fn inode(pid: u32) -> io::Result<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|netns| netns.ino())
}

/// `None`: this kernel does not report it (before Linux 5.14).
fn cookie_of(pid: u32) -> io::Result<Option<u64>> {
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    netns::inside(&netns, netns::own_cookie)?.map_err(io::Error::other)
}

fn links(pid: u32) -> Result<Vec<link::network::Link>, String> {
    let read = || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(link::Error::Socket)?;
        runtime.block_on(async { Network::new()?.links().await })
    };
    let netns = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| error.to_string())?;
    netns::inside(&netns, read).map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
