//! The clients that talk all the time, steered ones and unsteered ones to compare with.
//!
//! **Invariant:** each steered client has an unsteered one that uses the same link.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::IpAddr,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::{client_v4, gaps::Flow, gateway_v4, gateway_v6};

use super::{Beside, EXCEPTED, REFUSED};
use crate::User;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Talk {
    /// The policy `local`, to the server.
    LocalByUplink,
    /// The policy `local`, to the LAN.
    Lan,
    /// The policy `local`, to this host.
    Host,
    /// The policy `except`, to the server.
    ExceptByUplink,
    /// The policy `except`, to its exceptions.
    Exception,
    /// The policy `except`, to what it refuses.
    Refused,
    /// Not steered, bound to the uplink, to the server.
    BareUplink,
    /// Not steered, bound to the link of the LAN, to the LAN.
    BareLan,
    /// Not steered, to this host.
    BareHost,
}

impl Talk {
    /// All clients.
    pub const ALL: [Self; 9] = [
        Self::LocalByUplink,
        Self::Lan,
        Self::Host,
        Self::ExceptByUplink,
        Self::Exception,
        Self::Refused,
        Self::BareUplink,
        Self::BareLan,
        Self::BareHost,
    ];

    /// The unsteered client by the same link; `None` if it is one, or nothing is reached.
    pub fn bare(self) -> Option<Self> {
        match self {
            Self::LocalByUplink | Self::ExceptByUplink => Some(Self::BareUplink),
            Self::Lan | Self::Exception => Some(Self::BareLan),
            Self::Host => Some(Self::BareHost),
            Self::Refused | Self::BareUplink | Self::BareLan | Self::BareHost => None,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalByUplink => "`local`, by the uplink",
            Self::Lan => "`local`, to the LAN",
            Self::Host => "`local`, to this host",
            Self::ExceptByUplink => "`except`, by the uplink",
            Self::Exception => "`except`, to the exception",
            Self::Refused => "`except`, refused",
            Self::BareUplink => "not steered, by the uplink",
            Self::BareLan => "not steered, to the LAN",
            Self::BareHost => "not steered, to this host",
        }
    }

    fn targets(self, beside: &Beside) -> Vec<IpAddr> {
        match self {
            Self::LocalByUplink | Self::ExceptByUplink | Self::BareUplink => beside.server().to_vec(),
            Self::Lan | Self::BareLan => vec![gateway_v4(0).into(), gateway_v6(0).into()],
            Self::Host | Self::BareHost => {
                vec![[127, 0, 0, 1].into(), client_v4(0).into(), std::net::Ipv6Addr::LOCALHOST.into()]
            }
            Self::Exception => EXCEPTED.to_vec(),
            Self::Refused => REFUSED.to_vec(),
        }
    }

    fn port(self, beside: &Beside) -> u16 {
        match self {
            Self::Host | Self::BareHost => beside.here.port(),
            Self::BareUplink | Self::BareLan => beside.other.port(),
            _ => beside.bed.server.port(),
        }
    }

    fn bind(self) -> Option<&'static str> {
        match self {
            Self::BareUplink => Some("a1"),
            Self::BareLan => Some("a0"),
            _ => None,
        }
    }
}

/// The running clients. On drop, they are killed.
pub struct Talks(Vec<(Talk, Child, ChildStdin, BufReader<ChildStdout>)>);

impl Talks {
    /// Starts them, and waits until each flow has tried once.
    pub fn start(beside: &Beside) -> anyhow::Result<Self> {
        let mut talks = Self(Vec::new());
        let [local, except] = &beside.cgroups;
        for talk in Talk::ALL {
            let (cgroup, user) = match talk {
                Talk::LocalByUplink | Talk::Lan | Talk::Host => (Some(local), User::Nobody),
                Talk::ExceptByUplink | Talk::Exception | Talk::Refused => (Some(except), User::Nobody),
                Talk::BareUplink | Talk::BareLan | Talk::BareHost => (None, User::Root),
            };
            let mut command = beside.bed.client(cgroup, user)?;
            command.args(["--gaps", "--port", &talk.port(beside).to_string()]);
            for target in talk.targets(beside) {
                command.args(["--target", &target.to_string()]);
            }
            if let Some(link) = talk.bind() {
                command.args(["--bind", link]);
            }
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let stdin = child.stdin.take().context("no pipe")?;
            let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
            talks.0.push((talk, child, stdin, stdout));
        }
        for (talk, _, _, stdout) in &mut talks.0 {
            let mut line = String::new();
            stdout.read_line(&mut line)?;
            ensure!(line == "ready\n", "{talk:?} did not begin: {line:?}");
        }
        Ok(talks)
    }

    /// Ends them and returns their flows.
    pub fn stop(mut self) -> anyhow::Result<Vec<(Talk, Flow)>> {
        let mut flows = Vec::new();
        for (talk, mut child, stdin, mut stdout) in self.0.drain(..) {
            drop(stdin);
            let mut text = String::new();
            stdout.read_to_string(&mut text)?;
            child.wait()?;
            flows.extend(Flow::parse_all(&text)?.into_iter().map(|flow| (talk, flow)));
        }
        Ok(flows)
    }
}

impl Drop for Talks {
    fn drop(&mut self) {
        for (_, child, ..) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
