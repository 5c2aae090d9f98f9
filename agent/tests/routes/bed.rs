//! A host with two networks and an uplink whose default route is in a table of its own, as wg-quick makes it.
//!
//! ```text
//! eth0  192.168.1.2/24 fd01::2/64   default via .1, metric 100, in main
//! eth1  192.168.3.2/24 fd03::2/64
//! up0   10.9.0.2/24    fd09::2/64   default via .1 in table 51820
//! ```

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use socket2::{Domain, Protocol, Socket, Type};
use steer::host::route::{By, Changes, Exception, Instance, Local, Marked, Plan, State, Wanted, plan, remove, write};
use steer::model::mark::MarkMask;
use steer_lab::{Capture, Direction, Kind, Netns, create_veth};

pub(crate) const ONE: Instance = Instance::new(0x1a2);
pub(crate) const OTHER: Instance = Instance::new(0x1a3);

pub(crate) struct Bed {
    pub(crate) host: Netns,
    _peer: Netns,
}

/// `None`: this user may not make namespaces.
pub(crate) fn bed() -> Option<Bed> {
    if !is_root() {
        return None;
    }
    let (host, peer) = (Netns::new("host").expect("a namespace"), Netns::new("peer").expect("a namespace"));
    for (link, net) in [("eth0", "192.168.1"), ("eth1", "192.168.3"), ("up0", "10.9.0")] {
        let other = format!("p{link}");
        create_veth(&host, link, &peer, &other).expect("a link");
        let six = match link {
            "eth0" => "fd01",
            "eth1" => "fd03",
            _ => "fd09",
        };
        run(&peer, &format!("link set {other} up"));
        for command in [
            format!("link set {link} up"),
            format!("address add {net}.2/24 brd + dev {link}"),
            format!("address add {six}::2/64 dev {link} nodad"),
            format!("address add fe80::2/64 dev {link} nodad"),
            format!("neigh add {net}.1 lladdr 02:00:00:00:00:01 dev {link} nud permanent"),
            format!("neigh add {net}.9 lladdr 02:00:00:00:00:09 dev {link} nud permanent"),
            format!("neigh add {six}::1 lladdr 02:00:00:00:00:01 dev {link} nud permanent"),
            format!("neigh add {six}::9 lladdr 02:00:00:00:00:09 dev {link} nud permanent"),
            format!("neigh add fe80::9 lladdr 02:00:00:00:00:09 dev {link} nud permanent"),
        ] {
            run(&host, &command);
        }
    }
    for command in [
        "route add default via 192.168.1.1 dev eth0 metric 100",
        "-6 route add default via fd01::1 dev eth0 metric 100",
        "route add default via 10.9.0.1 dev up0 table 51820",
        "-6 route add default via fd09::1 dev up0 table 51820",
    ] {
        run(&host, command);
    }
    host.wait_running("up0").expect("a carrier");
    Some(Bed { host, _peer: peer })
}

/// Whether this user may make namespaces.
pub(crate) fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: a network namespace needs root");
    }
    is_root
}

/// Runs `ip` and gives its output.
pub(crate) fn run(netns: &Netns, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    let output = netns.enter(&mut command).output().expect("ip starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn mask() -> MarkMask {
    MarkMask::new(0xff00_0000)
}

pub(crate) fn mark(number: u8) -> u32 {
    mask().mark(number).expect("a mark")
}

pub(crate) fn exception(to: &str, by: By) -> Exception {
    Exception { to: to.parse().expect("a prefix"), by }
}

impl Bed {
    pub(crate) fn ip(&self, arguments: &str) -> String {
        run(&self.host, arguments)
    }

    pub(crate) fn index(&self, link: &str) -> u32 {
        self.host.ifindex(link).expect("a link")
    }

    /// A policy with this uplink and nothing else.
    pub(crate) fn policy(&self, number: u8, uplink: &str) -> Marked {
        Marked {
            number,
            uplink: self.host.link_index(uplink).expect("links"),
            local: Local::default(),
            resolvers: Vec::new(),
            exceptions: Vec::new(),
        }
    }

    pub(crate) fn wanted(marked: Vec<Marked>, bound: Vec<u32>) -> Wanted {
        Wanted { mask: mask(), instance: ONE, marked, bound }
    }

    pub(crate) fn state(&self) -> State {
        self.host.run(State::read).expect("a namespace").expect("a reading")
    }

    pub(crate) fn plan(&self, wanted: &Wanted) -> Plan {
        plan(wanted, &self.state()).expect("a plan")
    }

    pub(crate) fn write(&self, wanted: &Wanted) -> Changes {
        let plan = self.plan(wanted);
        let state = self.state();
        let changes = self.host.run(|| write(&plan, &state, None)).expect("a namespace").expect("written");
        assert!(changes.failed.is_empty(), "{:?}", changes.failed);
        changes
    }

    pub(crate) fn remove(&self, instance: Instance) -> Changes {
        self.host.run(|| remove(instance)).expect("a namespace").expect("removed")
    }

    /// All rules and routes, as `ip` shows them.
    pub(crate) fn everything(&self) -> String {
        ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"]
            .map(|what| self.ip(what))
            .join("\n")
    }

    /// Sends a datagram with a mark, and gives the link that it left by.
    pub(crate) fn send(&self, mark: u32, to: &str) -> io::Result<String> {
        self.send_by(mark, to, |_| Ok(()))
    }

    pub(crate) fn send_by(
        &self,
        mark: u32,
        to: &str,
        prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
    ) -> io::Result<String> {
        self.send_with(mark, to, |socket, to| {
            prepare(socket)?;
            socket.send_to(b"steer", &to.into()).map(drop)
        })
    }

    pub(crate) fn send_with(
        &self,
        mark: u32,
        to: &str,
        send: impl FnOnce(&Socket, SocketAddr) -> io::Result<()> + Send,
    ) -> io::Result<String> {
        let to: IpAddr = to.parse().expect("an address");
        let mut capture = Capture::start_except(&self.host, &[]).expect("a capture");
        let result = self.host.run(|| {
            let to = SocketAddr::new(to, 9);
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_mark(mark)?;
            socket.set_broadcast(true)?;
            send(&socket, to)
        });
        result.expect("a namespace")?;
        let names = self.host.link_names().expect("links");
        let packets = capture.take().expect("packets");
        let left = packets.iter().filter(|packet| packet.direction == Direction::Out);
        let left: Vec<_> = left
            .filter(|packet| packet.dst == Some(to) && packet.kind == Kind::Udp || packet.kind == Kind::Arp)
            .map(|packet| names[&packet.ifindex].clone())
            .collect();
        Ok(left.first().unwrap_or_else(|| panic!("nothing left for {to}: {packets:?}")).clone())
    }
}
