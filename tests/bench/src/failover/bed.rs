//! The lab of the failover measurements: two lines, a server behind both, a daemon with a group of the two, and clients
//! in a cgroup of the group.
//!
//! **Invariant:** a member fails only for the lab: in its network namespaces. The clients are a process of their own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData};
use steer_common::{ABI_VERSION, UPLINK_SLOTS, UplinkRecord, map};
use steer_lab::{Clients, ClientsReport, SERVER_V4, Server, Uplinks, client_v4, clients, wait_until};

use crate::{cgroups::Cgroups, daemon::Daemon, interrupt, steering::Steering, worker, worker::Worker};

/// Longer than any change takes to be in force.
const PATIENCE: Duration = Duration::from_secs(15);
/// The kernel reports losses of carriers at most once a second, those of all links and network namespaces together. So
/// other programs that change links make the measured times longer. The two ends of a link are two reports.
const CARRIER_REPORTS: Duration = Duration::from_millis(2200);
/// The time between two looks whether the first member has returned.
const LOOK: Duration = Duration::from_millis(50);

/// The main function of a process of clients.
pub(crate) fn serve(place: &worker::Place) -> Result<()> {
    worker::serve(|| {
        place.join_cgroup()?;
        Ok(|clients: Clients| Ok(clients.run()?))
    })
}

/// How the preferred member fails.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    /// The server drops what it would answer, and the link goes on.
    BlackHole,
    /// The link has no carrier.
    Carrier,
}

/// Removed on drop.
pub(super) struct Bed {
    // In the order in which they are dropped.
    daemon: Option<Daemon>,
    clients: Option<Worker>,
    sharing: Option<Worker>,
    steering: Steering,
    pub(super) cgroups: Cgroups,
    directory: PathBuf,
    pub(super) lab: Uplinks,
    server: Server,
    /// When a link was changed.
    changed: Instant,
}

impl Bed {
    pub(super) fn new(steer: &Path) -> Result<Self> {
        let lab = Uplinks::new()?;
        // Its addresses outlive the loss of the carrier.
        lab.server.write_sysctl("net/ipv6/conf/b1/keep_addr_on_down", "1")?;
        let server = Server::start(&lab.server)?;
        let steering = Steering::new(steer);
        let name = steering.pins().file_name().and_then(|name| name.to_str()).context("the pins have no name")?;
        let directory = std::env::temp_dir().join(format!("{name}-failover"));
        let cgroups = Cgroups::new()?;
        fs::create_dir(&directory)?;
        Ok(Self {
            daemon: None,
            clients: None,
            sharing: None,
            steering,
            cgroups,
            directory,
            lab,
            server,
            changed: Instant::now(),
        })
    }

