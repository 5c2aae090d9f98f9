//! A client of a test that keeps its sockets, and a server in a cgroup.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::Context as _;
use steer_lab::Outcome;

/// A client that keeps its sockets, and makes one afresh only after it has failed. Dropped, it is killed.
pub struct Held {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Held {
    /// Starts it; `command` is the client program, in its place, with what it is to try.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.arg("--hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        Ok(Self { child, stdin, stdout })
    }

    /// One request on each socket.
    pub fn round(&mut self) -> anyhow::Result<Vec<Outcome>> {
        self.stdin.write_all(b"\n")?;
        let line = self.stdout.next().context("the client ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of TCP and UDP. Dropped, it is killed.
pub struct Served {
    child: Child,
    port: u16,
}

impl Served {
    /// Starts it; `command` is the client program in its place.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.arg("--serve").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        Ok(Self { child, port: line.trim().parse().with_context(|| format!("a port: {line:?}"))? })
    }

    /// The port of all its sockets.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
