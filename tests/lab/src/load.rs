//! Continuous load: new sockets as fast as possible, until it is stopped.
//!
//! **Invariant:** every attempt is a new socket and is counted exactly once, as a success or under one errno.

use crate::{
    error::{Error, Result},
    probe::{Probe, Proto, errno_name, local},
    sys,
};
use serde::{Deserialize, Serialize};
use socket2::Socket;
use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// TCP connections and connected UDP datagrams with answers, to each target in turn.
#[derive(Clone, Debug)]
pub struct Load {
    /// The targets.
    pub targets: Vec<SocketAddr>,
    /// The timeout of a connection.
    pub timeout_ms: u64,
}

/// The results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// TCP connections established and datagrams answered.
    pub ok: u64,
    /// Failed attempts, by the name of the errno.
    pub errors: BTreeMap<String, u64>,
    /// Successful attempts, by the socket's own address.
    pub locals: BTreeMap<IpAddr, u64>,
    /// All sockets that were made, by the interface that they were bound to at the end; 0 for none.
    pub bound: BTreeMap<i32, u64>,
}

impl LoadReport {
    /// All attempts.
    pub fn attempts(&self) -> u64 {
        self.ok + self.errors.values().sum::<u64>()
    }

    /// Parses the last line that `steer-probe --repeat-until-stdin-closes` printed.
    pub fn parse(output: &str) -> Result<Self> {
        let line = output.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source })
    }
}

impl Load {
    /// Makes sockets until `stop` is set, and calls `started` after the first round.
    pub fn run(&self, stop: &AtomicBool, started: impl FnOnce()) -> LoadReport {
        let mut report = LoadReport::default();
        self.round(&mut report);
        started();
        while !stop.load(Ordering::Relaxed) {
            self.round(&mut report);
        }
        report
    }

    fn round(&self, report: &mut LoadReport) {
        for target in &self.targets {
            for proto in [Proto::Tcp, Proto::Udp] {
                let probe = Probe { timeout_ms: self.timeout_ms, ..Probe::new(proto, target.ip(), target.port()) };
                match attempt(&probe, report) {
                    Ok(local) => {
                        report.ok += 1;
                        if let Some(local) = local {
                            *report.locals.entry(local).or_default() += 1;
                        }
                    }
                    Err(error) => *report.errors.entry(errno_name(&error)).or_default() += 1,
                }
            }
        }
    }
}

fn attempt(probe: &Probe, report: &mut LoadReport) -> io::Result<Option<IpAddr>> {
    let socket = probe.open()?;
    let result = reach(probe, &socket);
    let bound = sys::socket_option(&socket, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX)?;
    *report.bound.entry(bound).or_default() += 1;
    result
}

fn reach(probe: &Probe, socket: &Socket) -> io::Result<Option<IpAddr>> {
    if probe.proto == Proto::Tcp {
        // Closing resets the connection: no TIME_WAIT, or the ports would run out within a minute.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.connect(&probe.address())?;
    if probe.proto == Proto::Udp {
        socket.send(b"load\n")?;
        // If the socket were closed at once, the kernel would reply to the answer by a route of its own choice.
        socket.recv(&mut [MaybeUninit::uninit(); 64])?;
    }
    Ok(local(socket))
}