    /// Starts a daemon with three policies: for the cgroups in `p`, a group whose first member is a1; for the cgroup
    /// `shared`, a group that shares sockets 3:1; for the cgroup `one`, a1. The one before ends, and everything of it.
    pub(super) fn start(&mut self, settings: &str) -> Result<()> {
        let (place, shared) = (self.cgroups.add("p/first")?, self.cgroups.add("shared")?);
        if self.daemon.take().is_some() {
            self.steering.off()?;
        }
        let name = self.cgroups.base().file_name().and_then(|name| name.to_str()).context("the cgroup has no name")?;
        fs::write(
            self.directory.join("steer.toml"),
            format!(
                "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", {{ interface = \"a0\", tier = 2 }}]\n\
                 hold = \"0s\"\n{settings}\n\
                 [[uplink]]\nname = \"shared\"\nmembers = [{{ interface = \"a0\", weight = 3 }}, \"a1\"]\n\
                 balance = \"socket\"\n\
                 [[policy]]\nname = \"shared\"\nuplink = \"shared\"\ncgroups = [\"/{name}/shared\"]\n\
                 [[policy]]\nname = \"group\"\nuplink = \"lines\"\ncgroups = [\"/{name}/p/*\"]\n\
                 [[policy]]\nname = \"one\"\ninterface = \"a1\"\ncgroups = [\"/{name}/one\"]\n"
            ),
        )?;
        let (steer, pins) = (self.steering.steer(), self.steering.pins());
        self.daemon = Some(Daemon::start(steer, pins, &self.directory, Some(&self.lab.client))?.0);
        if self.clients.is_none() {
            let start =
                |place: &Path| self.lab.client.run(|| Worker::start("clients", &["clients"], place, worker::cpu()?))?;
            (self.clients, self.sharing) = (Some(start(&place)?), Some(start(&shared)?));
        }
        Ok(())
    }

    pub(super) fn steering(&self) -> &Steering {
        &self.steering
    }

    pub(super) fn target(&self) -> SocketAddr {
        SocketAddr::new(SERVER_V4.into(), self.server.port())
    }

    /// Runs clients whose sockets are shared. They end by themselves.
    pub(super) fn share(&mut self, clients: Clients) -> Result<ClientsReport> {
        self.sharing.as_mut().context("there are no clients")?.ask(&clients)
    }

    /// Waits until new connections are made by a1.
    fn wait_for_return(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            interrupt::check()?;
            let once = Clients::once(self.target());
            let report: ClientsReport = self.clients.as_mut().context("there are no clients")?.ask(&once)?;
            if report.connected.contains_key(&client_v4(1).into()) {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
        bail!("the first member did not return")
    }

    /// Runs `count` clients while a1 fails `delay` after their first connections, and repairs it. Returns the time from the
    /// failure to the first connection by the other member, and the report.
    pub(super) fn failover(
        &mut self,
        failure: Failure,
        count: u32,
        delay: Duration,
        after: Duration,
    ) -> Result<(Duration, Duration, ClientsReport)> {
        self.wait_for_return()?;
        if matches!(failure, Failure::Carrier) {
            thread::sleep(CARRIER_REPORTS.saturating_sub(self.changed.elapsed()));
        }
        let interval = Duration::from_millis(10);
        let patience = PATIENCE;
        let clients = Clients { target: self.target(), count, interval, kept: 1, addresses: 2, after, patience };
        let (lab, server) = (&self.lab, &self.server);
        server.take_seen();
        let worker = self.clients.as_mut().context("there are no clients")?;
        let (failed, report) = thread::scope(|scope| {
            let running = scope.spawn(move || worker.ask::<ClientsReport>(&clients));
            // The kept connection, and one more.
            let came = wait_until("the first connections", PATIENCE, || server.seen().len() > 1);
            thread::sleep(delay);
            let failed = clients::now();
            let result = came.map_err(Into::into).and_then(|()| fail(lab, failure, true));
            let report = running.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            result?;
            anyhow::Ok((failed, report?))
        })?;
        fail(lab, failure, false)?;
        self.changed = Instant::now();
        let elapsed = |at: Duration, what: &str| {
            at.checked_sub(failed).with_context(|| format!("{what} before the first member failed: {report:?}"))
        };
        let first = elapsed(report.first_from(client_v4(0).into())?, "a connection by the other member")?;
        let (ended, _) = report.ended.last().context("the kept connection has not ended")?;
        Ok((first, elapsed(*ended, "the kept connection ended")?, report))
    }

    /// The groups that are in force.
    pub(super) fn groups(&self) -> Result<Vec<UplinkRecord>> {
        let pin = self.steering.pins().join(format!("abi{ABI_VERSION}/maps/{}", map::UPLINKS));
        let groups = Array::<_, UplinkRecord>::try_from(Map::Array(MapData::from_pin(pin)?))?;
        let groups: Vec<_> = (0..UPLINK_SLOTS).map(|slot| groups.get(&slot, 0)).collect::<Result<_, _>>()?;
        Ok(groups.into_iter().filter(|group| group.members > 0).collect())
    }

    /// How many cgroups are attached.
    pub(super) fn attached(&self) -> Result<usize> {
        let links = self.steering.pins().join(format!("abi{ABI_VERSION}/links"));
        Ok(fs::read_dir(&links).with_context(|| format!("list {}", links.display()))?.count())
    }
}

fn fail(lab: &Uplinks, failure: Failure, is_on: bool) -> Result<()> {
    let link = lab.server_link(1);
    match failure {
        Failure::BlackHole => lab.black_hole(1, is_on)?,
        Failure::Carrier if is_on => lab.server.set_down(&link)?,
        Failure::Carrier => lab.server.set_up(&link)?,
    }
    Ok(())
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("steer-bench: remove {}: {error}", self.directory.display());
        }
    }
}
