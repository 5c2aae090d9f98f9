//! Attempts to escape, and the packets that got out.
//!
//! **Invariant:** a test claims that no packet got out only for captures that have just proved that they work. After
//! every attempt, a packet is sent by the other link from outside the cgroup, and both captures must contain it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use steer_lab::{
    Attempt, Capture, Direction, Family, Kind, Packet, SERVER_V4, SERVER_V6, Step, Vector, client_v4, client_v6,
    escape::option::MARK, gateway_v4, gateway_v6, wait_until,
};

use crate::{Bed, Cgroup, PATIENCE, User, check::sent_by_processes, foreign::bpf, pinned_map::open_pin};

/// Groups by which programs find services.
const DISCOVERY_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 255, 255, 250), Ipv4Addr::new(224, 0, 0, 252)];
const DISCOVERY_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 3),
];

/// The level of steering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// New sockets are bound, and nothing else. steer has no such level: it shows what the other levels add.
    Bind,
    /// In addition, a hook restores a lost binding where it can.
    Steer,
    /// The same, and what strict stops is reported.
    Observe,
    /// In addition, no packet gets out otherwise.
    Strict,
    /// The same with a group of three uplinks. The other link is no member.
    Group,
    /// The same by the route method: this host and an exception are reached by other links.
    GroupRoute,
    /// Strict by the route method with one uplink, and with the networks of the other link.
    Lan,
}

/// The uplinks of a group: `a1` is chosen as long as it works.
const GROUP: &str = "a1+a2+a3";

impl Level {
    /// The value of the command line option, if there is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Steer => "steer",
            Self::Observe => "observe",
            Self::Strict => "strict",
            Self::Group => "group",
            Self::GroupRoute => "group-route",
            Self::Lan => "lan",
        }
    }

    /// Whether no packet may get out by another link, apart from what the policy lets out there.
    pub fn is_strict(self) -> bool {
        self >= Self::Strict
    }

    /// Whether sockets are marked, not bound.
    pub fn is_routed(self) -> bool {
        self >= Self::GroupRoute
    }

    /// The links of its bed.
    fn links(self) -> u8 {
        if self.is_group() { 4 } else { 2 }
    }

    fn is_group(self) -> bool {
        matches!(self, Self::Group | Self::GroupRoute)
    }

    /// A bed for attempts at this level. The other link is `a0`, by which whatever is not steered leaves.
    pub fn bed(self, name: &str) -> anyhow::Result<Bed> {
        let bed = Bed::with_links(name, self.links())?;
        bed.furnish_for_escapes()?;
        Ok(bed)
    }

    /// Whether the policy lets a packet out by the other link.
    fn lets_out(self, packet: &Packet) -> bool {
        let is_near = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                address.octets()[..3] == client_v4(0).octets()[..3]
                    || address.is_broadcast()
                    || DISCOVERY_V4.contains(&address)
            }
            IpAddr::V6(address) => {
                address.segments()[..4] == client_v6(0).segments()[..4]
                    || address.is_unicast_link_local()
                    || DISCOVERY_V6.contains(&address)
            }
        };
        self == Self::Lan && (matches!(packet.kind, Kind::Arp | Kind::Ndp) || packet.dst.is_some_and(is_near))
    }

    /// Attaches a cgroup of the bed to `a1`, or the group with it, at this level.
    pub fn attach(self, bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<()> {
        let enforce = match self {
            Self::Bind | Self::Steer => Self::Steer.name(),
            Self::Observe => self.name(),
            _ => Self::Strict.name(),
        };
        let reach: &[&str] = match self {
            Self::Bind | Self::Steer | Self::Observe | Self::Strict | Self::Group => &[],
            Self::GroupRoute => &["--local", "host", "--except", "203.0.113.0/24=a0,2001:db8::/32=main"],
            Self::Lan => &["--local", "host,lan,discovery"],
        };
        let uplink = if self.is_group() { ["--uplink", GROUP] } else { ["-i", "a1"] };
        bed.succeed(&[&["attach", cgroup.path(), "--enforce", enforce], &uplink[..], reach].concat())?;
        if self == Self::Bind { leave_only_the_binding(bed, cgroup) } else { Ok(()) }
    }
}

