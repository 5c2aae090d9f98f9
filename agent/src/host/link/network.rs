//! Links, addresses and routes, read over rtnetlink.
//!
//! **Invariant:** this module never computes a route. It asks the kernel which route it would use, so policy rules and
//! tables apply as for a packet. It sends no packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteVia},
};
use rtnetlink::RouteMessageBuilder;

use super::Error;

/// An address of each family that needs a route to the whole Internet: a root name server. Used only to ask the kernel for
/// the route; nothing is sent there.
pub(crate) const FAR_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4));
/// The IPv6 address; see [`FAR_IPV4`].
pub(crate) const FAR_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30));

/// A connection to rtnetlink.
pub(crate) struct Network {
    handle: rtnetlink::Handle,
}

/// The relevant properties of a link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// Its name. A policy may use an alternative name.
    pub(crate) name: String,
    pub(crate) is_up: bool,
    /// Whether the link has a carrier (`IFF_RUNNING`).
    pub(crate) has_carrier: bool,
    /// Whether destinations need no gateway address, as in a tunnel.
    pub(crate) needs_no_gateway: bool,
    pub(crate) kind: Kind,
}

/// What is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: loopback, and dummy devices.
    Nothing,
    /// A process: TUN and TAP devices.
    Process,
    /// Another link, in any network namespace (veth).
    Pair,
    Other,
}

/// A next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Index of the link.
    pub(crate) ifindex: u32,
    /// The gateway; `None`: packets go directly to their destination.
    pub(crate) gateway: Option<IpAddr>,
}

impl Network {
    /// Opens a connection. Needs a tokio runtime, which runs the connection until this is dropped.
    pub(crate) fn new() -> Result<Self, Error> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads a link. `None`: it is gone.
    pub(crate) async fn link(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut links = std::pin::pin!(self.handle.link().get().match_index(index).execute());
        let found = match links.try_next().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => None,
            found => found.map_err(Error::Netlink)?,
        };
        Ok(found.map(link))
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let links = self.handle.link().get().execute();
        links.map_ok(link).try_collect().await.map_err(Error::Netlink)
    }

    /// The addresses of a link that can be the source of packets to far destinations.
    pub(crate) async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>, Error> {
        let addresses = self.handle.address().get().set_link_index_filter(link.index).execute();
        addresses.try_filter_map(async |message| Ok(far_reaching(&message))).try_collect().await.map_err(Error::Netlink)
    }

    /// The next hops of the route that the kernel would use for a packet. Empty: it has no route. `by` is the link that the
    /// socket is bound to, `from` its address.
    pub(crate) async fn route(&self, to: IpAddr, by: Option<u32>, from: Option<IpAddr>) -> Result<Vec<Hop>, Error> {
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
        // Ask for the route entry (Linux 4.13). Without this flag, IPv4 invents a route for a bound socket if it finds none.
        query.header.flags |= RouteFlags::FibMatch;
        match std::pin::pin!(self.handle.route().get(query).execute()).try_next().await {
            Ok(route) => Ok(route.map(|route| hops(&route)).unwrap_or_default()),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(error.raw_code()) => Ok(Vec::new()),
            Err(error) => Err(Error::Netlink(error)),
        }
    }
}

fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let (mut name, mut kind) = (String::new(), Kind::Other);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = found,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(of_kind).unwrap_or(kind);
            }
            _ => {}
        }
    }
    Link {
        index: message.header.index,
        name,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::Running),
        needs_no_gateway: flags.intersects(LinkFlags::Pointopoint | LinkFlags::Noarp),
        kind: if flags.contains(LinkFlags::Loopback) { Kind::Nothing } else { kind },
    }
}

fn of_kind(info: &LinkInfo) -> Option<Kind> {
    match info {
        LinkInfo::Kind(InfoKind::Dummy) => Some(Kind::Nothing),
        LinkInfo::Kind(InfoKind::Tun) => Some(Kind::Process),
        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Pair),
        _ => None,
    }
}

/// No route, or a route of type unreachable, prohibit or blackhole.
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
    // On a tunnel, `Address` is the address of the other end.
    local.or(address).filter(|_| message.header.scope == AddressScope::Universe)
}

fn hops(route: &RouteMessage) -> Vec<Hop> {
    let single = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(Hop { ifindex: *ifindex, gateway: gateway(&route.attributes) }),
        _ => None,
    });
    let several = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.as_slice(),
        _ => &[],
    });
    let several = several.map(|hop| Hop { ifindex: hop.interface_index, gateway: gateway(&hop.attributes) });
    single.into_iter().chain(several).collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })
}
