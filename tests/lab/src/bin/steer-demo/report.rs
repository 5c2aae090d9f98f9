//! The demonstration: a client with two uplinks and a server behind both, all in network namespaces of their own; the same
//! client program run as it is, and run by `steer exec`; and a program that tries to get out by the other uplink.
//!
//! **Invariant:** what is printed was measured: by the server, and by captures on both links. The namespaces have no names
//! and end with this process, the pins are in a directory of their own and are removed with it.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;
use steer_lab::{
    Attempt, Capture, Family, Outcome, Packet, Proto, SERVER_V4, SERVER_V6, Server, Uplinks, Vector, client_v4,
    gateway_v4, leaks, parse_outcomes,
};

use crate::kernel::{self, Pins, bpffs};

/// Transports the demonstration shows.
const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

/// One connection, and what was seen of it.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Whether the client ran by `steer exec`.
    pub steered: bool,
    /// What it tried, and what came of it.
    pub outcome: Outcome,
    /// Packets that left by each uplink, `a0` and `a1`, as captured there.
    pub captured: [usize; 2],
}

/// One attempt to get out by the first uplink, made by a program that is steered to the second.
#[derive(Debug, Serialize)]
pub struct Escape {
    /// As with `--enforce`.
    pub enforce: &'static str,
    /// What the program says of it.
    pub attempt: Attempt,
    /// Packets that left by each uplink, as captured there.
    pub captured: [usize; 2],
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The connections.
    pub rows: Vec<Row>,
    /// The same attempt to escape, with sockets only bound, and as steer enforces by default.
    pub escapes: Vec<Escape>,
}

/// Makes the lab, runs the client, and removes everything.
pub fn run() -> anyhow::Result<Report> {
    let lab = Uplinks::new().context("make the network namespaces (needs CAP_SYS_ADMIN)")?;
    let server = Server::start(&lab.server).context("start the server")?;
    let pins = demo_pins();
    let shown = connections(&lab, &server, &pins).and_then(|rows| Ok((rows, escapes(&lab, &server, &pins)?)));
    // The keeper of the last command does the same in its own time.
    if let Some(located) = bpffs::locate(&pins) {
        kernel::off(&Pins::new(located))?;
    }
    let (rows, escapes) = shown?;
    Ok(Report { rows, escapes })
}

/// Every connection, unsteered and then steered.
fn connections(lab: &Uplinks, server: &Server, pins: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for steered in [false, true] {
        for proto in PROTOS {
            for target in [SERVER_V4.into(), SERVER_V6.into()] {
                let (outcome, captured) =
                    captured(lab, target, || client(lab, pins, steered, proto, target, server.port()))?;
                rows.push(Row { steered, outcome, captured });
            }
        }
    }
    Ok(rows)
}

/// A datagram that names the other uplink for itself (IP_PKTINFO), which needs no privilege.
fn escapes(lab: &Uplinks, server: &Server, pins: &Path) -> anyhow::Result<Vec<Escape>> {
    let try_at = |enforce| {
        let mut command = steer(lab, pins, &["--enforce", enforce])?;
        let (vector, port) = (Vector::IpPktinfo.name(), server.port().to_string());
        command.args(["escape", "--json", "--vector", &vector, "--family", "v4", "--port", &port]);
        command.args(["--gateway", &gateway_v4(0).to_string(), "--source", &client_v4(0).to_string()]);
        let (attempt, captured) = captured(lab, SERVER_V4.into(), || {
            let output = lab.client.enter(&mut command).output().context("run the escaping client")?;
            let printed = String::from_utf8_lossy(&output.stdout);
            Attempt::parse(printed.lines().last().unwrap_or_default()).context("read what the escaping client printed")
        })?;
        Ok(Escape { enforce, attempt, captured })
    };
    ["bind", "strict"].into_iter().map(try_at).collect()
}

/// Runs `action` and counts the packets for `target` that leave by each uplink meanwhile.
fn captured<T>(
    lab: &Uplinks,
    target: IpAddr,
    action: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, [usize; 2])> {
    let mut links = [Capture::start(&lab.client, lab.link(0))?, Capture::start(&lab.client, lab.link(1))?];
    let result = action()?;
    let mut captured = [0, 0];
    for (count, capture) in captured.iter_mut().zip(&mut links) {
        *count = ours(&capture.take()?, target).count();
    }
    Ok((result, captured))
}

