//! A client that stays in its cgroup and network namespace, and sends in several ways when asked.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::prober::{Request, Sent};

/// A running client. Dropped, it is killed.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Prober {
    /// Starts it, and waits until it runs; `command` is the client program, in its place, or what becomes it. Without an answer the
    /// error is what the command printed.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.arg("--prober").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let mut prober = Self { child, stdin, stdout };
        // An answer to a request that needs no socket.
        if prober.ask(Request::SendKept(1)).and_then(|()| prober.answer()).is_err() {
            let mut complaint = String::new();
            let mut stderr = prober.child.stderr.take().context("no pipe")?;
            std::io::Read::read_to_string(&mut stderr, &mut complaint)?;
            anyhow::bail!("{}: {}", prober.child.wait()?, complaint.trim());
        }
        Ok(prober)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks; [`Self::answer`] is to be called once for it.
    pub fn ask(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(writeln!(self.stdin, "{}", serde_json::to_string(&request)?)?)
    }

    /// What it did.
    pub fn answer(&mut self) -> anyhow::Result<Vec<Sent>> {
        let line = self.stdout.next().context("the client ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Ends it.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(!status.success(), "it had ended before: {status}");
        Ok(())
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
