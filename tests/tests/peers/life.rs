//! A service while its uplink is removed, added and renamed, and while its manager is restarted.

use std::process::Command;

use anyhow::{Context as _, ensure};
use steer_lab::{Outcome as Answer, Server, client_v4, client_v6, parse_outcomes};
use steer_tests::{Confined, Held, Level, Means, Outcome, Spy, User, VRF, output};

use super::{Cells, not_here};

static CELLS: Cells = Cells::new();

const MISSING: &str = "started while the uplink is missing";
const APPEARS: &str = "then it appears";
const STARTED: &str = "started";
const DELETED: &str = "the uplink is deleted";
const AGAIN: &str = "it is made again";
const AFRESH: &str = "the service is started again";
const RENAMED: &str = "the uplink is renamed";
const NAMED_BACK: &str = "it is named as before";
const MANAGER: &str = "the manager is started afresh";
const LOOPBACK: &str = "calls 127.0.0.1";
const LOOPBACK_AS_ROOT: &str = "calls 127.0.0.1, as root";

const ROWS: [&str; 11] =
    [MISSING, APPEARS, STARTED, DELETED, AGAIN, AFRESH, RENAMED, NAMED_BACK, MANAGER, LOOPBACK, LOOPBACK_AS_ROOT];

/// The result of a service's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All were answered over the uplink.
    Works,
    /// A packet left by another link.
    Leaks,
    /// Nothing was answered.
    Closed,
    /// Some were answered.
    Partly,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Leaks => "**leaks**",
            Self::Closed => "closed",
            Self::Partly => "works in part",
        }
    }

    /// The result of these answers; `leaked` is whether a packet left by another link meanwhile.
    fn of(answers: &[Answer], leaked: bool) -> Self {
        let by_uplink = |answer: &&Answer| {
            let saw = answer.saw.as_deref();
            answer.is_ok() && [client_v4(1).to_string(), client_v6(1).to_string()].iter().any(|ip| saw == Some(ip))
        };
        let answered = answers.iter().filter(|answer| answer.is_ok()).count();
        match answers.iter().filter(by_uplink).count() {
            _ if leaked => Self::Leaks,
            by_uplink if by_uplink < answered => Self::Leaks,
            0 => Self::Closed,
            all if all == answers.len() => Self::Works,
            _ => Self::Partly,
        }
    }
}

/// The required result for steer. Only strict closes a socket that is bound to a renamed interface.
fn expected(row: &str, level: Level) -> State {
    match row {
        RENAMED if level < Level::Strict => State::Works,
        MISSING | DELETED | RENAMED | LOOPBACK | LOOPBACK_AS_ROOT => State::Closed,
        _ => State::Works,
    }
}

struct Life {
    confined: Confined,
    means: Means,
    failures: Vec<String>,
}

impl Life {
    /// The command of a service.
    fn command(&self) -> anyhow::Result<Command> {
        let mut command = self.confined.client(User::Root)?;
        command.args(self.confined.bed.everything());
        Ok(command)
    }

    /// Makes the service send a request on each of its sockets, and records the result. It does so twice, because a
    /// socket that breaks shows it the first time.
    fn observe(&mut self, row: &'static str, service: &mut Held) -> anyhow::Result<()> {
        self.confined.settle()?;
        let net = &self.confined.bed.net;
        let mut links = self.confined.links().to_vec();
        // The uplink may be missing or have another name now.
        links[0] = net.link(1);
        links.retain(|link| matches!(net.client.link_index(link), Ok(Some(_))));
        let mut spy = Spy::on(&self.confined.bed, &links)?;
        service.round()?;
        let answers = service.round()?;
        let leaked = !spy.take()?.is_empty();
        self.note(row, State::of(&answers, leaked));
        Ok(())
    }

    fn note(&mut self, row: &'static str, state: State) {
        CELLS.record(row, self.means, state.text());
        if let Means::Steer(level) = self.means
            && state != expected(row, level)
        {
            self.failures.push(format!("{row}: {state:?}, expected {:?}", expected(row, level)));
        }
    }

    /// Restores the uplink as its manager would.
    fn make_uplink(&mut self) -> anyhow::Result<()> {
        self.confined.bed.net.create_uplink(1)?;
        if self.means == Means::VrfExec { self.confined.bed.enslave() } else { Ok(()) }
    }
}

pub(super) fn check(means: Means) -> Outcome {
    let Some(confined) = not_here(Confined::new(means, "peer-life"))? else {
        for row in ROWS {
            CELLS.record(row, means, "not here");
        }
        return Ok(());
    };
    let mut life = Life { confined: confined.with_daemon()?, means, failures: Vec::new() };

    life.confined.bed.net.remove_uplink(1)?;
    let mut service = Held::start(&mut life.command()?)?;
    life.observe(MISSING, &mut service)?;
    life.make_uplink()?;
    life.observe(APPEARS, &mut service)?;
    drop(service);

    let mut service = Held::start(&mut life.command()?)?;
    life.observe(STARTED, &mut service)?;
    life.confined.bed.net.remove_uplink(1)?;
    life.observe(DELETED, &mut service)?;
    life.make_uplink()?;
    life.observe(AGAIN, &mut service)?;
    drop(service);

    let mut service = Held::start(&mut life.command()?)?;
    life.observe(AFRESH, &mut service)?;
    life.confined.bed.net.rename_uplink(1, "other")?;
    life.observe(RENAMED, &mut service)?;
    life.confined.bed.net.rename_uplink(1, "a1")?;
    life.observe(NAMED_BACK, &mut service)?;
    if life.confined.restart_manager()? {
        life.observe(MANAGER, &mut service)?;
    } else {
        CELLS.record(MANAGER, means, "n/a");
    }

    let server = Server::start(&life.confined.bed.net.client)?;
    for (row, user) in [(LOOPBACK, User::Nobody), (LOOPBACK_AS_ROOT, User::Root)] {
        let mut client = life.confined.client(user)?;
        client.args(["--json", "--target", "127.0.0.1", "--proto", "tcp", "--proto", "udp"]);
        let done = output(client.args(["--port", &server.port().to_string()]))?;
        let answers = parse_outcomes(&done.stdout).with_context(|| format!("{done:?}"))?;
        let answered = answers.iter().filter(|answer| answer.is_ok()).count();
        life.note(row, if answered == 0 { State::Closed } else { State::Works });
    }
    ensure!(life.failures.is_empty(), "{}", life.failures.join("\n"));
    Ok(())
}

pub(super) fn print() {
    let legend = format!(
        "- works: TCP, UDP, ping and raw, IPv4 and IPv6, by the uplink alone, and as root; closed: nothing leaves; leaks: by another link\n\
         - what manages it: PID 1, by `systemctl daemon-reexec`; steer's daemon, killed and started again\n\
         - in the column of `ip vrf exec` the uplink is the link in {VRF}, which has an unreachable default route besides, and is \
         put into {VRF} again with its routes when it is made again"
    );
    CELLS.print("What becomes of a service", ROWS.into_iter(), &legend);
}
