//! Sockets of probes, and the routes that they need.
//!
//! **Invariant:** a socket is bound, and marked, before it has an address.

use std::{io, net::IpAddr, num::NonZeroU32};

use nix::{
    errno::Errno,
    sys::socket::{
        setsockopt,
        sockopt::{Ipv4RecvErr, Ipv6RecvErr},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;

use super::{Failure, Method, Via};
use crate::{
    host::route::{self, Selector},
    model::uplink::Family,
};

/// How many threads may wait for the kernel's answers about routes. While it is busy, further probes wait for their
/// deadline without a thread.
static READERS: Semaphore = Semaphore::const_new(4);

/// A socket that does not block, and that can send by the member only: it is bound in every case. [`check`] has asked for the
/// mark's own route, and if its rule goes before the packet, the packet still takes no other link.
pub(super) fn open(via: &Via, kind: Type, protocol: Protocol) -> Result<Socket, Failure> {
    make(via, kind, protocol).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Failure::Forbidden,
        _ => error.into(),
    })
}

fn make(via: &Via, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = match via.family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    // Without this, only a connection reports that a router cannot reach the target.
    match via.family {
        Family::V4 => setsockopt(&socket, Ipv4RecvErr, &true)?,
        Family::V6 => setsockopt(&socket, Ipv6RecvErr, &true)?,
    }
    if let Method::Mark(mark) = via.method {
        socket.set_mark(mark)?;
    }
    // 0 would take the binding away.
    let index = NonZeroU32::new(via.ifindex).ok_or(Errno::ENODEV)?;
    // Both set SO_BINDTOIFINDEX.
    match via.family {
        Family::V4 => socket.bind_device_by_index_v4(Some(index))?,
        Family::V6 => socket.bind_device_by_index_v6(Some(index))?,
    }
    Ok(socket)
}

/// Fails if no route leads to an address by the member.
pub(super) async fn check(via: &Via, to: IpAddr) -> Result<(), Failure> {
    let selector = match via.method {
        Method::Bind => Selector::Bound,
        Method::Mark(mark) => Selector::Mark(mark),
    };
    let ifindex = via.ifindex;
    if read(move || route::leads(ifindex, selector, to)).await? { Ok(()) } else { Err(Failure::NoRoute) }
}

/// The member's gateways.
pub(super) async fn gateways(via: &Via) -> Result<Vec<IpAddr>, Failure> {
    let (ifindex, is_ipv4) = (via.ifindex, via.family == Family::V4);
    match read(move || route::gateways(ifindex, is_ipv4)).await? {
        None => Err(Failure::NoRoute),
        Some(gateways) if gateways.is_empty() => Err(Failure::NoGateway),
        Some(gateways) => Ok(gateways),
    }
}

/// Runs `look` on a thread that may wait.
async fn read<T: Send + 'static>(look: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Failure> {
    let turn = READERS.acquire().await.map_err(|closed| Failure::Error(closed.to_string()))?;
    let reading = tokio::task::spawn_blocking(move || {
        // The thread gives its turn back, also if nobody waits for it any more.
        let _turn = turn;
        look()
    });
    Ok(reading.await.map_err(|ended| Failure::Error(ended.to_string()))??)
}
