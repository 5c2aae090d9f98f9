//! A client that would send by another link than it may.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::Context as _;
use steer_lab::NewSocket;

use crate::{Bed, Cgroup, User};

/// It does something when asked only. Dropped, it is killed.
pub struct Strayed {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Strayed {
    /// Starts it in a cgroup; once it is there, so are its first sockets.
    pub fn start(bed: &Bed, cgroup: &Cgroup, user: User, link: &str) -> anyhow::Result<Self> {
        let mut command = bed.client(Some(cgroup), user)?;
        let mut child = command.args(["--stray", link]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let mut strayed = Self { child, stdin, stdout };
        strayed.round(None)?;
        Ok(strayed)
    }

    /// Has it make sockets, and, given a port, send to that from all it has. Returns what the new ones were bound to.
    pub fn round(&mut self, port: Option<u16>) -> anyhow::Result<Vec<NewSocket>> {
        let port = port.map(|port| port.to_string()).unwrap_or_default();
        writeln!(self.stdin, "{port}")?;
        let line = self.stdout.next().context("the client ended")??;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Strayed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
