//! Clients that connect by TCP all the while, and connections that they keep: what becomes of both when their line fails.
//!
//! **Invariant:** all sockets of a run are made by one thread and noted in the order in which they were made. No socket
//! outlives its run.

use crate::{
    error::{Doing, Error, Result},
    probe::errno_name,
    sys,
};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::LocalSet,
    time::{Instant, sleep_until, timeout_at},
};

/// The time between two looks whether the run is over.
const LOOK: Duration = Duration::from_millis(5);

/// The clients of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Clients {
    /// The server.
    pub target: SocketAddr,
    /// How many clients connect.
    pub count: u32,
    /// The time between two connections of a client. An attempt that takes longer is given up for the next one.
    pub interval: Duration,
    /// How many connections are made at the start and kept.
    pub kept: u32,
    /// The run is over once connections with this many own addresses were made, and the kept ones of the first address
    /// have ended if there is more than one...
    pub addresses: usize,
    /// ... and this time has passed,
    pub after: Duration,
    /// or after this time.
    pub patience: Duration,
}

/// Sockets that were made one after the other and bound to the same interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// The index; 0 for none, and not positive for one that does not exist.
    pub interface: i32,
    /// When the first one was made.
    pub since: Duration,
    /// How many.
    pub made: u64,
}

/// Connections from one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// When the first one was established.
    pub first: Duration,
    /// How many.
    pub count: u64,
}

/// The results. All times are readings of [`now`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsReport {
    /// The sockets of the clients.
    pub stretches: Vec<Stretch>,
    /// Their connections.
    pub connected: BTreeMap<IpAddr, Connected>,
    /// Attempts that failed, by the name of the errno.
    pub errors: BTreeMap<String, u64>,
    /// The end of each kept connection that has ended, and the name of its errno.
    pub ended: Vec<(Duration, String)>,
}

/// The clock that all processes of the machine share.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Into::into)
}

impl Clients {
    /// One client that connects once.
    pub fn once(target: SocketAddr) -> Self {
        let second = Duration::from_secs(1);
        Self { target, count: 1, interval: second, kept: 0, addresses: 1, after: Duration::ZERO, patience: second }
    }

    /// Runs them in the calling thread's network namespace.
    pub fn run(self) -> Result<ClientsReport> {
        let doing = || format!("connect to {} again and again", self.target);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(doing)?;
        LocalSet::new().block_on(&runtime, self.all()).doing(doing)
    }

    async fn all(self) -> io::Result<ClientsReport> {
        let report = std::rc::Rc::new(RefCell::new(ClientsReport::default()));
        let failed = std::rc::Rc::new((Notify::new(), RefCell::new(None)));
        let end = Instant::now() + self.patience;
        for _ in 0..self.kept {
            let Ok(kept) = timeout_at(end, TcpStream::connect(self.target)).await else { break };
            tokio::task::spawn_local(keep(kept?, report.clone()));
        }
        for _ in 0..self.count {
            let (report, failed) = (report.clone(), failed.clone());
            tokio::task::spawn_local(async move {
                if let Err(error) = self.one(&report).await {
                    failed.1.replace(Some(error));
                    failed.0.notify_one();
                }
            });
        }
        let mut over = None;
        loop {
            let is_done = {
                let report = report.borrow();
                report.connected.len() >= self.addresses
                    && (self.addresses < 2 || report.ended.len() >= usize::try_from(self.kept).unwrap_or(usize::MAX))
            };
            if is_done {
                over.get_or_insert_with(|| Instant::now() + self.after);
            }
            let over = over.unwrap_or(end).min(end);
            if Instant::now() >= over {
                break;
            }
            if timeout_at((Instant::now() + LOOK).min(over), failed.0.notified()).await.is_ok() {
                return Err(failed.1.take().unwrap_or_else(|| io::ErrorKind::Other.into()));
            }
        }
        let report = report.borrow().clone();
        Ok(report)
    }

    async fn one(self, report: &RefCell<ClientsReport>) -> io::Result<()> {
        loop {
            let due = Instant::now() + self.interval;
            let socket = if self.target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            let interface = sys::socket_option(&socket, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX)?;
            report.borrow_mut().made(interface);
            // Closing resets the connection: no TIME_WAIT, or the ports would run out.
            SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
            let reached = timeout_at(due, socket.connect(self.target)).await;
            report.borrow_mut().reached(reached.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))));
            sleep_until(due).await;
        }
    }
}

/// Waits until a connection ends.
async fn keep(mut kept: TcpStream, report: std::rc::Rc<RefCell<ClientsReport>>) {
    let mut buffer = [0; 64];
    let ended = loop {
        match kept.read(&mut buffer).await {
            Ok(0) => break "EOF".to_owned(),
            Ok(_) => {}
            Err(error) => break errno_name(&error),
        }
    };
    report.borrow_mut().ended.push((now(), ended));
}

impl ClientsReport {
    fn made(&mut self, interface: i32) {
        match self.stretches.last_mut() {
            Some(stretch) if stretch.interface == interface => stretch.made += 1,
            _ => self.stretches.push(Stretch { interface, since: now(), made: 1 }),
        }
    }

    fn reached(&mut self, connection: io::Result<TcpStream>) {
        match connection.and_then(|connection| connection.local_addr()) {
            Ok(own) => {
                self.connected.entry(own.ip()).or_insert_with(|| Connected { first: now(), count: 0 }).count += 1;
            }
            Err(error) => *self.errors.entry(errno_name(&error)).or_default() += 1,
        }
    }

    /// When the first connection from an address was established.
    pub fn first_from(&self, address: IpAddr) -> Result<Duration> {
        let connected = self.connected.get(&address).ok_or_else(|| Error::Invalid {
            doing: format!("connect from {address}"),
            reason: format!("no connection was established: {:?}, {:?}", self.connected, self.errors),
        })?;
        Ok(connected.first)
    }

    /// How many sockets were bound to another interface than the last one after one was bound to the last one.
    pub fn late(&self) -> u64 {
        let Some(last) = self.stretches.last() else { return 0 };
        let later = self.stretches.iter().skip_while(|stretch| stretch.interface != last.interface);
        later.filter(|stretch| stretch.interface != last.interface).map(|stretch| stretch.made).sum()
    }

    /// Parses the last line that a program printed.
    pub fn parse(output: &str) -> Result<Self> {
        let line = output.lines().next_back().unwrap_or_default();
        serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_the_first_interface_after_the_switch_are_late() {
        let mut report = ClientsReport::default();
        for interface in [3, 3, 2, 3, 2, 2] {
            report.made(interface);
        }
        assert_eq!(report.stretches.len(), 4);
        assert_eq!(report.late(), 1);
    }
}
