//! Client programs of a test that act on request, such as one that keeps its sockets, and a server in a cgroup.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use steer_lab::Outcome;

/// A client program that does something for each line of its input. On drop, it is killed.
pub(crate) struct RequestClient {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl RequestClient {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        Ok(Self { child, stdin, stdout })
    }

    /// Its answer to a line.
    pub(crate) fn request<T: DeserializeOwned>(&mut self, line: &str) -> anyhow::Result<T> {
        writeln!(self.stdin, "{line}")?;
        let answer = self.stdout.next().context("the client ended")??;
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for RequestClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that keeps its sockets and makes a new one only after a failure. On drop, it is killed.
pub struct Held(RequestClient);

impl Held {
    /// Starts it. `command` is the client program in its cgroup, with the arguments for its attempts.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        RequestClient::start(command.arg("--hold")).map(Self)
    }

    /// Sends one request on each socket.
    pub fn round(&mut self) -> anyhow::Result<Vec<Outcome>> {
        self.0.request("")
    }

    /// Binds each socket to a link before it sends.
    pub fn round_bound_to(&mut self, link: &str) -> anyhow::Result<Vec<Outcome>> {
        self.0.request(link)
    }

    /// Holds the locks of its UDP sockets until it ends: calls on them wait. Needs root. Returns how many.
    pub fn lock(&mut self) -> anyhow::Result<usize> {
        self.0.request("/lock")
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }
}

/// A server for TCP and UDP. On drop, it is killed.
pub struct Served {
    child: Child,
    port: u16,
}

impl Served {
    /// Starts it; `command` is the client program in its cgroup.
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
