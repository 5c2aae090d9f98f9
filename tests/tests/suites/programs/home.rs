//! A host at home: an uplink, a second line and a LAN, with a policy for one cgroup. Programs run in the cgroup, beside it,
//! at the neighbour on the LAN, and on the far host.
//!
//! ```text
//!                    host  a0  10.0.0.2     <->  far host 198.51.100.1: the second line, preferred by the routes
//!                          a1  10.0.1.2     <->  the same: the uplink
//!                          lan 192.168.7.1  <->  neighbour 192.168.7.2
//! ```
//!
//! **Invariant:** the captures are older than the programs. Only steered programs send to another host, so each packet
//! on a link of the host is theirs.

use std::{
    cell::Cell,
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Child,
};

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Kind, Netns, Packet, SERVER_V4, SERVER_V6, create_veth, leaks, wait_until};
use steer_tests::{Bed, Daemon, Debian, Outcome, Output, PATIENCE, Spy, User, output};

/// This host's link to the LAN.
pub(super) const LAN: &str = "lan";
/// The neighbour's link to it.
const NEIGHBOURS_LAN: &str = "home";
/// This host, on the LAN.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
/// The neighbour.
pub(super) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the host, in the policy.
    Steered,
    /// On the host, in no policy.
    Host,
    /// On the LAN.
    Neighbour,
    /// Behind the uplink, and behind the second line.
    Far,
}

