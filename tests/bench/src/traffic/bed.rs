//! The bed of this measurement: for each way a lab with two uplinks to a server, a cgroup, and a worker in it.
//!
//! **Invariant:** ways share nothing but the CPU, so that no way's rules are a load on another. A way of others that this
//! machine cannot do is left out, with the reason; one of ours fails the benchmark.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use steer_lab::{Netns, Uplinks};

use super::{foreign, load::Load, way::Way, worker::Answer};
use crate::{
    bpf::{self, Hook},
    cgroups::Cgroups,
    steering::Steering,
    worker::{self, Worker},
};

/// A way that this machine cannot do.
#[derive(Debug, Serialize)]
pub(super) struct Unavailable {
    pub(super) way: &'static str,
    pub(super) reason: String,
}

/// Fields are dropped in their order, so each stands before what it needs.
pub(super) struct Bed {
    workers: BTreeMap<Way, Worker>,
    unavailable: Vec<Unavailable>,
    labs: Vec<Uplinks>,
    links: Vec<OwnedFd>,
    steering: Steering,
    cgroups: Cgroups,
}

impl Bed {
    pub(super) fn new(steer: &Path) -> Result<Self> {
        let mut bed = Self {
            workers: BTreeMap::new(),
            unavailable: Vec::new(),
            labs: Vec::new(),
            links: Vec::new(),
            steering: Steering::new(steer),
            cgroups: Cgroups::new()?,
        };
        for way in Way::ALL {
            let tried = bed.open(way).with_context(|| format!("send by way of {:?}", way.name()));
            match tried {
                Ok(()) => {}
                Err(error) if way.is_foreign() => {
                    bed.workers.remove(&way);
                    bed.unavailable.push(Unavailable { way: way.name(), reason: format!("{error:#}") });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bed)
    }

    /// The ways that can be measured.
    pub(super) fn ways(&self) -> Vec<Way> {
        self.workers.keys().copied().collect()
    }

    /// The others; the bed is removed.
    pub(super) fn into_unavailable(self) -> Vec<Unavailable> {
        self.unavailable
    }

    /// Has the worker of a way do one turn; returns packets, bits or connections per second.
    pub(super) fn measure(&mut self, way: Way, load: Load) -> Result<f64> {
        let worker = self.workers.get_mut(&way).context("the way has no worker")?;
        let Answer { elapsed, bytes } = worker.ask(&load)?;
        let (used, unused) = (bytes[way.uplink()], bytes[1 - way.uplink()]);
        // Neighbours are looked for on either link now and then.
        ensure!(
            used >= load.least_bytes() && unused <= used / 10,
            "worker {:?}: of {}, uplink {} sent {used} bytes, and the other one {unused}",
            way.name(),
            load.name(),
            way.uplink(),
        );
        Ok(f64::from(load.units()) / elapsed.as_secs_f64())
    }

    /// Makes what a way needs, and tries it with every load.
    fn open(&mut self, way: Way) -> Result<()> {
        let uplinks = Uplinks::new()?;
        prepare(&uplinks.client, &["a0", "a1"], 2)?;
        prepare(&uplinks.server, &["b0", "b1"], 1)?;
        let cgroup = self.cgroups.add(way.cgroup())?;
        let mut inner = None;
        match way {
            Way::Unsteered | Way::Control => {}
            Way::Empty => {
                let hooks = [Hook::SOCK_CREATE, Hook::EGRESS].into_iter().chain(Hook::CONNECT).chain(Hook::SENDMSG);
                for hook in hooks {
                    let program = bpf::load(hook, &bpf::EMPTY).context("load an empty program")?;
                    self.links.push(bpf::attach(hook, &program, &cgroup).context("attach an empty program")?);
                }
            }
            Way::Steer | Way::Strict => {
                let attach = || self.steering.attach(&cgroup, uplinks.link(1), way.name());
                uplinks.client.run(attach)??;
            }
            Way::Mark => foreign::mark(&uplinks, &cgroup)?,
            Way::MarkMasquerade => {
                foreign::mark(&uplinks, &cgroup)?;
                foreign::masquerade(&uplinks)?;
            }
            Way::Namespace => {
                let netns = foreign::namespace(&uplinks)?;
                prepare(&uplinks.client, &["outer"], 1)?;
                prepare(&netns, &["inner"], 2)?;
                inner = Some(netns);
            }
        }
        let own = inner.as_ref().unwrap_or(&uplinks.client);
        let [own, client, server] = [own, &uplinks.client, &uplinks.server].map(path);
        let command = ["traffic", &own, &client, &server];
        self.workers.insert(way, Worker::start(way.name(), &command, &cgroup, worker::cpu()?)?);
        // The worker is in all of them once it has answered. The uplinks' own is held by nobody else in one case.
        Load::all().try_for_each(|load| self.measure(way, load).map(drop))?;
        self.labs.push(uplinks);
        Ok(())
    }
}

/// A namespace of ours, as another process finds it.
fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", process::id(), netns.fd().as_raw_fd())
}

/// Readies a namespace for a measurement: `host` tells the ends of its links apart.
fn prepare(netns: &Netns, links: &[&str], host: u16) -> Result<()> {
    // The machine's own choice may be one that waits for timers; this one is always there.
    netns.write_sysctl("net/ipv4/tcp_congestion_control", "reno")?;
    // Streams go on at their speed after the turns of others.
    netns.write_sysctl("net/ipv4/tcp_slow_start_after_idle", "0")?;
    for link in links {
        // Without a link-local address, IPv6 forgets its neighbours: it has no address to ask from whether they are there.
        netns.add_address(link, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host).into(), 64)?;
    }
    Ok(())
}
