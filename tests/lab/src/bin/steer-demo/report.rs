//! The demonstration: a client with two uplinks and a server behind both, in their own network namespaces. The same
//! client program runs unsteered and under `steer exec`. Then a program tries to send by the other uplink. At last, a line
//! of a group fails.
//!
//! **Invariant:** the output was measured, by the server and by captures on both links. The namespaces have no names
//! and end with this process. The pins are in their own directory, and `steer off` removes them.

use std::{
    fmt,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use serde::Serialize;
use steer_lab::{
    Attempt, Capture, Family, Outcome, Packet, Proto, SERVER_V4, SERVER_V6, Server, Uplinks, Vector, client_v4,
    gateway_v4, leaks, parse_outcomes,
};

use crate::failover::{self, Failover};

/// The transports of the demonstration.
const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// Values of `--enforce`: the weaker one, which the attempt bypasses, and the default.
const LEVELS: [&str; 2] = ["steer", "strict"];

/// One connection and its measurements.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Whether the client ran under `steer exec`.
    pub(crate) steered: bool,
    /// The client's report.
    pub(crate) outcome: Outcome,
    /// Packets that left by each uplink, `a0` and `a1`, as captured there.
    pub(crate) captured: [usize; 2],
}

/// One attempt to get out by the first uplink, made by a program that is steered to the second.
#[derive(Debug, Serialize)]
pub(crate) struct Escape {
    /// The value of `--enforce`.
    pub(crate) enforce: &'static str,
    /// The program's report.
    pub(crate) attempt: Attempt,
    /// Packets that left by each uplink, as captured there.
    pub(crate) captured: [usize; 2],
}

/// The whole demonstration.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The connections.
    pub(crate) rows: Vec<Row>,
    /// The same attempt to escape, at each level of enforcement.
    pub(crate) escapes: Vec<Escape>,
    /// A line that fails.
    pub(crate) failover: Failover,
}

/// Makes the lab, runs the client with this `steer` binary, and removes everything.
pub(crate) fn run(steer: &Path) -> anyhow::Result<Report> {
    let lab = Uplinks::new().context("make the network namespaces (needs CAP_SYS_ADMIN)")?;
    let server = Server::start(&lab.server).context("start the server")?;
    let this = std::env::current_exe().context("find the path of this program")?;
    let pins = format!("/sys/fs/bpf/steer-demo-{}", std::process::id());
    let stage = Stage { lab, server, steer: steer.to_owned(), this, pins };
    let measured = stage
        .connections()
        .and_then(|rows| Ok(Report { rows, escapes: stage.escapes()?, failover: stage.failover()? }));
    // The keeper of the last command also cleans up, but nothing waits for it.
    let off = stage.off();
    let report = measured?;
    off.map(|()| report)
}

/// The parts of a demonstration.
struct Stage {
    lab: Uplinks,
    server: Server,
    /// The `steer` binary.
    steer: PathBuf,
    /// This program, which contains the clients.
    this: PathBuf,
    /// The pin directory.
    pins: String,
}

impl Stage {
    /// Every connection, unsteered and then steered.
    fn connections(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for steered in [false, true] {
            for proto in PROTOS {
                for target in [SERVER_V4.into(), SERVER_V6.into()] {
                    let (outcome, captured) = self.captured(target, || self.client(steered, proto, target))?;
                    rows.push(Row { steered, outcome, captured });
                }
            }
        }
        Ok(rows)
    }

    /// A datagram that names the other uplink (IP_PKTINFO), which needs no privilege.
    fn escapes(&self) -> anyhow::Result<Vec<Escape>> {
        let try_at = |enforce| {
            let mut command = self.exec(&["--enforce", enforce]);
            let (vector, port) = (Vector::IpPktinfo.name(), self.server.port().to_string());
            command.args(["escape", "--json", "--vector", &vector, "--family", "v4", "--port", &port]);
            command.args(["--gateway", &gateway_v4(0).to_string(), "--source", &client_v4(0).to_string()]);
            let (attempt, captured) = self.captured(SERVER_V4.into(), || {
                let printed = self.printed_by(&mut command)?;
                let last = printed.lines().last().unwrap_or_default();
                Attempt::parse(last).context("read the output of the client that tries to escape")
            })?;
            Ok(Escape { enforce, attempt, captured })
        };
        LEVELS.into_iter().map(try_at).collect()
    }

    /// A line of a group fails.
    fn failover(&self) -> anyhow::Result<Failover> {
        failover::run(&self.lab, &self.server, self.steer(), &self.this).context("let a line fail")
    }

    /// Runs `action` and counts the packets for `target` that leave by each uplink meanwhile.
    fn captured<T>(
        &self,
        target: IpAddr,
        action: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, [usize; 2])> {
        let Self { lab, .. } = self;
        let mut links = [Capture::start(&lab.client, lab.link(0))?, Capture::start(&lab.client, lab.link(1))?];
        let result = action()?;
        let mut captured = [0, 0];
        for (count, capture) in captured.iter_mut().zip(&mut links) {
            *count = ours(&capture.take()?, target).count();
        }
        Ok((result, captured))
    }

    /// Runs the client in a separate process that does not depend on steer.
    fn client(&self, steered: bool, proto: Proto, target: IpAddr) -> anyhow::Result<Outcome> {
        let mut command = if steered { self.exec(&[]) } else { Command::new(&self.this) };
        let proto = serde_json::to_value(proto)?.as_str().unwrap_or_default().to_owned();
        let (port, target) = (self.server.port().to_string(), target.to_string());
        command.args(["probe", "--json", "--proto", &proto, "--port", &port, "--target", &target]);
        let printed = self.printed_by(&mut command)?;
        let outcomes = parse_outcomes(&printed).context("read the output of the client")?;
        outcomes.into_iter().next().context("the client printed nothing")
    }

