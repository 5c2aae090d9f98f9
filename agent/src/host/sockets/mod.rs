//! The sockets of this machine, and which destinations they can reach.

pub(crate) mod diag;
pub(crate) mod holder;
pub(crate) mod line;
pub(crate) mod patience;
pub(crate) mod unlisted;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use nix::{ifaddrs::getifaddrs, net::if_::if_nameindex};

use diag::{Diag, Socket};
pub use line::Line;

/// The first interface of every network namespace.
const LOOPBACK_IFINDEX: i32 = 1;

/// The links of the network namespace and their addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) links: BTreeSet<i32>,
    /// With the index of their link.
    pub(crate) addresses: Vec<(i32, IpAddr)>,
}

impl Host {
    /// Whether a socket can reach only this host.
    pub(crate) fn is_all_of(&self, socket: &Socket) -> bool {
        let is_own = |address: IpAddr| address.is_loopback() || self.addresses.iter().any(|(_, own)| *own == address);
        socket.bound() == LOOPBACK_IFINDEX
            || socket.local().ip().is_loopback()
            || socket.peer().is_some_and(|peer| is_own(peer.ip()))
    }

    /// Whether the link that a socket is bound to is gone.
    pub(crate) fn is_orphan(&self, socket: &Socket) -> bool {
        socket.bound() > 0 && !self.links.contains(&socket.bound())
    }

    /// Whether a connection can continue on the uplink. It has one of the uplink's addresses. Or its link is gone, because the
    /// uplink was created again, and the new uplink has no addresses yet.
    pub(crate) fn goes_on(&self, socket: &Socket, uplink: i32) -> bool {
        let local = socket.local().ip();
        let mut of_uplink = self.addresses.iter().filter(|(index, _)| *index == uplink).map(|(_, address)| *address);
        of_uplink.clone().any(|address| address == local)
            || self.is_orphan(socket)
                && !of_uplink.any(|address| address.is_ipv4() == local.is_ipv4() && !is_link_local(address))
    }
}

/// An address that the kernel assigns to a link by itself.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// All sockets of the calling thread's network namespace that the kernel lists, by inode.
pub(crate) fn by_inode() -> io::Result<BTreeMap<u32, Socket>> {
    let diag = Diag::open()?;
    let mut sockets = BTreeMap::new();
    for kind in diag::KINDS {
        sockets.extend(diag.list(kind)?.into_iter().map(|socket| (socket.inode(), socket)));
    }
    Ok(sockets)
}

/// The links of the calling thread's network namespace, and their addresses.
pub(crate) fn read_host() -> io::Result<Host> {
    let links: BTreeMap<String, i32> = if_nameindex()?
        .iter()
        .filter_map(|link| Some((link.name().to_string_lossy().into_owned(), i32::try_from(link.index()).ok()?)))
        .collect();
    let addresses = getifaddrs()?
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
            let address = v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))?;
            // An IPv4 address can have a label in place of its link's name: `eth0:1`.
            let link = entry.interface_name.split(':').next()?;
            Some((*links.get(link)?, address))
        })
        .collect();
    Ok(Host { links: links.into_values().collect(), addresses })
}
