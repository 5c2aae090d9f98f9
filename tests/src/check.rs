//! The checks: which packets left, and by which link.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::{
    Capture, Family, Kind, LoadReport, Netns, Outcome, Packet, Server, Transport, client_v4, client_v6, gateway_v4,
    gateway_v6, leaks, parse_outcomes,
};

use crate::{
    Bed, Cgroup,
    bed::{self, NOBODY, binary, copy_program},
};

/// The user that runs the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// With all capabilities.
    Root,
    /// Without capabilities.
    Nobody,
}

/// Both users.
pub const USERS: [User; 2] = [User::Root, User::Nobody];

/// Captures on every link of the client except loopback and the allowed links. It includes links that appear later.
pub struct Spy {
    capture: Capture,
    allowed: Vec<String>,
    /// Earlier TCP connections that may still be closing.
    earlier: BTreeSet<SocketAddr>,
}

impl Spy {
    /// Starts the captures. `allowed` are names of links.
    pub fn on(bed: &Bed, allowed: &[&str]) -> anyhow::Result<Self> {
        Self::in_netns(&bed.net.client, &bed.server, allowed)
    }

    /// As [`Self::on`], in another network namespace, from which this server is reached.
    pub fn in_netns(netns: &Netns, server: &Server, allowed: &[&str]) -> anyhow::Result<Self> {
        let with_loopback = allowed.iter().copied().chain(["lo"]).collect::<Vec<_>>();
        let capture = Capture::start_except(netns, &with_loopback)?;
        let tcp = server.seen().into_iter().filter(|seen| seen.transport == Transport::Tcp);
        let earlier = tcp.map(|seen| SocketAddr::new(seen.peer.ip(), seen.peer.port())).collect();
        Ok(Self { capture, allowed: allowed.iter().map(ToString::to_string).collect(), earlier })
    }

    /// Also allows a link that appeared later.
    pub fn allow(&mut self, ifindex: u32) -> anyhow::Result<()> {
        Ok(self.capture.allow(ifindex)?)
    }

    /// Checks that no packet of a process has left by any other link.
    pub fn saw_nothing(&mut self) -> anyhow::Result<()> {
        let leaked = self.take()?;
        ensure!(leaked.is_empty(), "{} packets left by other links than {:?}: {leaked:#?}", leaked.len(), self.allowed);
        Ok(())
    }

    /// Returns the packets that processes have sent by other links since the last call. It leaves out the kernel's own
    /// answers to packets that no socket claims, and the neighbour lookup of a gateway for them: a packet of a process
    /// would follow that lookup, and counts.
    pub fn take(&mut self) -> anyhow::Result<Vec<Packet>> {
        let packets = self.capture.take()?;
        let mut leaked = sent_by_processes(leaks(&packets));
        leaked.retain(|packet| {
            let source = packet.src.zip(packet.src_port).map(SocketAddr::from);
            packet.kind != Kind::Tcp || source.is_none_or(|source| !self.earlier.contains(&source))
        });
        Ok(leaked.into_iter().cloned().collect())
    }
}

/// Leaves out the kernel's own answers to packets that no socket claims, and the neighbour lookup of a gateway for
/// them.
pub(crate) fn sent_by_processes(mut packets: Vec<&Packet>) -> Vec<&Packet> {
    packets.retain(|packet| !packet.is_kernel_answer() && !is_gateway_lookup(packet) && !is_answer_to_late_fin(packet));
    packets
}

/// Whether the packet may be the kernel's answer to a late FIN over IPv6: a bare ACK, sent when only the TIME_WAIT
/// state of the socket remains. It uses the default route, whatever the socket was bound to (seen with Linux 6.18). A
/// leaking connection sends more than that.
fn is_answer_to_late_fin(packet: &Packet) -> bool {
    const ACK: u8 = 16;
    packet.tcp_flags == Some(ACK) && packet.payload_len == 0 && packet.src.is_some_and(|source| source.is_ipv6())
}

fn is_gateway_lookup(packet: &Packet) -> bool {
    // The destination does not hold the target of a neighbour solicitation, only its last bytes.
    let is_gateway = |i: u8| match packet.dst {
        Some(IpAddr::V4(dst)) => dst == gateway_v4(i),
        Some(IpAddr::V6(dst)) => dst == gateway_v6(i) || dst.octets()[13..] == gateway_v6(i).octets()[13..],
        None => false,
    };
    matches!(packet.kind, Kind::Arp | Kind::Ndp) && (is_gateway(0) || is_gateway(1))
}

impl Bed {
    /// The client program. It is in the cgroup from its first instruction.
    pub fn client(&self, cgroup: Option<&Cgroup>, user: User) -> anyhow::Result<Command> {
        self.lab_program("STEER_PROBE", "steer-probe", cgroup, user)
    }

    /// A program of the lab. It is in the cgroup from its first instruction.
    pub(crate) fn lab_program(
        &self,
        variable: &str,
        name: &str,
        cgroup: Option<&Cgroup>,
        user: User,
    ) -> anyhow::Result<Command> {
        let mut command = Command::new(self.copy_of(variable, name)?);
        self.place(&mut command, cgroup, user);
        Ok(command)
    }

