//! The demonstration: a client with two uplinks and a server behind both, all in network namespaces of their own; the same
//! client program run as it is, and run by `steer exec`.
//!
//! **Invariant:** what is printed was measured: by the server, and by captures on both links. The namespaces have no names
//! and end with this process, the pins are in a directory of their own and are removed with it.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;
use steer_lab::{
    Capture, Family, Outcome, Packet, Proto, SERVER_V4, SERVER_V6, Server, Uplinks, leaks, parse_outcomes,
};

use crate::datapath::{self, Pins, bpffs};

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

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The connections.
    pub rows: Vec<Row>,
}

/// Makes the lab, runs the client, and removes everything.
pub fn run() -> anyhow::Result<Report> {
    let lab = Uplinks::new().context("make the network namespaces (needs CAP_SYS_ADMIN)")?;
    let server = Server::start(&lab.server).context("start the server")?;
    let pins = demo_pins();
    let rows = connections(&lab, &server, &pins);
    // The keeper of the last command does the same in its own time.
    if let Some(located) = bpffs::locate(&pins) {
        datapath::off(&Pins::new(located))?;
    }
    Ok(Report { rows: rows? })
}

/// Every connection, unsteered and then steered.
fn connections(lab: &Uplinks, server: &Server, pins: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for steered in [false, true] {
        for proto in PROTOS {
            for target in [SERVER_V4.into(), SERVER_V6.into()] {
                let mut links = [Capture::start(&lab.client, lab.link(0))?, Capture::start(&lab.client, lab.link(1))?];
                let outcome = client(lab, pins, steered, proto, target, server.port())?;
                let mut captured = [0, 0];
                for (count, capture) in captured.iter_mut().zip(&mut links) {
                    *count = ours(&capture.take()?, target).count();
                }
                rows.push(Row { steered, outcome, captured });
            }
        }
    }
    Ok(rows)
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
    target: std::net::IpAddr,
    port: u16,
) -> anyhow::Result<Outcome> {
    let this = std::env::current_exe().context("find the steer binary")?;
    let mut command = Command::new(&this);
    if steered {
        command.arg("--bpffs").arg(pins).args(["exec", "--interface", lab.link(1), "--"]).arg(&this);
    }
    let proto = serde_json::to_value(proto)?.as_str().unwrap_or_default().to_owned();
    command.args(["probe", "--json", "--proto", &proto, "--port", &port.to_string(), "--target", &target.to_string()]);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = lab.client.enter(&mut command).output().context("run the client")?;
    let outcomes = parse_outcomes(&String::from_utf8_lossy(&output.stdout)).context("read what the client printed")?;
    outcomes.into_iter().next().with_context(|| format!("the client printed nothing ({})", output.status))
}

/// Packets to the server, with what is needed to send them.
fn ours(packets: &[Packet], target: std::net::IpAddr) -> impl Iterator<Item = &Packet> {
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

impl Report {
    /// Whether every unsteered connection used the first uplink and every steered one the second, alone.
    pub fn steering_works(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.went_by(u8::from(row.steered)))
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
        writeln!(formatter, "{table}")?;
        if self.steering_works() {
            write!(
                formatter,
                "The default route is by a0. Run by steer, the same program left by a1 only: not one of its packets was on a0."
            )
        } else {
            let wrong = self.rows.iter().filter(|row| !row.went_by(u8::from(row.steered))).count();
            write!(
                formatter,
                "Steering did NOT work: {wrong} of {} connections went another way than they should.",
                self.rows.len()
            )
        }
    }
}
