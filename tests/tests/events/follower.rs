//! `steer events` in follow mode.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};
use steer_lab::{Family, Vector};
use steer_tests::{Bed, Outcome, User};

use super::attempt;

/// `steer events` in follow mode.
pub(super) struct Follower {
    pub(super) child: Child,
    pub(super) lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Starts it, and returns after its first line.
    pub(super) fn start(bed: &Bed, arguments: &[&str]) -> anyhow::Result<(Self, String)> {
        let pid = attempt(bed, &bed.cgroup, Vector::Bindtodevice, User::Root, Family::V4)?;
        let mut command = bed.steer(&["events"]);
        // The parent shell may ignore the signal for background jobs.
        let by_default = || {
            // SAFETY: the default action is no handler.
            unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }?;
            Ok(())
        };
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(by_default) };
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let mut follower = Self { child, lines };
        let line = follower.next()?;
        ensure!(line.contains(&pid.to_string()), "not of process {pid}: {line}");
        Ok((follower, line))
    }

    pub(super) fn next(&mut self) -> anyhow::Result<String> {
        Ok(self.lines.next().context("it ended")??)
    }

    pub(super) fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits for its end. Returns its exit status, its remaining output, and its standard error.
    pub(super) fn end(mut self) -> anyhow::Result<(std::process::ExitStatus, Vec<String>, String)> {
        let mut rest = Vec::new();
        for line in &mut self.lines {
            rest.push(line?);
        }
        let complaint = std::io::read_to_string(self.child.stderr.take().context("no pipe")?)?;
        Ok((self.child.wait()?, rest, complaint))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
