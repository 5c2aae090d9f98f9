//! Links, addresses and routes, as the kernel tells them over rtnetlink.
//!
//! **Invariant:** a route is never worked out here: the kernel is asked which one it would take, so policy rules and tables
//! count as they do for a packet. Nothing is sent for it.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags},
    route::{RouteAttribute, RouteFlags, RouteMessage},
};
use rtnetlink::RouteMessageBuilder;

use crate::interface::Error;

/// A connection to rtnetlink.
pub(super) struct Network {
    handle: rtnetlink::Handle,
}

/// What matters of a link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    /// Its name; a policy may know it by an alternative one.
    pub(super) name: String,
    pub(super) is_up: bool,
    /// Whether there is somebody at the other end.
    pub(super) has_carrier: bool,
    /// Whether destinations need no address of a gateway, as in a tunnel.
    pub(super) needs_no_gateway: bool,
}

impl Network {
    /// Needs a tokio runtime, in which the connection ends with it.
    pub(super) fn new() -> Result<Self, Error> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// `None`: it is gone.
    pub(super) async fn link(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut links = std::pin::pin!(self.handle.link().get().match_index(index).execute());
        let found = match links.try_next().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => None,
            found => found.map_err(Error::Netlink)?,
        };
        Ok(found.map(|message| {
            let flags = message.header.flags;
            let name = message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            Link {
                index,
                name: name.unwrap_or_default(),
                is_up: flags.contains(LinkFlags::Up),
                has_carrier: flags.contains(LinkFlags::Running),
                needs_no_gateway: flags.intersects(LinkFlags::Pointopoint | LinkFlags::Noarp),
            }
        }))
    }

    /// The addresses of a link that packets to far destinations can have as their source.
    pub(super) async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>, Error> {
        let addresses = self.handle.address().get().set_link_index_filter(link.index).execute();
        addresses.try_filter_map(async |message| Ok(far_reaching(&message))).try_collect().await.map_err(Error::Netlink)
    }

    /// Where the kernel would send a packet: the indexes of the links of the route it would take. None: it has no route.
    /// `by` is the link that the socket is bound to, `from` its address.
    pub(super) async fn route(&self, to: IpAddr, by: Option<u32>, from: Option<IpAddr>) -> Result<Vec<u32>, Error> {
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let invalid = |error| Error::Netlink(rtnetlink::Error::InvalidNla(format!("{error}")));
        let mut query = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, whole(to)).map_err(invalid)?;
        if let Some(from) = from {
            query = query.source_prefix(from, whole(from)).map_err(invalid)?;
        }
        if let Some(index) = by {
            query = query.output_interface(index);
        }
        let mut query = query.build();
        // The entry itself, or none: where IPv4 finds no route, it makes one up for a socket that is bound (Linux 4.13).
        query.header.flags |= RouteFlags::FibMatch;
        match std::pin::pin!(self.handle.route().get(query).execute()).try_next().await {
            Ok(route) => Ok(route.map(|route| links(&route)).unwrap_or_default()),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(error.raw_code()) => Ok(Vec::new()),
            Err(error) => Err(Error::Netlink(error)),
        }
    }
}

/// No route, or one that says so: unreachable, prohibit, blackhole.
fn is_no_route(code: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&-code)
}

fn far_reaching(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    // At the end of a tunnel, `Address` is the other end's.
    local.or(address).filter(|_| message.header.scope == AddressScope::Universe)
}

fn links(route: &RouteMessage) -> Vec<u32> {
    let links = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    links.collect()
}
