//! A client that keeps its sockets: one for each server and kind. It uses a socket repeatedly and makes a new one only
//! after a failure, like a program that reconnects.
//!
//! **Invariant:** a round is one request on every socket. A socket that was answered in the previous round is used
//! again.

use crate::{
    lock,
    probe::{Outcome, Probe, Proto, errno_name},
};
use socket2::Socket;
use std::io;

/// The sockets.
#[derive(Debug)]
pub struct Hold {
    sockets: Vec<(Probe, Option<Socket>)>,
}

impl Hold {
    /// One socket for each probe, made in the first round.
    pub fn new(probes: Vec<Probe>) -> Self {
        Self { sockets: probes.into_iter().map(|probe| (probe, None)).collect() }
    }

    /// Holds the locks of the UDP sockets until the process ends. Returns how many.
    pub fn lock(&self) -> io::Result<usize> {
        let sockets =
            self.sockets.iter().filter(|(probe, _)| probe.proto == Proto::Udp).filter_map(|(_, kept)| kept.as_ref());
        sockets.map(lock::hold).try_fold(0, |count, held| held.map(|()| count + 1))
    }

    /// Sends a request on each socket, one after the other, and waits for the answers. If a link is given, binds the sockets
    /// to it first.
    pub fn round(&mut self, link: Option<&str>) -> Vec<Outcome> {
        self.sockets.iter_mut().map(|(probe, kept)| round(probe, kept, link)).collect()
    }
}

fn round(probe: &Probe, kept: &mut Option<Socket>, link: Option<&str>) -> Outcome {
    let mut outcome = probe.begin();
    match ask(probe, kept.take(), link, &mut outcome) {
        Ok(socket) => *kept = Some(socket),
        Err(error) => outcome.error = Some(errno_name(&error)),
    }
    outcome
}

/// Returns the socket if it still works.
fn ask(probe: &Probe, kept: Option<Socket>, link: Option<&str>, outcome: &mut Outcome) -> io::Result<Socket> {
    let is_new = kept.is_none();
    let socket = kept.map_or_else(|| probe.open(), Ok)?;
    if let Some(link) = link {
        socket.bind_device(Some(link.as_bytes()))?;
    }
    if is_new {
        probe.connect(&socket, outcome)?;
    }
    let answered = probe.exchange(&socket, 0, outcome);
    outcome.look_at(&socket)?;
    answered.map(|()| socket)
}