/// Detaches every program of an attachment except the one that binds new sockets.
fn leave_only_the_binding(bed: &Bed, cgroup: &Cgroup) -> anyhow::Result<()> {
    const BPF_LINK_DETACH: libc::c_long = 34;
    let pins = bed.abi().join("links").join(cgroup.id()?.to_string());
    for pin in fs::read_dir(&pins)? {
        let pin = pin?.path();
        if !pin.ends_with("sock_create") {
            // The kernel frees a link some time after its pin is removed. A detached link has no effect at once.
            bpf(BPF_LINK_DETACH, &open_pin(&pin)?.as_raw_fd().cast_unsigned())?;
            fs::remove_file(&pin)?;
        }
    }
    Ok(())
}

/// The circumstances of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// The cgroup is steered, and the program runs in it.
    Steered,
    /// The program starts, and the cgroup is steered only after this step.
    SteeredAfter(Step),
    /// The server connects to the client, at its address on this uplink.
    CalledOn(u8),
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub struct Try {
    /// The vector.
    pub vector: Vector,
    /// The user.
    pub user: User,
    /// The address family.
    pub family: Family,
    /// The circumstances.
    pub scene: Scene,
    /// The time that the program waits for an answer.
    pub timeout: Duration,
}

/// The result of an attempt.
#[derive(Debug)]
pub struct Seen {
    /// The program's report.
    pub attempt: Attempt,
    /// The packets that left by other links than the uplink. The larger of the counts at the client's end and at the
    /// server's end is used.
    pub leaked: Vec<Packet>,
}

