//! A machine with network managers and other tools that write rules and routes, beside policies of the route method, under load.
//!
//! **Invariant:** the client's links, addresses and routes are those of the lab; a manager that takes them over writes the same ones.

mod talk;
mod traffic;
mod watch;

pub use talk::{Talk, Talks};
pub use traffic::{EXCEPTED, REFUSED, is_excepted, is_late_acknowledgement, is_leak};
pub use watch::{Behind, Repairs};

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use steer_lab::{Capture, Packet, SERVER_V4, SERVER_V6, Server, create_veth, wait_until};

use crate::{Bed, Cgroup, Machine, NotHere, PATIENCE};

/// The third link, to which no policy leads.
pub const THIRD: &str = "d0";
const THIRD_PEER: &str = "e0";

/// Two policies: `local` reaches this host and the LAN, `except` two addresses by another link,
/// and refuses two. `@mask` is the line of the mask.
const CONFIG: &str = r#"@mask
[[policy]]
name = "local"
interface = "a1"
local = ["host", "lan"]
cgroups = ["/local"]

[[policy]]
name = "except"
interface = "a1"
except = ["198.51.100.7=a0", "fd00:ffff::7=a0", "198.51.100.8=refuse", "fd00:ffff::8=refuse"]
cgroups = ["/except"]
"#;

/// A running bed. Parts are dropped in this order.
pub struct Beside {
    /// The steered cgroups, `local` and `except`.
    pub cgroups: [Cgroup; 2],
    /// Its systemd.
    pub machine: Machine,
    /// Answers in the client's namespace.
    pub here: Server,
    /// Answers unsteered flows at the uplinks' server.
    pub other: Server,
    /// Whether another program changes marks. Then packets to exceptions may leave by the uplink, and late acknowledgements anywhere.
    pub marks_change: bool,
    /// How many such acknowledgements left.
    pub late: usize,
    capture: Capture,
    uplink: Capture,
    /// The links and the server.
    pub bed: Bed,
}

impl Beside {
    /// Boots a machine from the root that `cargo xtask managers` has made. [`NotHere`] without one.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let bed = Bed::new(name)?;
        let (client, server) = (&bed.net.client, &bed.net.server);
        for address in EXCEPTED.into_iter().chain(REFUSED) {
            server.add_address("lo", address, if address.is_ipv4() { 32 } else { 128 })?;
        }
        create_veth(client, THIRD, server, THIRD_PEER)?;
        for (netns, link, host) in [(client, THIRD, 2), (server, THIRD_PEER, 1)] {
            netns.add_address(link, [10, 0, 7, host].into(), 24)?;
            netns.add_address(link, [0xfd00, 7, 0, 0, 0, 0, 0, u16::from(host)].into(), 64)?;
            netns.set_up(link)?;
        }
        let machine = Machine::boot_over(&bed, &root()?)?;
        let cgroups = [machine.cgroup("local")?, machine.cgroup("except")?];
        let capture = Capture::start_except(client, &["lo", "a1"])?;
        let uplink = Capture::start(client, "a1")?;
        let (here, other) = (Server::start(client)?, Server::start(server)?);
        Ok(Self { cgroups, machine, here, other, marks_change: false, late: 0, capture, uplink, bed })
    }

    /// Starts the daemon as a service. `mask`: the bits for marks.
    pub fn steer(&self, mask: Option<u32>) -> anyhow::Result<()> {
        let mask = mask.map_or_else(String::new, |mask| format!("[route]\nmark_mask = \"{mask:#010x}\"\n"));
        self.machine.install(&CONFIG.replace("@mask", &mask))
    }

    /// Starts a bus, and announces the links as a real machine does. Only rules for links are in force.
    pub fn announce_links(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.machine.path("/usr/lib/udev/rules.d"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !["75-net-description.rules", "80-net-setup-link.rules"].contains(&name.as_str()) {
                self.machine.write(&format!("/etc/udev/rules.d/{name}"), "")?;
            }
        }
        // It would change the addresses of links.
        self.machine.write(
            "/etc/systemd/network/99-default.link",
            "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=none\n",
        )?;
        self.machine.succeed(&["systemctl", "start", "systemd-udevd", "dbus"])?;
        self.machine.succeed(&["udevadm", "trigger", "--subsystem-match=net", "--action=add"])?;
        let data = self.machine.path("/run/udev/data");
        let links = ["a0", "a1", THIRD];
        let indexes = links.iter().map(|link| self.bed.net.client.ifindex(link)).collect::<Result<Vec<_>, _>>()?;
        wait_until("the links to be announced", PATIENCE, || {
            indexes.iter().all(|index| data.join(format!("n{index}")).exists())
        })?;
        Ok(())
    }

    /// Replaces a file of the machine's, so that no reader sees a part of it.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        self.machine.write(&format!("{file}.new"), text)?;
        Ok(fs::rename(self.machine.path(&format!("{file}.new")), self.machine.path(file))?)
    }

    /// Checks that no packet of a policy has left by a link that is not for it, the uplink included, since the last call. Returns how many packets left by
    /// these links.
    pub fn check_packets(&mut self) -> anyhow::Result<usize> {
        let packets = self.capture.take()?;
        let a0 = self.bed.net.ifindex(0)?;
        let mut leaked: Vec<&Packet> = packets.iter().filter(|packet| is_leak(packet, a0, self.other.port())).collect();
        if self.marks_change {
            let all = leaked.len();
            leaked.retain(|packet| !is_late_acknowledgement(packet));
            self.late += all - leaked.len();
        }
        ensure!(
            leaked.is_empty(),
            "{} packets left by other links: {:#?}",
            leaked.len(),
            &leaked[..leaked.len().min(8)]
        );
        let on_uplink = self.uplink.take()?;
        let leaked: Vec<&Packet> =
            on_uplink.iter().filter(|packet| !self.marks_change && is_excepted(packet)).collect();
        ensure!(
            leaked.is_empty(),
            "{} packets to exceptions left by the uplink: {:#?}",
            leaked.len(),
            &leaked[..leaked.len().min(8)]
        );
        Ok(packets.len())
    }

    /// The daemon's log.
    pub fn log(&self) -> anyhow::Result<String> {
        self.machine.succeed(&["journalctl", "--sync"])?;
        self.machine.succeed(&["journalctl", "--no-pager", "--output=short-precise", "--unit=steer"])
    }

    /// The findings of the doctor with this id, as JSON.
    pub fn findings(&self, id: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let report = self.machine.run(&["steer", "doctor", "--json"])?;
        let report: serde_json::Value = serde_json::from_str(&report.stdout)?;
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        Ok(findings.into_iter().filter(|finding| finding["id"] == id).collect())
    }

    /// The addresses of the uplinks' server.
    pub fn server(&self) -> [std::net::IpAddr; 2] {
        [SERVER_V4.into(), SERVER_V6.into()]
    }
}

/// The root with the managers.
fn root() -> anyhow::Result<PathBuf> {
    let missing =
        "STEER_MANAGERS names no root with systemd-networkd and NetworkManager: `cargo xtask managers` makes one";
    let root = std::env::var_os("STEER_MANAGERS").map(PathBuf::from);
    let root = root
        .filter(|root| ["usr/sbin/NetworkManager", "usr/bin/networkctl"].iter().all(|file| root.join(file).exists()));
    root.ok_or_else(|| NotHere(missing.to_owned()).into())
        .map(|root: PathBuf| root.canonicalize().unwrap_or_else(|_| Path::new("/").into()))
}
