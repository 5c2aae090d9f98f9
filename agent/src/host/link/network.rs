//! Links, addresses and routes, read over rtnetlink.
//!
//! **Invariant:** this module never computes a route. It asks the kernel which route it would use, so policy rules and
//! tables apply as for a packet. It sends no packets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::LinkFlags,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia},
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use tokio::time::timeout;

use super::{Error, message::Device, reading::Reader};
use crate::model::prefix::Prefix;

/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// An address of each family that needs a route to the whole Internet: a root name server. Used only to ask the kernel for
/// the route; nothing is sent there.
pub(crate) const FAR_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4));
/// The IPv6 address; see [`FAR_IPV4`].
pub(crate) const FAR_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30));

/// The table of addresses of this host.
const LOCAL: u32 = 255;

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

/// A packet whose route is looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) to: IpAddr,
    /// The link that its socket is bound to.
    pub(crate) bound_to: Option<u32>,
    /// The mark of its socket.
    pub(crate) mark: u32,
    /// The address of its socket.
    pub(crate) from: Option<IpAddr>,
}

/// An entry of a routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) table: u32,
    pub(crate) prefix: Prefix,
    /// Whether the destination is an address of this host.
    pub(crate) is_local: bool,
    /// Whether the destination is a broadcast address.
    pub(crate) is_broadcast: bool,
    pub(crate) hops: Vec<Hop>,
}

impl Network {
    /// Opens a connection. Needs a tokio runtime, which runs the connection until this is dropped.
    pub(crate) fn new() -> Result<Self, Error> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads a link. `None`: it is gone.
    pub(crate) fn link(index: u32) -> Result<Option<Link>, Error> {
        Ok(read(Some(index))?.pop())
    }

    /// All links.
    pub(crate) fn links() -> Result<Vec<Link>, Error> {
        read(None)
    }

    /// The addresses of a link that can be the source of packets to far destinations.
    pub(crate) async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>, Error> {
        let addresses = self.handle.address().get().set_link_index_filter(link.index).execute();
        let addresses = addresses.try_filter_map(async |message| Ok(far_reaching(&message))).try_collect();
        // The library drops an answer with a label that is not UTF-8, and waits for the next one.
        let undecodable =
            |_elapsed| Error::Read(io::Error::new(io::ErrorKind::InvalidData, "an address cannot be decoded"));
        timeout(PATIENCE, addresses).await.map_err(undecodable)?.map_err(Error::Netlink)
    }

    /// The next hops of the route that the kernel would use for a packet. Empty: it has no route. `by` is the link that the
    /// socket is bound to, `from` its address.
    pub(crate) async fn route(&self, to: IpAddr, by: Option<u32>, from: Option<IpAddr>) -> Result<Vec<Hop>, Error> {
        let packet = Packet { to, bound_to: by, from, mark: 0 };
        Ok(self.look_up(packet).await?.map(|entry| entry.hops).unwrap_or_default())
    }

    /// The entry of a routing table that the kernel would use for a packet.
    pub(crate) async fn look_up(&self, packet: Packet) -> Result<Result<Entry, Errno>, Error> {
        // Ask for the entry (Linux 4.13) and its table. Without FibMatch, IPv4 invents a route for a bound socket.
        let answer = self.ask(packet, RouteFlags::FibMatch | RouteFlags::LookupTable).await?;
        Ok(answer.map(|route| entry(&route, packet.to.is_ipv4())))
    }

    /// The link on which IPv4 looks for the destination itself, because it finds no route for a bound socket.
    pub(crate) async fn neighbour(&self, packet: Packet) -> Result<Option<Hop>, Error> {
        if packet.to.is_ipv6() || packet.bound_to.is_none() {
            return Ok(None);
        }
        let answer = self.ask(packet, RouteFlags::empty()).await?;
        Ok(answer.ok().and_then(|route| hops(&route).into_iter().next()))
    }

    async fn ask(&self, packet: Packet, flags: RouteFlags) -> Result<Result<RouteMessage, Errno>, Error> {
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let invalid = |error| Error::Netlink(rtnetlink::Error::InvalidNla(format!("{error}")));
        let Packet { to, bound_to, mark, from } = packet;
        let mut query = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, whole(to)).map_err(invalid)?;
        if let Some(from) = from {
            query = query.source_prefix(from, whole(from)).map_err(invalid)?;
        }
        if let Some(index) = bound_to {
            query = query.output_interface(index);
        }
        let mut query = query.build();
        if mark != 0 {
            query.attributes.push(RouteAttribute::Mark(mark));
        }
        query.header.flags |= flags;
        match std::pin::pin!(self.handle.route().get(query).execute()).try_next().await {
            Ok(Some(route)) => Ok(Ok(route)),
            Ok(None) => Ok(Err(Errno::ENETUNREACH)),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(error.raw_code()) => {
                Ok(Err(Errno::from_raw(-error.raw_code())))
            }
            Err(error) => Err(Error::Netlink(error)),
        }
    }
}

/// Reads one link, or all. rtnetlink would wait forever for a link whose name it cannot decode.
fn read(index: Option<u32>) -> Result<Vec<Link>, Error> {
    Ok(Reader::new()?.devices(index).map_err(Error::Read)?.into_iter().map(link).collect())
}

fn link((index, name, device): (u32, String, Device)) -> Link {
    let flags = LinkFlags::from_bits_retain(device.flags);
    let kind = match &*device.kind {
        _ if flags.contains(LinkFlags::Loopback) => Kind::Nothing,
        b"dummy" => Kind::Nothing,
        b"tun" => Kind::Process,
        b"veth" => Kind::Pair,
        _ => Kind::Other,
    };
    Link {
        index,
        name,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::Running),
        needs_no_gateway: flags.intersects(LinkFlags::Pointopoint | LinkFlags::Noarp),
        kind,
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

fn entry(route: &RouteMessage, is_ipv4: bool) -> Entry {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let all = if is_ipv4 { Prefix::ALL_IPV4 } else { Prefix::ALL_IPV6 };
    let prefix = destination.and_then(|address| Prefix::of(address, route.header.destination_prefix_length));
    let is_own = matches!(route.header.kind, RouteType::Local | RouteType::Anycast | RouteType::Broadcast);
    // Until somebody adds a rule, IPv4 has both tables in one, and names it `main`.
    let table = table.filter(|table| !is_own || *table != u32::from(RouteHeader::RT_TABLE_MAIN));
    Entry {
        table: table.unwrap_or(if is_own { LOCAL } else { route.header.table.into() }),
        prefix: prefix.unwrap_or(all),
        is_local: matches!(route.header.kind, RouteType::Local | RouteType::Anycast),
        is_broadcast: route.header.kind == RouteType::Broadcast,
        hops: hops(route),
    }
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