    /// `steer exec` of this program on the second uplink. The caller adds the arguments of this program.
    fn exec(&self, how: &[&str]) -> Command {
        let mut command = self.steer();
        command.args(["exec", "--interface", self.lab.link(1)]).args(how).arg("--").arg(&self.this);
        command
    }

    fn steer(&self) -> Command {
        let mut command = Command::new(&self.steer);
        // The warnings concern the resolver of this machine, which the client does not use.
        command.args(["--bpffs", &self.pins]).env("STEER_LOG", "error").env_remove("STEER_SOCKET");
        command
    }

    /// The output of a command in the client's network namespace.
    fn printed_by(&self, command: &mut Command) -> anyhow::Result<String> {
        // Not a terminal: the keeper of the command would write to it between the lines of this program.
        let started = self.lab.client.enter(command.stdin(Stdio::null()).stderr(Stdio::piped())).output();
        let output = started.with_context(|| format!("start {}", command.get_program().display()))?;
        io::stderr().write_all(&output.stderr).context("write to standard error")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes all pins of the commands.
    fn off(&self) -> anyhow::Result<()> {
        let status = self.steer().arg("off").stdout(Stdio::null()).status();
        let status = status.with_context(|| format!("start {}", self.steer.display()))?;
        ensure!(status.success(), "`steer --bpffs {} off` failed: {status}", self.pins);
        Ok(())
    }
}

/// Packets to the server, including those that are needed to send them.
fn ours(packets: &[Packet], target: IpAddr) -> impl Iterator<Item = &Packet> {
    leaks(packets).into_iter().filter(move |packet| packet.dst == Some(target))
}

impl Row {
    fn source_is_of(&self, uplink: u8) -> bool {
        let address = match self.outcome.family {
            Family::V4 => steer_lab::client_v4(uplink).to_string(),
            Family::V6 => steer_lab::client_v6(uplink).to_string(),
        };
        self.outcome.saw.as_deref().map(str::trim) == Some(&address)
    }

    /// Whether it left only by that uplink and was answered.
    fn went_by(&self, uplink: u8) -> bool {
        let other = usize::from(1 - uplink);
        self.outcome.is_ok()
            && self.source_is_of(uplink)
            && self.captured[usize::from(uplink)] > 0
            && self.captured[other] == 0
    }
}

impl Escape {
    /// Whether the packet got out without `strict`, and only then.
    fn went_as_it_should(&self) -> bool {
        (self.captured[0] > 0) == (self.enforce != "strict")
    }
}

impl Report {
    /// Whether every unsteered connection used the first uplink only, every steered one the second only, `strict` stopped the
    /// attempt to escape, and the failed line was left.
    pub(crate) fn steering_works(&self) -> bool {
        let escapes = !self.escapes.is_empty() && self.escapes.iter().all(Escape::went_as_it_should);
        escapes
            && self.failover.worked()
            && !self.rows.is_empty()
            && self.rows.iter().all(|row| row.went_by(u8::from(row.steered)))
    }
}

/// How many packets there were on a link, and whether they should not be there.
fn packets(count: usize, is_expected: bool) -> String {
    let noun = if count == 1 { "packet" } else { "packets" };
    let mark = if is_expected || count == 0 { "" } else { " (escaped)" };
    format!("{count} {noun}{mark}")
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["the client ran", "protocol", "the server saw", "left by a0", "left by a1"]);
        for row in &self.rows {
            let how = if row.steered { "steer exec --interface a1" } else { "unsteered" };
            let saw = row.outcome.saw.as_deref().map(str::trim).map(str::to_owned);
            table.add_row([
                how.to_owned(),
                format!("{:?}, IP{:?}", row.outcome.proto, row.outcome.family).to_uppercase().replace("IPV", "IPv"),
                saw.unwrap_or_else(|| format!("nothing ({})", row.outcome.error.as_deref().unwrap_or("no answer"))),
                packets(row.captured[0], !row.steered),
                packets(row.captured[1], row.steered),
            ]);
        }
        for escape in &self.escapes {
            let said = if escape.attempt.is_ok() { "sent" } else { &escape.attempt.outcome };
            table.add_row([
                format!("steer exec --interface a1 --enforce {}", escape.enforce),
                "UDP, IPv4, naming a0 (IP_PKTINFO)".to_owned(),
                format!("(the client: {said})"),
                packets(escape.captured[0], false),
                packets(escape.captured[1], true),
            ]);
        }
        writeln!(formatter, "{table}")?;
        if self.steering_works() {
            write!(
                formatter,
                "The default route uses a0. Under steer, the same program sent only by a1: none of its packets was on a0.\n\
                 A program that names a0 itself gets past --enforce steer. --enforce strict, the default, stops it.\n\n{}",
                self.failover
            )
        } else {
            let rows = self.rows.iter().filter(|row| !row.went_by(u8::from(row.steered))).count();
            let escapes = self.escapes.iter().filter(|escape| !escape.went_as_it_should()).count();
            write!(
                formatter,
                "Steering did NOT work: {} of {} attempts did not take the expected uplink.\n\n{}",
                rows + escapes,
                self.rows.len() + self.escapes.len(),
                self.failover
            )
        }
    }
}