/// A running program. On drop, it is killed with all that it started.
pub(super) struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// What it has printed.
    pub(super) fn printed(&self) -> String {
        let mut bytes = Vec::new();
        let _ = fs::File::open(&self.output).and_then(|mut file| file.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has printed a line with these words.
    pub(super) fn wait_for_line(&self, words: &[&str]) -> anyhow::Result<()> {
        let has_line = || self.printed().lines().any(|line| words.iter().all(|word| line.contains(word)));
        wait_until(&format!("a line with {words:?}"), PATIENCE, has_line).with_context(|| self.printed())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The packets that left, by which link.
#[derive(Debug)]
pub(super) struct Left {
    /// How many left to the far host.
    pub(super) uplink: usize,
    pub(super) lan: Vec<Packet>,
    pub(super) second_line: Vec<Packet>,
}

/// The host with its neighbours. Its fields end in this order: the captures, the daemon, then the bed.
pub(super) struct Home {
    started: Cell<u32>,
    /// How many sockets the policy had held before the programs.
    held_before: u64,
    spy: Spy,
    uplink: Capture,
    lan: Capture,
    neighbour: Netns,
    debian: Debian,
    _daemon: Daemon,
    bed: Bed,
}

impl Home {
    /// Makes one, whose policy is strict and has these other keys.
    pub(super) fn new(name: &str, keys: &str) -> anyhow::Result<Self> {
        let bed = Bed::new(name)?;
        let debian = Debian::of(&bed)?;
        fs::set_permissions(&debian.shared, fs::Permissions::from_mode(0o1777))?;
        let neighbour = Netns::new("neighbour")?;
        let host = &bed.net.client;
        create_veth(host, LAN, &neighbour, NEIGHBOURS_LAN)?;
        for (netns, link, v4, v6) in [(host, LAN, HOST, HOST_V6), (&neighbour, NEIGHBOURS_LAN, NEIGHBOUR, NEIGHBOUR_V6)]
        {
            netns.set_up(link)?;
            netns.add_address(link, v4.into(), 24)?;
            netns.add_address(link, v6.into(), 64)?;
        }
        host.wait_running(LAN)?;
        let policy = "[[policy]]\nname = \"home\"\ninterface = \"a1\"\nenforce = \"strict\"\ncgroups = [\"@\"]\n";
        let daemon = bed.daemon(&format!("{policy}{keys}\n"))?;
        // Without a policy, everything takes the second line.
        bed.check_unsteered(None)?;
        bed.check_steered(&bed.cgroup, 1)?;
        let held_before = bed.sockets("home", "bound")?;
        let spy = Spy::on(&bed, &["a1", LAN])?;
        let (uplink, lan) = (Capture::start(host, "a1")?, Capture::start(host, LAN)?);
        Ok(Self { started: Cell::new(0), held_before, spy, uplink, lan, neighbour, debian, _daemon: daemon, bed })
    }

    /// Writes a file that all programs see in `/shared`.
    pub(super) fn share(&self, name: &str, text: &str) -> Outcome {
        Ok(fs::write(self.debian.shared.join(name), text)?)
    }

    /// The content of a file in `/shared`; none before it exists.
    pub(super) fn shared(&self, name: &str) -> Vec<u8> {
        fs::read(self.debian.shared.join(name)).unwrap_or_default()
    }

    fn command(&self, place: Place, user: User, script: &str) -> std::process::Command {
        let netns = match place {
            Place::Steered | Place::Host => &self.bed.net.client,
            Place::Neighbour => &self.neighbour,
            Place::Far => &self.bed.net.server,
        };
        let cgroup = (place == Place::Steered).then_some(&self.bed.cgroup);
        self.debian.at(netns, cgroup, user, &["sh", "-c", script])
    }

    /// Starts a program by a shell script.
    pub(super) fn start(&self, place: Place, user: User, script: &str) -> anyhow::Result<Program> {
        self.started.set(self.started.get() + 1);
        let path = self.bed.directory.join(format!("output-{}", self.started.get()));
        let file = fs::File::create(&path)?;
        let mut command = self.command(place, user, script);
        let child = command.stdout(file.try_clone()?).stderr(file).spawn().context("start")?;
        Ok(Program { child, output: path })
    }

    /// Runs a script to its end.
    pub(super) fn run(&self, place: Place, user: User, script: &str) -> anyhow::Result<Output> {
        output(&mut self.command(place, user, script))
    }

    /// Runs a script, which must succeed, and returns its output.
    pub(super) fn succeed(&self, place: Place, user: User, script: &str) -> anyhow::Result<String> {
        let ran = self.run(place, user, script)?;
        ensure!(ran.code == 0, "{place:?}: {script}: {ran:?}");
        Ok(ran.stdout)
    }

    /// Runs a script of user nobody again until it succeeds and prints this.
    pub(super) fn wait_for(&self, place: Place, script: &str, text: &str) -> Outcome {
        let mut last = None;
        let waited = wait_until(&format!("{text:?} of {script} at {place:?}"), PATIENCE, || {
            let ran = self.run(place, User::Nobody, script);
            let is_there = ran.as_ref().is_ok_and(|ran| ran.code == 0 && ran.stdout.contains(text));
            last = Some(ran);
            is_there
        });
        waited.with_context(|| format!("{last:?}; {}", self.events()))
    }

    /// What the policy stopped.
    pub(super) fn events(&self) -> String {
        self.bed.succeed(&["events", "--once"]).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// How many sockets of programs the policy holds.
    pub(super) fn held(&self) -> anyhow::Result<u64> {
        Ok(self.bed.sockets("home", "bound")? - self.held_before)
    }

    /// The counters of what the policy stopped, without those that are 0.
    pub(super) fn stopped(&self) -> anyhow::Result<String> {
        let counters = self.bed.policy("home")?["counters"].clone();
        let counters = counters.as_object().context("no counters")?;
        let stopped = counters.iter().filter(|(name, count)| name.starts_with("stopped") && count.as_u64() != Some(0));
        let stopped: Vec<_> = stopped.map(|(name, count)| format!("`{name}` {count}")).collect();
        Ok(if stopped.is_empty() { "nothing".to_owned() } else { stopped.join(", ") })
    }

    /// The packets of programs that left since the last call. Those to the far host must have left by the uplink.
    pub(super) fn left(&mut self) -> anyhow::Result<Left> {
        let second_line = self.spy.take()?;
        let lan = self.lan.take()?;
        let lan: Vec<_> = leaks(&lan).into_iter().filter(|packet| !packet.is_kernel_answer()).cloned().collect();
        let is_far = |packet: &Packet| [Some(SERVER_V4.into()), Some(SERVER_V6.into())].contains(&packet.dst);
        for packet in second_line.iter().chain(&lan) {
            ensure!(!is_far(packet), "to the far host, by another link than the uplink: {packet:?}");
        }
        let uplink = leaks(&self.uplink.take()?).into_iter().filter(|packet| is_far(packet)).count();
        Ok(Left { uplink, lan, second_line })
    }

    /// Whether a packet on the LAN is to an address there, or looks for one.
    pub(super) fn is_to_lan(packet: &Packet) -> bool {
        matches!(packet.kind, Kind::Arp | Kind::Ndp)
            || packet.dst.is_some_and(|to| match to {
                IpAddr::V4(to) => to.octets()[..3] == HOST.octets()[..3],
                IpAddr::V6(to) => to.segments()[..4] == HOST_V6.segments()[..4],
            })
    }

    /// The version of a package.
    pub(super) fn version(&self, package: &str) -> anyhow::Result<String> {
        self.succeed(Place::Host, User::Nobody, &format!("dpkg-query -W -f '${{Version}}' {package}"))
    }
}