/// `steer exec` of this very program, on the second uplink; its arguments are to follow.
fn steer(lab: &Uplinks, pins: &Path, how: &[&str]) -> anyhow::Result<Command> {
    let this = std::env::current_exe().context("find the steer binary")?;
    let mut command = Command::new(&this);
    command.arg("--bpffs").arg(pins).args(["exec", "--interface", lab.link(1)]).args(how).arg("--").arg(&this);
    // Where names are looked up on this machine does not matter to the client.
    command.env("STEER_LOG", "error").stdin(Stdio::null()).stderr(Stdio::inherit());
    Ok(command)
}

/// A pin directory of its own.
fn demo_pins() -> PathBuf {
    format!("/sys/fs/bpf/steer-demo-{}", std::process::id()).into()
}

/// Runs the client program, a process of its own that knows nothing of steer.
fn client(
    lab: &Uplinks,
    pins: &Path,
    steered: bool,
    proto: Proto,
    target: IpAddr,
    port: u16,
) -> anyhow::Result<Outcome> {
    let mut command = if steered {
        steer(lab, pins, &[])?
    } else {
        let mut command = Command::new(std::env::current_exe().context("find the steer binary")?);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        command
    };
    let proto = serde_json::to_value(proto)?.as_str().unwrap_or_default().to_owned();
    command.args(["probe", "--json", "--proto", &proto, "--port", &port.to_string(), "--target", &target.to_string()]);
    let output = lab.client.enter(&mut command).output().context("run the client")?;
    let outcomes = parse_outcomes(&String::from_utf8_lossy(&output.stdout)).context("read what the client printed")?;
    outcomes.into_iter().next().with_context(|| format!("the client printed nothing ({})", output.status))
}

/// Packets to the server, with what is needed to send them.
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

    /// Left by that uplink, only by it, and was answered.
    fn went_by(&self, uplink: u8) -> bool {
        let other = usize::from(1 - uplink);
        self.outcome.is_ok()
            && self.source_is_of(uplink)
            && self.captured[usize::from(uplink)] > 0
            && self.captured[other] == 0
    }
}

impl Escape {
    /// Whether it got out where nothing stands in its way, and only there.
    fn went_as_it_should(&self) -> bool {
        (self.captured[0] > 0) == (self.enforce == "bind")
    }
}

impl Report {
    /// Whether every unsteered connection used the first uplink and every steered one the second, alone, and the attempt to
    /// escape, which succeeds against a binding, was stopped.
    pub fn steering_works(&self) -> bool {
        let escapes = !self.escapes.is_empty() && self.escapes.iter().all(Escape::went_as_it_should);
        escapes && !self.rows.is_empty() && self.rows.iter().all(|row| row.went_by(u8::from(row.steered)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["the client ran", "protocol", "the server saw", "left by a0", "left by a1"]);
        for row in &self.rows {
            let how = if row.steered { "steer exec --interface a1" } else { "as it is" };
            let saw = row.outcome.saw.as_deref().map(str::trim).map(str::to_owned);
            table.add_row([
                how.to_owned(),
                format!("{:?}, IP{:?}", row.outcome.proto, row.outcome.family).to_lowercase().replace("ip", "IP"),
                saw.unwrap_or_else(|| format!("nothing ({})", row.outcome.error.as_deref().unwrap_or("no answer"))),
                format!("{} packets", row.captured[0]),
                format!("{} packets", row.captured[1]),
            ]);
        }
        for escape in &self.escapes {
            let said = if escape.attempt.is_ok() { "sent" } else { &escape.attempt.outcome };
            table.add_row([
                format!("steer exec --interface a1 --enforce {}", escape.enforce),
                "UDP, IPv4, naming a0 (IP_PKTINFO)".to_owned(),
                format!("(the client: {said})"),
                format!("{} packets", escape.captured[0]),
                format!("{} packets", escape.captured[1]),
            ]);
        }
        writeln!(formatter, "{table}")?;
        if self.steering_works() {
            write!(
                formatter,
                "The default route is by a0. Run by steer, the same program left by a1 only: not one of its packets was on a0.\n\
                 A program that names a0 itself gets past a mere binding; with strict, the default, it is stopped."
            )
        } else {
            let rows = self.rows.iter().filter(|row| !row.went_by(u8::from(row.steered))).count();
            let escapes = self.escapes.iter().filter(|escape| !escape.went_as_it_should()).count();
            write!(
                formatter,
                "Steering did NOT work: {} of {} attempts went another way than they should.",
                rows + escapes,
                self.rows.len() + self.escapes.len()
            )
        }
    }
}
