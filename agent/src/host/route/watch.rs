//! Reports that rules, routes, addresses or links of a network namespace changed.
//!
//! Steer's own changes are reported, too: the next plan shows no difference, so that ends by itself.
//!
//! **Invariant:** no change is missed: it is reported, or a report comes after it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, timeout_at},
};

/// What is reported.
const GROUPS: [u32; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];
/// How many reports are taken at a time.
const AT_A_TIME: usize = 512;
/// Changes come in groups: a link that goes down takes its routes along. A group ends when nothing came for so long,
const QUIET: Duration = Duration::from_millis(10);
/// or after this time: what others remove is to be back within 100 ms.
const LONGEST: Duration = Duration::from_millis(50);

/// Watches the network namespace that it was made in. To wait for a change, poll the descriptor, or call [`Watch::wait`].
pub struct Watch(Socket);

impl Watch {
    /// Subscribes.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        GROUPS.iter().try_for_each(|&group| socket.add_membership(group))?;
        Ok(Self(socket))
    }

    /// Takes the reports that are there; true if there was one. Does not wait.
    pub fn take(&self) -> io::Result<bool> {
        // What changed does not matter, so a report that is cut is as good.
        let (mut buffer, mut changed) = (Vec::with_capacity(16), false);
        for _ in 0..AT_A_TIME {
            buffer.clear();
            match self.0.recv_from(&mut buffer, libc::MSG_TRUNC) {
                // Other processes can send to this socket.
                Ok((_, sender)) => changed |= sender.port_number() == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel dropped reports.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    /// Waits for a change, at most for so long; true if there was one. Returns when the changes that belong together are
    /// over.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let end = std::time::Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if !self.poll(left)? {
                return Ok(false);
            }
            if self.take()? {
                break;
            }
        }
        let end = std::time::Instant::now() + LONGEST;
        while std::time::Instant::now() < end && self.poll(QUIET)? {
            self.take()?;
        }
        Ok(true)
    }

    /// Whether there are reports before the time is over.
    fn poll(&self, limit: Duration) -> io::Result<bool> {
        let mut sockets = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut sockets, limit) {
            Err(nix::errno::Errno::EINTR) => Ok(true),
            found => Ok(found? > 0),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A [`Watch`] for tokio.
pub struct Notified {
    watch: AsyncFd<Watch>,
    /// Whether there was a change that was not reported yet.
    changed: bool,
}

impl Notified {
    /// Subscribes in the network namespace of the calling thread. Needs a tokio runtime.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the socket stays open and unchanged while the `AsyncFd` owns it.
        let watch = unsafe { AsyncFd::register_with_interest(Watch::new()?, Interest::READABLE) };
        Ok(Self { watch: watch.map_err(io::Error::from)?, changed: false })
    }

    /// Waits for a change, and until those that belong to it are over. May be cancelled: the next call reports the change.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.changed {
            self.changed = self.take().await?;
        }
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            let quiet = end.min(Instant::now() + QUIET);
            let Ok(more) = timeout_at(quiet, self.take()).await else { break };
            more?;
        }
        self.changed = false;
        Ok(())
    }

    async fn take(&mut self) -> io::Result<bool> {
        let mut ready = self.watch.readable().await?;
        // Without reports, the runtime has to wait for the descriptor again.
        let take = |watch: &AsyncFd<Watch>| {
            if watch.get_ref().take()? { Ok(true) } else { Err(io::ErrorKind::WouldBlock.into()) }
        };
        ready.try_io(take).unwrap_or(Ok(false))
    }
}
