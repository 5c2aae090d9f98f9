//! The real thing beside the reference: namespaces, links, cgroups with processes in them, the daemon.
//!
//! **Invariant:** it does what an operation says and nothing else; what came of it is told by [`compare`], from captures.

mod compare;
mod daemon;
mod health;
pub(crate) use compare::Settles;
mod tools;
mod traffic;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use steer_lab::{
    Capture, Family, Netns, SERVER_V4, SERVER_V6, Uplinks, client_v4, client_v6,
    prober::{self, Request, Sent, Way},
    wait_until,
};
use steer_tests::{Bed, Cgroup, Daemon, Outcome, Output, PATIENCE, Prober, User};

use super::reference::{Asked, LINES, Line, REMOVED, Reference, SCOPE, SPACES, Space, policy::real};
use traffic::Ports;

/// The loopback interface is the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Nothing listens there, and no attempt uses it.
const WARM_UP_PORT: u16 = 9;

/// A cgroup and the processes in it. Dropped, they are ended first.
struct Place {
    probers: BTreeMap<Space, Prober>,
    /// Not that of a `steer exec`, which is removed by others.
    cgroup: Option<Cgroup>,
}

/// The real thing.
pub(crate) struct World {
    places: BTreeMap<String, Place>,
    /// Processes that keep sockets of cgroups that are gone.
    elsewhere: BTreeMap<(String, Space), Prober>,
    daemon: Option<Daemon>,
    captures: BTreeMap<Space, Capture>,
    lines: BTreeMap<(Space, u32), Line>,
    ports: Ports,
    /// The other ends of accepted connections.
    callers: Vec<TcpStream>,
    /// How long both may take to agree.
    patience: Duration,
    pub(crate) bed: Bed,
    there: Uplinks,
    /// The rules of each namespace before steer.
    first_rules: BTreeMap<Space, Vec<String>>,
    /// A process that stays in the other namespace, without which nobody could find it.
    _resident: Resident,
}

/// A process that is ended when dropped.
struct Resident(Child);

impl Resident {
    fn start(netns: &Netns) -> anyhow::Result<Self> {
        Ok(Self(netns.enter(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null())).spawn()?))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// A daemon with these files, and three links in each namespace.
    pub(crate) fn new(reference: &Reference, patience: Duration) -> anyhow::Result<Self> {
        let bed = Bed::with_links("model", LINES)?;
        let mut there = Uplinks::with(LINES)?;
        // Other indexes there than here, but for one that is the same.
        there.remove_uplink(1)?;
        there.create_uplink(1)?;
        let mut captures = BTreeMap::new();
        captures.insert(Space::Here, Capture::start_except(&bed.net.client, &[])?);
        captures.insert(Space::There, Capture::start_except(&there.client, &[])?);
        let ports = Ports::except(bed.server.port());
        let mut world = Self {
            places: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            daemon: None,
            captures,
            lines: BTreeMap::new(),
            ports,
            callers: Vec::new(),
            patience,
            bed,
            first_rules: BTreeMap::new(),
            _resident: Resident::start(&there.client)?,
            there,
        };
        for space in SPACES {
            let rules = world.rules(space)?;
            world.first_rules.insert(space, rules);
            world.lines.insert((space, LOOPBACK_INDEX), Line::loopback(space));
            for number in 0..LINES {
                world.know_line(reference, space, number)?;
            }
        }
        for space in SPACES {
            // An ended process leaves no connection for long. Kernels before 6.4 do not have it.
            let _ = world.netns(space).write_sysctl("net/mptcp/close_timeout", "1");
        }
        world.write_files(&reference.files)?;
        world.start_daemon()?;
        Ok(world)
    }

    pub(crate) fn net(&mut self, space: Space) -> &mut Uplinks {
        match space {
            Space::Here => &mut self.bed.net,
            Space::There => &mut self.there,
        }
    }

    fn netns(&self, space: Space) -> &Netns {
        match space {
            Space::Here => &self.bed.net.client,
            Space::There => &self.there.client,
        }
    }

