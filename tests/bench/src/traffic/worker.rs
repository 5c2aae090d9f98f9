//! The job of a worker: it sends from its cgroup and its network namespace.
//!
//! **Invariant:** the server's sockets are made before the worker joins its cgroup, so no policy applies to them.

use std::{
    array,
    fs::File,
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use steer_lab::Family;

use super::{
    flow::{Flow, Server},
    load::Load,
};
use crate::worker;

/// The namespaces of a worker, as files like those in `/proc/PID/fd`.
#[derive(Debug, clap::Args)]
#[group(id = "namespaces")]
pub(crate) struct Place {
    /// The network namespace it sends from.
    own: PathBuf,
    /// The namespace with the uplinks.
    uplinks: PathBuf,
    /// The server's.
    server: PathBuf,
    #[command(flatten)]
    worker: worker::Place,
}

/// The answer to a [`Load`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) elapsed: Duration,
    /// The bytes that each uplink sent during the turn.
    pub(super) bytes: [u64; 2],
}

/// The main function of a worker process.
pub(crate) fn serve(place: &Place) -> Result<()> {
    worker::serve(|| {
        enter(&place.server)?;
        let servers = [Family::V4, Family::V6].map(Server::open);
        enter(&place.uplinks)?;
        let mut counters = Counters::open().context("open the interfaces' counters")?;
        enter(&place.own)?;
        place.worker.join()?;
        let [v4, v6] = servers.map(|server| Flow::open(server?));
        let (v4, v6) = (v4.context("open the IPv4 sockets")?, v6.context("open the IPv6 sockets")?);
        Ok(move |Load { kind, family }| {
            let flow = match family {
                Family::V4 => &v4,
                Family::V6 => &v6,
            };
            let before = counters.read()?;
            let elapsed = flow.run(kind).with_context(|| format!("{kind:?}, {family:?}"))?;
            let after = counters.read()?;
            Ok(Answer { elapsed, bytes: array::from_fn(|uplink| after[uplink].saturating_sub(before[uplink])) })
        })
    })
}

fn enter(netns: &Path) -> Result<()> {
    let entered = File::open(netns).and_then(|netns| Ok(setns(netns, CloneFlags::CLONE_NEWNET)?));
    entered.with_context(|| format!("enter the network namespace {}", netns.display()))
}

/// The interface counters of the network namespace of the thread that opened the file, whichever thread reads them.
struct Counters(File);

impl Counters {
    fn open() -> io::Result<Self> {
        File::open("/proc/thread-self/net/dev").map(Self)
    }

    /// The bytes that each uplink has sent.
    fn read(&mut self) -> io::Result<[u64; 2]> {
        let mut table = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut table)?;
        Ok(["a0", "a1"].map(|link| sent_bytes(&table, link).unwrap_or(0)))
    }
}

/// The line of this interface, among lines such as `a0: 1 2 3 4 5 6 7 8 SENT_BYTES ...`.
fn sent_bytes(table: &str, link: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == link).then(|| numbers.split_whitespace().nth(8)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_the_column_of_what_was_sent() {
        let table = "Inter-|   Receive                            |  Transmit\n\
                     face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n\
                     \x20  lo:     0       0    0    0    0     0          0         0        0       0    0\n\
                     \x20  a1:   100       1    0    0    0     0          0         0     4711       3    0\n";
        assert_eq!(sent_bytes(table, "a1"), Some(4711));
        assert_eq!(sent_bytes(table, "a0"), None);
    }
}