impl Bed {
    /// Sets up a bed for the vectors: link-local addresses, and a rule that routes a mark to `a0`.
    pub fn furnish_for_escapes(&self) -> anyhow::Result<()> {
        let link_local = |last| IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last));
        for i in 0..2 {
            self.net.client.add_address(self.net.link(i), link_local(2), 64)?;
            self.net.server.add_address(&self.net.server_link(i), link_local(1), 64)?;
        }
        for gateway in [gateway_v4(0).into(), gateway_v6(0).into()] {
            self.net.client.add_marked_route(MARK, 100, gateway, self.net.link(0))?;
        }
        Ok(())
    }

    /// Makes an attempt in the bed's cgroup. The cgroup is steered at that level from the start, or when the scene
    /// requires it.
    pub fn attempt(&self, this: Try, level: Level) -> anyhow::Result<Seen> {
        let cgroup = self.cgroup.child(&format!("{:?}-{:?}", this.user, this.family))?;
        if !matches!(this.scene, Scene::SteeredAfter(_)) {
            level.attach(self, &cgroup)?;
        }
        let program = self.escape_program(this, &cgroup)?;
        let allowed: Vec<&str> = (1..level.links()).map(|link| self.net.link(link)).collect();
        let mut seen = self.watch_attempt(this, program, &allowed, || level.attach(self, &cgroup))?;
        // The network of the first hop says nothing about where a source route leads.
        seen.leaked.retain(|packet| this.vector == Vector::SourceRoute || !level.lets_out(packet));
        Ok(seen)
    }

    /// Makes an attempt with this program, and captures on all links but these. `attach` is called when the scene
    /// requires it.
    pub fn watch_attempt(
        &self,
        this: Try,
        program: Command,
        allowed: &[&str],
        mut attach: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Seen> {
        let mut client = Capture::start_except(&self.net.client, &[&["lo"], allowed].concat())?;
        let far: Vec<String> = (1..self.net.count()).map(|link| self.net.server_link(link)).collect();
        let far: Vec<&str> = std::iter::once("lo").chain(far.iter().map(String::as_str)).collect();
        let mut server = Capture::start_except(&self.net.server, &far)?;
        let attempt = self.run_attempt(this, program, || {
            attach()?;
            // Packets that left before steering started are not leaks.
            client.take().and_then(|_| server.take()).map(drop).map_err(Into::into)
        })?;
        let marker = self.send_marker(this.family)?;
        let (mut left, mut arrived) = (Vec::new(), Vec::new());
        let mut failed = None;
        wait_until("a packet of the test's own on the other link", PATIENCE, || {
            let took = client.take().and_then(|packets| {
                left.extend(packets);
                arrived.extend(server.take()?);
                Ok(())
            });
            failed = took.err();
            let has = |packets: &[Packet]| packets.iter().any(|packet| is_marker(packet, marker));
            failed.is_some() || has(&left) && has(&arrived)
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        // The kernel repeats the report of a membership from before, and reports its end. These name only the group.
        let older = |packet: &Packet| {
            this.scene == Scene::SteeredAfter(Step::Option)
                && matches!(packet.kind, Kind::Igmp | Kind::Mld)
                && packet.sources == 0
        };
        left.retain(|packet| !older(packet));
        arrived.retain(|packet| !older(packet));
        let [left, arrived] = [(&left, Direction::Out), (&arrived, Direction::In)].map(|(packets, direction)| {
            let mut leaked = leaked(packets, direction, &[marker]);
            if this.vector.is_forged() {
                leaked.extend(packets.iter().filter(|packet| is_forged_answer(packet, direction)).cloned());
            }
            leaked
        });
        let leaked = if arrived.len() > left.len() { arrived } else { left };
        Ok(Seen { attempt, leaked })
    }

    /// Makes an attempt as root over IPv4 in a cgroup, without changing the cgroup.
    pub fn attempt_in(&self, cgroup: &Cgroup, vector: Vector) -> anyhow::Result<Attempt> {
        let timeout = Duration::from_millis(400);
        let this = Try { vector, user: User::Root, family: Family::V4, scene: Scene::Steered, timeout };
        self.run_attempt(this, self.escape_program(this, cgroup)?, || Ok(()))
    }

    /// The program that makes an attempt. It is in the cgroup from its first instruction.
    pub fn escape_program(&self, this: Try, cgroup: &Cgroup) -> anyhow::Result<Command> {
        let mut program = self.lab_program("STEER_ESCAPE", "steer-escape", Some(cgroup), this.user)?;
        self.add_attempt(this, &mut program);
        Ok(program)
    }

    /// The arguments for this attempt.
    pub fn add_attempt(&self, this: Try, command: &mut Command) {
        let (gateway, source): (IpAddr, IpAddr) = match this.family {
            Family::V4 => (gateway_v4(0).into(), client_v4(0).into()),
            Family::V6 => (gateway_v6(0).into(), client_v6(0).into()),
        };
        command.args(["--json", "--vector", &this.vector.name(), "--other", self.net.link(0)]);
        command.args(["--family", if this.family == Family::V4 { "v4" } else { "v6" }]);
        command.args(["--port", &self.server.port().to_string()]);
        command.args(["--timeout-ms", &this.timeout.as_millis().to_string()]);
        command.args(["--gateway", &gateway.to_string(), "--source", &source.to_string()]);
    }

    /// Runs the program. `attach` is called when the program reports that it is ready for it.
    fn run_attempt(
        &self,
        this: Try,
        mut command: Command,
        attach: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Attempt> {
        if let Scene::SteeredAfter(step) = this.scene {
            command.args(["--pause-after", &format!("{step:?}").to_lowercase()]);
        }
        command.stdin(match this.vector {
            Vector::Inherited => Stdio::from(self.foreign_socket(this.family)?),
            Vector::Passed => Stdio::from(self.foreign_socket_in_transit(this.family)?),
            _ => Stdio::piped(),
        });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let attempt = self.accompany(&mut child, this, attach);
        let status = child.wait()?;
        let mut complaint = String::new();
        child.stderr.take().context("no pipe")?.read_to_string(&mut complaint)?;
        attempt.with_context(|| format!("steer-escape {this:?}: {status}: {complaint}"))
    }

    /// Reads the program's output, and does the part of the attempt that is outside of the program.
    fn accompany(
        &self,
        child: &mut Child,
        this: Try,
        mut attach: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Attempt> {
        let mut stdin = child.stdin.take();
        for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
            let line = line?;
            if line.starts_with('{') {
                return Ok(Attempt::parse(&line)?);
            } else if let Some(port) = line.strip_prefix("listening ") {
                self.call(this, port.parse()?)?;
            } else {
                attach()?;
                stdin.as_mut().context("the program has no input")?.write_all(b"go on\n")?;
            }
        }
        bail!("the program printed nothing")
    }

    /// Connects from the server's own address, so that the return path is the default route unless steered.
    fn call(&self, this: Try, port: u16) -> anyhow::Result<()> {
        let i = match this.scene {
            Scene::CalledOn(i) => i,
            Scene::SteeredAfter(_) => 1,
            Scene::Steered => bail!("the scene has no call"),
        };
        let (from, to): (IpAddr, IpAddr) = match this.family {
            Family::V4 => (SERVER_V4.into(), client_v4(i).into()),
            Family::V6 => (SERVER_V6.into(), client_v6(i).into()),
        };
        self.net.server.run(|| steer_lab::escape::call(from, SocketAddr::new(to, port), this.timeout))?;
        Ok(())
    }

    /// A UDP socket created outside every steered cgroup.
    fn foreign_socket(&self, family: Family) -> anyhow::Result<OwnedFd> {
        Ok(self.net.client.run(|| UdpSocket::bind((any(family), 0)))??.into())
    }

    /// One end of a UNIX socket in whose queue such a socket waits.
    fn foreign_socket_in_transit(&self, family: Family) -> anyhow::Result<OwnedFd> {
        let socket = self.foreign_socket(family)?;
        let (ours, theirs) = UnixStream::pair()?;
        let rights = [socket.as_raw_fd()];
        let message = [std::io::IoSlice::new(&[0])];
        let control = [ControlMessage::ScmRights(&rights)];
        sendmsg::<SockaddrIn>(ours.as_raw_fd(), &message, &control, MsgFlags::empty(), None)?;
        Ok(theirs.into())
    }

    /// Sends a packet by the other link from outside the cgroup, and returns its source port.
    pub(crate) fn send_marker(&self, family: Family) -> anyhow::Result<u16> {
        let to: IpAddr = if family == Family::V4 { SERVER_V4.into() } else { SERVER_V6.into() };
        let port = self.net.client.run(|| {
            let socket = UdpSocket::bind((any(family), 0))?;
            socket.send_to(b"marker", (to, self.server.port()))?;
            Ok::<_, std::io::Error>(socket.local_addr()?.port())
        })??;
        Ok(port)
    }
}

fn any(family: Family) -> IpAddr {
    if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

pub(crate) fn is_marker(packet: &Packet, port: u16) -> bool {
    packet.kind == Kind::Udp && packet.src_port == Some(port)
}

/// Whether the kernel answers the address by which the vectors forge: nobody else is answered there.
fn is_forged_answer(packet: &Packet, direction: Direction) -> bool {
    packet.direction == direction
        && packet.is_kernel_answer()
        && matches!(packet.kind, Kind::Tcp | Kind::Icmp4 | Kind::Icmp6)
        && [Some(gateway_v4(0).into()), Some(gateway_v6(0).into())].contains(&packet.dst)
}

pub(crate) fn leaked(packets: &[Packet], direction: Direction, markers: &[u16]) -> Vec<Packet> {
    let sent = packets.iter().filter(|packet| packet.direction == direction && !packet.is_kernel_noise()).collect();
    let is_ours = |packet: &&Packet| markers.iter().any(|&marker| is_marker(packet, marker));
    sent_by_processes(sent).into_iter().filter(|packet| !is_ours(packet)).cloned().collect()
}
