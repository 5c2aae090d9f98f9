//! A client that talks all the time, and measures for how long no answer came.
//!
//! **Invariant:** an interruption is never shorter than the time in which nothing was answered: it lasts from the answer before the
//! first failed attempt to the next answer.

use crate::{
    error::{Error, Result},
    probe::errno_name,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The time between the attempts of a flow.
const EVERY: Duration = Duration::from_millis(10);
/// An attempt that takes longer is an interruption, even if it is answered.
const SLOW: Duration = Duration::from_millis(30);
/// The timeout of an attempt with a new socket.
const NEW: Duration = Duration::from_millis(50);
/// The timeout of an attempt on a connection that is kept: the kernel sends again after 200 ms, 400 ms, and so on.
const KEPT: Duration = Duration::from_secs(5);

/// How a flow talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A new TCP connection for each request.
    Tcp,
    /// A new UDP socket for each request.
    Udp,
    /// One TCP connection, made again when it has failed.
    KeptTcp,
}

/// Flows to targets.
#[derive(Clone, Debug)]
pub struct Gaps {
    /// The targets.
    pub targets: Vec<SocketAddr>,
    /// The link to bind to, for a flow to compare with.
    pub bind: Option<String>,
}

/// The result of one flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The target.
    pub target: SocketAddr,
    /// The way.
    pub way: Way,
    /// Answered requests.
    pub answered: u64,
    /// Failed attempts, by the name of the errno.
    pub errors: BTreeMap<String, u64>,
    /// The length of each interruption, in microseconds.
    pub interruptions_us: Vec<u64>,
}

impl Flow {
    /// Parses the last line that `steer-probe --gaps` printed.
    pub fn parse_all(output: &str) -> Result<Vec<Self>> {
        let line = output.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source })
    }
}

impl Gaps {
    /// Talks until `stop` is set, and calls `started` after the first attempt of each flow.
    pub fn run(&self, stop: &AtomicBool, started: impl FnOnce() + Send) -> Vec<Flow> {
        let ways = [Way::Tcp, Way::Udp, Way::KeptTcp];
        let flows = self.targets.iter().flat_map(|target| ways.map(|way| (*target, way)));
        let flows: Vec<_> = flows.collect();
        let waiting = Mutex::new((flows.len(), Some(started)));
        let begun = || {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.0 -= 1;
            if waiting.0 == 0
                && let Some(started) = waiting.1.take()
            {
                started();
            }
        };
        thread::scope(|scope| {
            let run = |(target, way)| scope.spawn(move || self.flow(target, way, stop, begun));
            let threads: Vec<_> = flows.into_iter().map(run).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        })
    }

    fn flow(&self, target: SocketAddr, way: Way, stop: &AtomicBool, first_attempt: impl Fn()) -> Flow {
        let mut flow = Flow { target, way, answered: 0, errors: BTreeMap::new(), interruptions_us: Vec::new() };
        let (mut kept, mut last, mut is_interrupted, mut has_begun) = (None, Instant::now(), false, false);
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            match self.attempt(target, way, &mut kept) {
                Ok(()) => {
                    let now = Instant::now();
                    if flow.answered > 0 && (is_interrupted || now - begin > SLOW) {
                        flow.interruptions_us.push(u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX));
                    }
                    (last, is_interrupted) = (now, false);
                    flow.answered += 1;
                }
                Err(error) => {
                    is_interrupted = true;
                    *flow.errors.entry(errno_name(&error)).or_default() += 1;
                }
            }
            if !std::mem::replace(&mut has_begun, true) {
                first_attempt();
            }
            thread::sleep(EVERY.saturating_sub(begin.elapsed()));
        }
        if is_interrupted {
            flow.interruptions_us.push(u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        flow
    }

    fn attempt(&self, target: SocketAddr, way: Way, kept: &mut Option<Socket>) -> io::Result<()> {
        if way != Way::KeptTcp {
            return talk(&mut self.open(target, way)?);
        }
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => self.open(target, way)?,
        };
        talk(&mut socket)?;
        *kept = Some(socket);
        Ok(())
    }

    fn open(&self, target: SocketAddr, way: Way) -> io::Result<Socket> {
        let (kind, protocol) = match way {
            Way::Tcp | Way::KeptTcp => (Type::STREAM, Protocol::TCP),
            Way::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let socket = Socket::new(Domain::for_address(target), kind, Some(protocol))?;
        if let Some(link) = &self.bind {
            socket.bind_device(Some(link.as_bytes()))?;
        }
        let timeout = if way == Way::KeptTcp { KEPT } else { NEW };
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        socket.connect_timeout(&target.into(), NEW)?;
        Ok(socket)
    }
}

/// Sends a request and waits for the answer. The end of the stream is an error.
fn talk(socket: &mut Socket) -> io::Result<()> {
    socket.write_all(b"gaps\n")?;
    match socket.read(&mut [0; 256])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
