//! `steer top` counts sockets and packets by cgroup and link, and leaves nothing behind.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    num::NonZeroU16,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use nix::pty::{OpenptyResult, Winsize, openpty};
use serde_json::Value;
use steer_lab::{Family, Vector, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, Spy, User};

use crate::{Test, events::attempt};

pub(crate) const TESTS: &[Test] = &[
    ("counts_by_cgroup_and_link", counts_by_cgroup_and_link),
    ("reports_stopped_packets", reports_stopped_packets),
    ("leaves_nothing", leaves_nothing),
    ("on_a_terminal", on_a_terminal),
];

/// The maximum number of frames of a run.
const LIMIT: &str = "100";

/// A running `steer top --json`.
struct Run {
    child: Child,
    frames: Lines<BufReader<ChildStdout>>,
}

impl Run {
    fn start(bed: &Bed) -> anyhow::Result<Self> {
        let arguments = ["top", "--json", "--interval", "0.1", "--count", LIMIT];
        let mut child = bed.steer(&arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut run = Self { child, frames: BufReader::new(stdout).lines() };
        // It counts from before its first frame.
        run.frame()?;
        Ok(run)
    }

    fn frame(&mut self) -> anyhow::Result<Value> {
        let line = self.frames.next().context("it ended")??;
        serde_json::from_str(&line).context(line)
    }

    /// Adds up the frames until `done` returns true.
    fn until(&mut self, policy: &str, mut done: impl FnMut(&Sum) -> bool) -> anyhow::Result<Sum> {
        let mut sum = Sum::default();
        while !done(&sum) {
            let frame = self.frame().with_context(|| format!("with {sum:?}"))?;
            let policies = frame["policies"].as_array().context("no policies")?;
            let policy = policies.iter().find(|shown| shown["name"] == policy).with_context(|| frame.to_string())?;
            sum.add(policy);
        }
        Ok(sum)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of the frames of one policy.
#[derive(Debug, Default)]
struct Sum {
    sockets: u64,
    blocked: u64,
    by_cgroup: u64,
    uplink: u64,
    bytes: u64,
    others: u64,
    stopped: u64,
}

impl Sum {
    fn add(&mut self, policy: &Value) {
        self.sockets += policy["sockets"].as_u64().unwrap_or_default();
        self.blocked += policy["blocked"]["stopped_egress"].as_u64().unwrap_or_default();
        for cgroup in policy["cgroups"].as_array().into_iter().flatten() {
            self.by_cgroup += cgroup["sockets"].as_u64().unwrap_or_default();
            for link in cgroup["links"].as_array().into_iter().flatten() {
                let packets = link["packets"].as_u64().unwrap_or_default();
                if link["stopped"] == true {
                    self.stopped += packets;
                } else if link["interface"] == policy["interface"] {
                    self.uplink += packets;
                    self.bytes += link["bytes"].as_u64().unwrap_or_default();
                } else {
                    self.others += packets;
                }
            }
        }
    }
}

fn counts_by_cgroup_and_link() -> Outcome {
    let bed = Bed::new("top-counts")?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let mut run = Run::start(&bed)?;
    // Traffic outside the cgroup is not counted.
    bed.check_unsteered(None)?;
    bed.check_steered(&inner, 1)?;
    let before = bed.sockets("a1", "bound")?;
    let sum = run.until("a1", |sum| sum.sockets >= before && sum.uplink > 0)?;
    ensure!(sum.sockets == before && sum.by_cgroup == before, "{before}: {sum:?}");
    ensure!(sum.others == 0 && sum.stopped == 0 && sum.blocked == 0, "{sum:?}");
    ensure!(sum.bytes >= sum.uplink * 28, "less than its headers: {sum:?}");
    Ok(())
}

fn reports_stopped_packets() -> Outcome {
    let bed = Bed::new("top-stopped")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let mut run = Run::start(&bed)?;
    // Its programs run beside the guard, and let no packet out.
    let mut spy = Spy::on(&bed, &["a1"])?;
    for user in [User::Nobody, User::Root] {
        attempt(&bed, &bed.cgroup, Vector::IpPktinfo, user, Family::V4)?;
        attempt(&bed, &bed.cgroup, Vector::Ipv6Pktinfo, user, Family::V6)?;
    }
    let sum = run.until("a1", |sum| sum.blocked > 0)?;
    spy.saw_nothing()?;
    ensure!(sum.stopped > 0 && sum.others == 0, "{sum:?}");
    drop(run);
    // Without a guard the same packets get out and are counted.
    let bed = Bed::new("top-leaks")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer"])?;
    let mut run = Run::start(&bed)?;
    attempt(&bed, &bed.cgroup, Vector::IpPktinfo, User::Nobody, Family::V4)?;
    let sum = run.until("a1", |sum| sum.others > 0)?;
    ensure!(sum.stopped == 0 && sum.blocked == 0, "{sum:?}");
    Ok(())
}

fn leaves_nothing() -> Outcome {
    let bed = Bed::new("top-leaves")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let explain = || bed.succeed(&["explain", bed.cgroup.path()]);
    let mut run = Run::start(&bed)?;
    // The attachment is unchanged meanwhile, and steer recognises the programs of `steer top`.
    ensure!(bed.status()?["policies"][0]["cgroups"][0]["complete"] == true);
    let explained = explain()?;
    ensure!(explained.contains("meter_sockets") && !explained.contains("runs after"), "{explained}");
    let examined = bed.doctor(&[])?;
    ensure!(!format!("{examined:?}").contains("meter_sockets"), "{examined:?}");
    run.child.kill()?;
    run.child.wait()?;
    // The kernel detaches programs with a delay.
    wait_until("its programs to be gone", PATIENCE, || explain().is_ok_and(|text| !text.contains("meter_")))?;
    bed.check_steered(&bed.cgroup, 1)?;
    let nothing = Bed::new("top-nothing")?;
    let refused = nothing.run(&["top", "--count", "1"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("nothing is steered"), "{refused:?}");
    Ok(())
}

/// A terminal with a program that runs on it.
pub(crate) struct Terminal {
    pub(crate) child: Child,
    screen: vt100::Parser,
    bytes: Receiver<Vec<u8>>,
    keys: fs::File,
}

impl Terminal {
    pub(crate) fn start(command: Command) -> anyhow::Result<Self> {
        Self::start_for(command, None)
    }

    /// The terminal belongs to a user.
    pub(crate) fn start_for(mut command: Command, user: Option<(u32, u32)>) -> anyhow::Result<Self> {
        const ROWS: NonZeroU16 = NonZeroU16::new(16).unwrap();
        const COLUMNS: NonZeroU16 = NonZeroU16::new(140).unwrap();
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        if let Some((uid, _)) = user {
            std::os::unix::fs::fchown(&slave, Some(uid), None)?;
        }
        let end = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
        command.stdin(end(&slave)?).stdout(end(&slave)?).stderr(end(&slave)?).env("TERM", "xterm-256color");
        let child = command.spawn()?;
        drop((command, slave));
        let keys = fs::File::from(master.try_clone()?);
        let mut master = fs::File::from(master);
        let (sender, bytes) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading a terminal that no process has open is an error.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, screen: vt100::Parser::new(ROWS, COLUMNS, 0), bytes, keys })
    }

    pub(crate) fn wait_for(&mut self, what: &str, shown: impl Fn(&vt100::Screen) -> bool) -> Outcome {
        let end = Instant::now() + PATIENCE;
        while !shown(self.screen.screen()) {
            match self.bytes.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => bail!("no {what} on the screen:\n{}", self.screen.screen().contents()),
            }
        }
        Ok(())
    }

    fn press(&mut self, keys: &str) -> Outcome {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_a_terminal() -> Outcome {
    let bed = Bed::new("top-terminal")?;
    let inner = bed.cgroup.child("client")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"second-line\"\ninterface = \"a1\"\ncgroups = [\"@/client\"]\n")?;
    let load = bed.load(&inner)?;
    let mut terminal = Terminal::start(bed.steer(&["top", "--interval", "0.5"]))?;
    let line = |screen: &vt100::Screen, begin: &str| {
        screen.contents().lines().find(|line| line.trim_start().starts_with(begin)).map(str::to_owned)
    };
    let by_uplink = |line: String| line.contains(" a1 ") && line.contains('B');
    terminal.wait_for("traffic by a1", |screen| {
        line(screen, "second-line").is_some() && line(screen, "/steer-test").is_some_and(by_uplink)
    })?;
    ensure!(terminal.screen.screen().alternate_screen());
    ensure!(line(terminal.screen.screen(), "second-line").is_some_and(|line| line.contains("a1 (")));
    // docs/top.txt is made with: STEER_SCREENS=$PWD/docs cargo xtask test on_a_terminal.
    if let Some(directory) = std::env::var_os("STEER_SCREENS") {
        fs::write(Path::new(&directory).join("top.txt"), terminal.screen.screen().contents() + "\n")?;
    }
    terminal.press("s")?;
    terminal.wait_for("another order", |screen| screen.contents().contains("by bytes"))?;
    terminal.press("q")?;
    terminal.wait_for("the shell", |screen| !screen.alternate_screen())?;
    ensure!(terminal.child.wait()?.success());
    // What was asked for by number stays on the terminal.
    let mut terminal = Terminal::start(bed.steer(&["top", "--interval", "0.2", "-n", "1"]))?;
    terminal.wait_for("the last reading", |screen| {
        !screen.alternate_screen() && line(screen, "second-line").is_some() && line(screen, "/steer-test").is_some()
    })?;
    ensure!(terminal.child.wait()?.success());
    load.stop()?;
    Ok(())
}