    /// A copy of a program of the lab that user nobody may execute, wherever the workspace is.
    pub fn copy_of(&self, variable: &str, name: &str) -> anyhow::Result<PathBuf> {
        let program = self.directory.join(name);
        if !program.exists() {
            copy_program(&binary(variable, name), &program)?;
            fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o755))?;
        }
        Ok(program)
    }

    /// Makes any command run in a cgroup and in the client's network namespace, without input.
    pub fn place(&self, command: &mut Command, cgroup: Option<&Cgroup>, user: User) {
        if let Some(cgroup) = cgroup {
            cgroup.enter(command);
        }
        match user {
            User::Root => self.net.client.enter(command),
            User::Nobody => self.net.client.enter_as(command, NOBODY.0, NOBODY.1),
        };
        command.stdin(Stdio::null());
    }

    /// Arguments that make the client try each way once: TCP, UDP, ping and raw, over IPv4 and IPv6.
    pub fn everything(&self) -> Vec<String> {
        let port = self.server.port().to_string();
        ["--json", "--all", "--port", &port, "--timeout-ms", "500"].map(str::to_owned).to_vec()
    }

    /// Tries each way once, in a cgroup.
    pub fn probe(&self, cgroup: Option<&Cgroup>, user: User) -> anyhow::Result<Vec<Outcome>> {
        let output = bed::output(self.client(cgroup, user)?.args(self.everything()))?;
        let outcomes = parse_outcomes(&output.stdout).with_context(|| format!("{output:?}"))?;
        ensure!(outcomes.len() == 8, "{output:?}");
        Ok(outcomes)
    }

    /// Checks that all packets of a process of the cgroup leave by uplink `i`.
    pub fn check_steered(&self, cgroup: &Cgroup, i: u8) -> anyhow::Result<()> {
        for user in USERS {
            let mut spy = Spy::on(self, &[self.net.link(i)])?;
            let mut uplink = Capture::start(&self.net.client, self.net.link(i))?;
            let outcomes = self.probe(Some(cgroup), user)?;
            spy.saw_nothing().with_context(|| format!("{} as {user:?}", cgroup.path()))?;
            check_outcomes(&outcomes, user, i).with_context(|| format!("{} as {user:?}", cgroup.path()))?;
            let packets = uplink.take()?;
            ensure!(
                leaks(&packets).len() >= outcomes.len(),
                "{} as {user:?}: too few packets on the uplink",
                cgroup.path()
            );
        }
        Ok(())
    }

    /// Checks that no process of the cgroup gets a packet out by any link.
    pub fn check_closed(&self, cgroup: &Cgroup) -> anyhow::Result<()> {
        for user in USERS {
            let mut spy = Spy::on(self, &[])?;
            let outcomes = self.probe(Some(cgroup), user)?;
            spy.saw_nothing().with_context(|| format!("{} as {user:?}", cgroup.path()))?;
            for outcome in &outcomes {
                ensure!(!outcome.is_ok(), "{} as {user:?} got through: {outcome:?}", cgroup.path());
                let immediate = matches!(outcome.error.as_deref(), Some("ENODEV" | "ENETUNREACH" | "EPERM"));
                ensure!(immediate, "{} as {user:?} did not fail at once: {outcome:?}", cgroup.path());
            }
        }
        Ok(())
    }

    /// Checks that steering does not affect the cgroup: its traffic uses the default route.
    pub fn check_unsteered(&self, cgroup: Option<&Cgroup>) -> anyhow::Result<()> {
        for user in USERS {
            let outcomes = self.probe(cgroup, user)?;
            check_outcomes(&outcomes, user, 0)?;
            for outcome in outcomes {
                ensure!(outcome.bound_ifindex <= 0, "{user:?} is bound: {outcome:?}");
            }
        }
        Ok(())
    }

    /// Starts a client that makes sockets as fast as it can until it is stopped. Returns once it has begun.
    pub fn load(&self, cgroup: &Cgroup) -> anyhow::Result<Load> {
        let mut command = self.client(Some(cgroup), User::Nobody)?;
        let port = self.server.port().to_string();
        command.args(["--repeat-until-stdin-closes", "--timeout-ms", "200", "--port", &port]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        ensure!(line == "ready\n", "the client did not begin: {line:?}");
        Ok(Load { child, stdin, stdout })
    }
}

/// Checks that every attempt was answered, and that the server saw the address of uplink `i`. Without privileges a
/// program cannot make raw sockets.
pub fn check_outcomes(outcomes: &[Outcome], user: User, i: u8) -> anyhow::Result<()> {
    for outcome in outcomes {
        if user == User::Nobody && outcome.proto == steer_lab::Proto::Raw {
            ensure!(outcome.error.as_deref() == Some("EPERM"), "a raw socket without privilege: {outcome:?}");
            continue;
        }
        let source = match outcome.family {
            Family::V4 => client_v4(i).to_string(),
            Family::V6 => client_v6(i).to_string(),
        };
        ensure!(outcome.is_ok(), "no answer: {outcome:?}");
        ensure!(outcome.saw.as_deref() == Some(&source), "another source than {source}: {outcome:?}");
    }
    Ok(())
}

/// Checks that nothing was interrupted: every socket was bound, and no attempt failed. A few late answers are allowed,
/// as they occur on a busy machine.
pub fn check_uninterrupted(report: &LoadReport) -> anyhow::Result<()> {
    let late = report.errors.get("ETIMEDOUT").copied().unwrap_or_default();
    let failed = report.errors.len() > usize::from(late > 0);
    ensure!(!failed && late * 100 <= report.ok && report.ok > 0, "an interruption: {report:?}");
    ensure!(!report.bound.contains_key(&0), "an unbound socket: {report:?}");
    Ok(())
}

/// A running client that creates load.
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Load {
    /// Stops it and returns its report.
    pub fn stop(mut self) -> anyhow::Result<LoadReport> {
        drop(self.stdin.take());
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        self.child.wait()?;
        Ok(LoadReport::parse(&text)?)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
