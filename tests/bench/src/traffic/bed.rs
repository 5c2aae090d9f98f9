//! The bed of this measurement: for each way a lab with two uplinks to a server, a cgroup, and a worker in it.
//!
//! **Invariant:** ways share only the CPU, so that the rules of one way are no load on another. An alternative that
//! this machine does not support is left out with the reason; a way of steer that does not work fails the benchmark.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
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

/// The options with which a policy routes by a mark.
const LOCAL: [&str; 2] = ["--local", "host"];

/// A way that this machine does not support.
#[derive(Debug, Serialize)]
pub(super) struct Unavailable {
    pub(super) way: &'static str,
    pub(super) reason: String,
}

/// Fields are dropped in their order, so each field is declared before the fields that it needs.
pub(super) struct Bed {
    clients: BTreeMap<Way, Client>,
    unavailable: Vec<Unavailable>,
    links: Vec<OwnedFd>,
    steering: Steering,
    cgroups: Cgroups,
}

/// The namespaces and the cgroup of the program under test.
struct Site {
    way: Way,
    cgroup: PathBuf,
    uplinks: Uplinks,
    /// Its network namespace, if it is not the one with the uplinks.
    inner: Option<Netns>,
}

/// A site and its worker process.
struct Client {
    worker: Worker,
    site: Site,
}

impl Bed {
    pub(super) fn new(steer: &Path) -> Result<Self> {
        let mut bed = Self {
            clients: BTreeMap::new(),
            unavailable: Vec::new(),
            links: Vec::new(),
            steering: Steering::new(steer),
            cgroups: Cgroups::new()?,
        };
        for way in Way::all() {
            match bed.client(way) {
                Ok(client) => drop(bed.clients.insert(way, client)),
                Err(error) if way.is_foreign() => {
                    bed.unavailable.push(Unavailable { way: way.name(), reason: format!("{error:#}") });
                }
                Err(error) => return Err(error.context(format!("prepare {:?}", way.name()))),
            }
        }
        Ok(bed)
    }

    /// The ways that can be measured.
    pub(super) fn ways(&self) -> Vec<Way> {
        self.clients.keys().copied().collect()
    }

    /// The ways that cannot be measured. The bed is removed.
    pub(super) fn into_unavailable(self) -> Vec<Unavailable> {
        self.unavailable
    }

    /// Runs one turn in the worker of a way. Returns packets, bits or connections per second.
    pub(super) fn measure(&mut self, way: Way, load: Load) -> Result<f64> {
        self.clients.get_mut(&way).context("the way cannot be measured")?.measure(load)
    }

    /// Replaces the worker processes for the remaining rounds. The memory layout of a process and its sockets makes it
    /// faster or slower than another by some percent.
    pub(super) fn renew_workers(&mut self) -> Result<()> {
        self.clients.values_mut().try_for_each(|client| {
            client.worker = client.site.start()?;
            Ok(())
        })
    }

    /// Sets up a way, and tries it with every load.
    fn client(&mut self, way: Way) -> Result<Client> {
        let site = self.site(way)?;
        let mut client = Client { worker: site.start()?, site };
        Load::all().try_for_each(|load| client.measure(load).map(drop))?;
        Ok(client)
    }

    fn site(&mut self, way: Way) -> Result<Site> {
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
            Way::Steer => self.attach(&uplinks, &cgroup, "steer", &[])?,
            Way::Strict => self.attach(&uplinks, &cgroup, "strict", &[])?,
            Way::Account => self.attach(&uplinks, &cgroup, "strict", &["--account", "true"])?,
            Way::Route => self.attach(&uplinks, &cgroup, "strict", &LOCAL)?,
            Way::BesideBind | Way::BesideRoute | Way::BesideRoutes => self.attach_others(way, &uplinks)?,
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
        Ok(Site { way, cgroup, uplinks, inner })
    }
}

impl Bed {
    fn attach(&self, uplinks: &Uplinks, cgroup: &Path, enforce: &str, more: &[&str]) -> Result<()> {
        uplinks.client.run(|| self.steering.attach(cgroup, uplinks.link(1), enforce, more))?
    }

    /// Attaches cgroups without a program in them, each with a policy of its own.
    fn attach_others(&mut self, way: Way, uplinks: &Uplinks) -> Result<()> {
        let number = if way == Way::BesideRoutes { Way::MANY } else { 1 };
        for i in 0..number {
            let cgroup = self.cgroups.add(&format!("{}-other-{i}", way.cgroup()))?;
            let except = format!("203.0.113.{i}/32=a0");
            let more = [LOCAL[0], LOCAL[1], "--except", &except];
            self.attach(uplinks, &cgroup, "strict", if way == Way::BesideBind { &[] } else { &more })?;
        }
        Ok(())
    }
}

impl Site {
    fn start(&self) -> Result<Worker> {
        let Uplinks { client, server, .. } = &self.uplinks;
        let [own, client, server] = [self.inner.as_ref().unwrap_or(client), client, server].map(path);
        Worker::start(self.way.name(), &["traffic", &own, &client, &server], &self.cgroup, worker::cpu()?)
    }
}

impl Client {
    fn measure(&mut self, load: Load) -> Result<f64> {
        let Answer { elapsed, bytes } = self.worker.ask(&load)?;
        let way = self.site.way;
        let uplink = way.uplink();
        let (used, unused) = (bytes[uplink], bytes[1 - uplink]);
        // The kernel sends neighbour lookups on both links from time to time.
        ensure!(
            used >= load.least_bytes() && unused <= used / 10,
            "worker {:?}: of {}, uplink {uplink} sent {used} bytes, and the other one {unused}",
            way.name(),
            load.name(),
        );
        Ok(f64::from(load.units()) / elapsed.as_secs_f64())
    }
}

/// The path of a namespace of this process, for other processes.
fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", process::id(), netns.fd().as_raw_fd())
}

/// Prepares a namespace for a measurement. `host` distinguishes the ends of its links.
fn prepare(netns: &Netns, links: &[&str], host: u16) -> Result<()> {
    // The machine's default may wait for timers; this one is always available.
    netns.write_sysctl("net/ipv4/tcp_congestion_control", "reno")?;
    // A way that does not work is detected after some seconds.
    netns.write_sysctl("net/ipv4/tcp_syn_retries", "1")?;
    for link in links {
        // Without a link-local address, IPv6 forgets its neighbours: it has no source address to probe them.
        netns.add_address(link, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host).into(), 64)?;
    }
    Ok(())
}