    /// The binary under test in a namespace, to its end. What it complained of, if it failed.
    pub(crate) fn steer(&self, space: Space, arguments: &[String]) -> anyhow::Result<Result<(), String>> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.bed.steer(&arguments);
        self.netns(space).enter(&mut command);
        Ok(said(&steer_tests::output(&mut command)?))
    }

    /// The path of a cgroup of the tree, from the root of the hierarchy.
    pub(crate) fn path(&self, place: &str) -> String {
        format!("{}{}", self.bed.cgroup.path(), real(place))
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        Ok(self.bed.client(None, User::Root)?.get_program().into())
    }

    /// Makes a cgroup, with a process in each namespace.
    pub(crate) fn make(&mut self, place: &str) -> Outcome {
        let cgroup = self.bed.cgroup.child(&real(place)[1..])?;
        let program = self.program()?;
        let mut probers = BTreeMap::new();
        for space in SPACES {
            let mut command = Command::new(&program);
            cgroup.enter(self.netns(space).enter(&mut command));
            probers.insert(space, Prober::start(&mut command)?);
        }
        self.places.insert(place.to_owned(), Place { probers, cgroup: Some(cgroup) });
        Ok(())
    }

    /// Runs a client by `steer exec` in a cgroup and namespace. The error is what steer says.
    pub(crate) fn execute(
        &mut self,
        place: &str,
        space: Space,
        options: &[String],
    ) -> anyhow::Result<Result<(), String>> {
        let cgroup = self.places[place].cgroup.as_ref().context("no cgroup")?;
        let mut command = self.bed.steer(&["exec"]);
        command.args(options).arg("--").arg(self.program()?);
        cgroup.enter(self.netns(space).enter(&mut command));
        match Prober::start(&mut command) {
            Ok(prober) => {
                let probers = [(space, prober)].into();
                self.places.insert(format!("{place}/{SCOPE}"), Place { probers, cgroup: None });
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(format!("{error:#}"))),
        }
    }

    /// The process of a cgroup in a namespace.
    pub(crate) fn pid(&self, place: &str, space: Space) -> Option<u32> {
        self.places.get(place)?.probers.get(&space).map(Prober::pid)
    }

    /// Ends what runs in a cgroup that has none below it, and removes it. Where sockets are kept, their processes move elsewhere.
    pub(crate) fn remove(&mut self, place: &str, keeps: Option<usize>) -> Outcome {
        let Place { probers, cgroup } = self.places.remove(place).context("no such cgroup")?;
        for (space, prober) in probers {
            match keeps {
                Some(number) => {
                    fs::write(self.bed.cgroup.directory().join("cgroup.procs"), prober.pid().to_string())?;
                    self.elsewhere.insert((format!("{REMOVED}{number}"), space), prober);
                }
                None => prober.end()?,
            }
        }
        let Some(cgroup) = cgroup else {
            // The keeper removes it.
            let outer = place.rsplit_once('/').and_then(|(outer, _)| self.places.get(outer)?.cgroup.as_ref());
            let outer = outer.context("no cgroup around it")?;
            wait_until("the cgroup of steer exec to be removed", PATIENCE, || {
                !outer.children().iter().any(|child| child.starts_with(SCOPE))
            })?;
            return Ok(());
        };
        let directory = cgroup.directory().to_owned();
        wait_until(&format!("{place} to be removed"), PATIENCE, || fs::remove_dir(&directory).is_ok())?;
        Ok(())
    }

    /// Lets the processes of a cgroup keep sockets.
    pub(crate) fn keep_sockets(&mut self, place: &str) -> Outcome {
        for prober in self.places.get_mut(place).context("no such cgroup")?.probers.values_mut() {
            prober.ask(Request::Keep)?;
            prober.answer()?;
        }
        Ok(())
    }

    /// Lets the processes of a cgroup in a namespace listen, and calls each of them by a link. The way back is the default route unless
    /// something steers it.
    pub(crate) fn call(&mut self, place: &str, space: Space, number: u8) -> Outcome {
        let prober = self.places.get_mut(place).and_then(|it| it.probers.get_mut(&space)).context("no process")?;
        prober.ask(Request::Listen)?;
        for listening in prober.answer()? {
            let (from, to): (IpAddr, IpAddr) = match listening.family {
                Family::V4 => (SERVER_V4.into(), client_v4(number).into()),
                Family::V6 => (SERVER_V6.into(), client_v6(number).into()),
            };
            let port = self.ports.take_caller();
            let asked = Asked { place: place.to_owned(), space, way: Way::Accepted, family: listening.family };
            let to = SocketAddr::new(to, listening.source);
            self.ports.made(asked, Sent { port, ..listening });
            let called = self.net(space).server.run(|| prober::call(SocketAddr::new(from, port), to))?;
            self.callers.push(called.with_context(|| format!("call {place} {space:?} by link {number}"))?);
        }
        Ok(())
    }

    /// Ends everything. What was made for cgroups goes with them, and `off` leaves nothing.
    pub(crate) fn finish(mut self, reference: &Reference) -> Outcome {
        for place in reference.places.keys().rev() {
            self.remove(place, None)?;
        }
        drop(std::mem::take(&mut self.elsewhere));
        let stopped = serde_json::json!({"ociVersion": "1.0.2", "id": "model", "status": "stopped", "bundle": "/"});
        let (mut left, daemon_runs) = (String::new(), self.daemon.is_some());
        // As long as the kernel keeps connections of ended processes, which takes longer on a loaded machine.
        let cleaned_up = wait_until("the attachments of removed cgroups to go", 4 * PATIENCE, || {
            // The daemon sees cgroups go. Without a daemon, the next command or hook cleans up.
            let hook = if daemon_runs { Ok(Ok(())) } else { self.hook(&stopped) };
            let links = fs::read_dir(self.bed.abi().join("links")).map_or(0, Iterator::count);
            let status = self.bed.status().unwrap_or_default();
            let policies = status["policies"].as_array().into_iter().flatten();
            let manual = policies.filter(|policy| policy["origin"] == "manual").count();
            left = format!("{hook:?}, {links} cgroups, {manual} policies");
            matches!(hook, Ok(Ok(()))) && links == 0 && manual == 0
        });
        cleaned_up.with_context(|| format!("{left}; {}", self.connections().join("; ")))?;
        // Nothing of the configuration is for the other namespace.
        let mut left = Vec::new();
        let removed = wait_until("rules and routes to go with their policies", PATIENCE, || {
            left = self.left(Space::There).unwrap_or_else(|error| vec![format!("{error:#}")]);
            left.is_empty()
        });
        removed.with_context(|| left.join("; "))?;
        self.off()?;
        ensure!(!self.bed.pins.exists(), "off left something");
        Ok(())
    }

    /// The TCP sockets of both namespaces, as in /proc/net/tcp.
    fn connections(&self) -> Vec<String> {
        let read = |space| {
            let tables = self.netns(space).run(|| {
                let read = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
                ["tcp", "tcp6"].map(read).concat()
            });
            tables.unwrap_or_default().lines().map(|line| format!("{space:?} {line}")).collect::<Vec<_>>()
        };
        SPACES.into_iter().flat_map(read).collect()
    }

    /// Takes note of a link that is there, and uses it once, so that its neighbour is known.
    pub(crate) fn know_line(&mut self, reference: &Reference, space: Space, number: u8) -> Outcome {
        let index = self.net(space).ifindex(number)?;
        let link = self.net(space).link(number).to_owned();
        self.lines.insert((space, index), reference.lines[&(space, number)].0);
        self.warm_up(space, &link, &[SERVER_V4.into(), SERVER_V6.into()])
    }

    /// Sends to each address by a link, until a packet to each has left, so that the neighbours are known. A kernel that finds no
    /// neighbour drops the packet after three seconds.
    fn warm_up(&mut self, space: Space, link: &str, to: &[IpAddr]) -> Outcome {
        const AGAIN: Duration = Duration::from_secs(1);
        let index = self.netns(space).ifindex(link)?;
        let send = |to: IpAddr| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = std::net::UdpSocket::bind((any, 0))?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &link.to_owned().into())?;
            socket.send_to(b"warm up", SocketAddr::new(to, WARM_UP_PORT)).map(drop)
        };
        let mut missing = to.to_vec();
        let mut due = Instant::now();
        let mut failed = None;
        wait_until("a link to be usable", PATIENCE, || {
            if due <= Instant::now() {
                due += AGAIN;
                let result = self.netns(space).run(|| missing.iter().copied().try_for_each(send));
                failed = result.map_err(anyhow::Error::from).and_then(|done| Ok(done?)).err();
            }
            let packets = self.captures.get_mut(&space).and_then(|capture| capture.take().ok()).unwrap_or_default();
            let left = packets.iter().filter(|it| it.ifindex == index && it.dst_port == Some(WARM_UP_PORT));
            let left: Vec<_> = left.filter_map(|it| it.dst).collect();
            missing.retain(|address| !left.contains(address));
            missing.is_empty()
        })
        .with_context(|| format!("{link}: {missing:?}: {failed:?}"))?;
        Ok(())
    }
}

/// What a command said that failed.
fn said(output: &Output) -> Result<(), String> {
    if output.code == 0 { Ok(()) } else { Err(output.stderr.trim().to_owned()) }
}
