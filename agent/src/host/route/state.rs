//! What the kernel has now: links, routes and rules of one network namespace.
//!
//! **Invariant:** only reads.

use std::{collections::BTreeMap, io, net::IpAddr};

use socket2::{Domain, Socket, Type};

use super::{
    entry::{self, BROADCAST, IPV4, IPV6, LOCAL, MAIN, ON_LINK, OWN, RTA_OIF, Route, UNICAST},
    hop::Hop,
    netlink::{Attribute, Connection, Raw},
    rule::Rule,
    table,
};
use crate::model::prefix::Prefix;

/// Header of a message about links, `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Leaves counters out of the answer (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_STATISTICS: u32 = 1 << 3;
/// Kinds of links that lead to somewhere else than the network of this host, or into another protocol. Those with
/// `IFF_POINTOPOINT` or `IFF_NOARP` need no name here.
const TUNNELS: [&[u8]; 19] = [
    b"amneziawg",
    b"bareudp",
    b"erspan",
    b"geneve",
    b"gre",
    b"gretap",
    b"gtp",
    b"ip6erspan",
    b"ip6gre",
    b"ip6gretap",
    b"ip6tnl",
    b"ipip",
    b"ovpn",
    b"ppp",
    b"sit",
    b"tun",
    b"vxlan",
    b"wireguard",
    b"xfrm",
];
/// Kinds of links that send by the link below them.
const UPPER: [&[u8]; 5] = [b"ipvlan", b"macsec", b"macvlan", b"macvtap", b"vlan"];
/// A port of this kind is mostly a virtual machine of this host, so its bridge is no tunnel.
const TUN: &[u8] = b"tun";
/// How many links may lie on each other.
const DEPTH: usize = 8;

/// A reading of one network namespace.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) routes: Vec<Route>,
    pub(super) rules: Vec<Rule>,
    /// The families for which this kernel has policy rules.
    pub(super) families: Vec<u8>,
    /// The families that programs can use, but for which it has no policy rules.
    pub(super) without_rules: Vec<u8>,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its name; any bytes.
    pub(super) name: Vec<u8>,
    /// `IFF_*`.
    pub(super) flags: i32,
    /// Its kind, such as `veth`; empty for hardware and loopback.
    pub(super) kind: Vec<u8>,
    /// The link below it, if that is in the same network namespace.
    pub(super) below: Option<u32>,
    /// The bridge or bond that it is a port of.
    pub(super) bridge: Option<u32>,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP != 0
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK != 0
    }

    /// Whether destinations need no gateway, as in a tunnel.
    pub(super) fn needs_no_gateway(&self) -> bool {
        self.flags & (libc::IFF_POINTOPOINT | libc::IFF_NOARP) != 0
    }

    fn is_tunnel(&self) -> bool {
        self.needs_no_gateway() || TUNNELS.contains(&self.kind.as_slice())
    }

    fn decode(body: &[u8]) -> Option<(u32, Self)> {
        let number = |at| Some(i32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let mut link = Self { flags: number(8)?, ..Self::default() };
        let mut is_elsewhere = false;
        for attribute in Attribute::all(body.get(LINK_HEADER..)?)? {
            match attribute.kind {
                libc::IFLA_IFNAME => attribute.text().clone_into(&mut link.name),
                libc::IFLA_LINK => link.below = attribute.as_number(),
                libc::IFLA_MASTER => link.bridge = attribute.as_number(),
                libc::IFLA_LINK_NETNSID => is_elsewhere = true,
                libc::IFLA_LINKINFO => {
                    let info = Attribute::all(&attribute.value)?;
                    let kind = info.into_iter().find(|one| one.kind == libc::IFLA_INFO_KIND);
                    link.kind = kind.map(|kind| kind.text().to_vec()).unwrap_or_default();
                }
                _ => {}
            }
        }
        link.below = link.below.filter(|_| !is_elsewhere);
        // Bridges describe their ports in another family.
        (body.first() == Some(&0)).then_some((number(4)?.cast_unsigned(), link))
    }
}

impl State {
    /// Reads the network namespace of the calling thread.
    pub fn read() -> io::Result<Self> {
        Self::read_by(&mut Connection::open()?)
    }

    pub(super) fn read_by(connection: &mut Connection) -> io::Result<Self> {
        let mut state = Self::default();
        let mut body = vec![0; LINK_HEADER];
        Attribute::emit_all(&[Attribute::number(libc::IFLA_EXT_MASK, SKIP_STATISTICS)], &mut body);
        let links = connection.list(&Raw { kind: libc::RTM_GETLINK, body }, libc::RTM_NEWLINK)?;
        state.links = links.iter().filter_map(|link| Link::decode(link)).collect();
        for family in [IPV4, IPV6] {
            let body = [&[family][..], &[0; 11]].concat();
            let rules = match connection.list(&Raw { kind: libc::RTM_GETRULE, body }, libc::RTM_NEWRULE) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                    state.without_rules.extend(has_sockets(family)?.then_some(family));
                    continue;
                }
                rules => rules?,
            };
            state.families.push(family);
            state.rules.extend(rules.iter().filter_map(|rule| Rule::decode(rule)));
            state.read_routes(connection, family, None)?;
        }
        Ok(state)
    }

    /// Reads only one link. No link, if there is none with this index.
    pub(super) fn read_link(connection: &mut Connection, index: u32) -> io::Result<Self> {
        let mut body = vec![0; LINK_HEADER];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        Attribute::emit_all(&[Attribute::number(libc::IFLA_EXT_MASK, SKIP_STATISTICS)], &mut body);
        let link = match connection.get(&Raw { kind: libc::RTM_GETLINK, body }, libc::RTM_NEWLINK) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => None,
            link => Link::decode(&link?),
        };
        Ok(Self { links: link.into_iter().collect(), ..Self::default() })
    }

    /// Adds the routes of a family; with `link`, those by a link, and perhaps others.
    pub(super) fn read_routes(&mut self, connection: &mut Connection, family: u8, link: Option<u32>) -> io::Result<()> {
        let mut body = [&[family][..], &[0; 11]].concat();
        if let Some(link) = link {
            connection.filter();
            Attribute::emit_all(&[Attribute::number(RTA_OIF, link)], &mut body);
        }
        let routes = connection.list(&Raw { kind: libc::RTM_GETROUTE, body }, libc::RTM_NEWROUTE)?;
        let routes = routes.iter().filter_map(|route| Route::decode(route));
        self.routes.extend(routes.filter(|route| entry::family(route.prefix) == family));
        Ok(())
    }

    /// The routes of a family that packets can take by this link, which no table of steer has. Those of the main table come
    /// first, then those with the better metric. None if the link is missing or down.
    pub(super) fn mirror(&self, link: u32, is_ipv4: bool) -> Vec<Route> {
        let Some(device) = self.links.get(&link).filter(|link| link.is_up()) else { return Vec::new() };
        let mut routes: Vec<Route> = self
            .foreign()
            .filter(|route| route.prefix.is_ipv4() == is_ipv4)
            .filter_map(|route| route.through(link))
            .collect();
        routes.sort_by_key(|route| (route.table != MAIN, route.metric, route.table));
        let all = if is_ipv4 { Prefix::ALL_IPV4 } else { Prefix::ALL_IPV6 };
        let has_default = routes.iter().any(|route| route.prefix == all && route.source.is_none());
        // A bound socket uses such a link for every destination.
        if device.needs_no_gateway() && !has_default && (is_ipv4 || self.has_ipv6(link)) {
            routes.push(Route::by(link, all));
        }
        routes
    }

    /// Routes that packets can take, of tables that are not steer's.
    pub(super) fn foreign(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| route.kind == UNICAST && route.table != LOCAL && !table::is_ours(route.table))
    }

    /// Whether the link has an IPv6 address, or an IPv6 route, that reaches farther than the link.
    fn has_ipv6(&self, link: u32) -> bool {
        let far = |prefix: Prefix| !prefix.is_ipv4() && !is_link_local(prefix) && !is_multicast(prefix);
        // An address has a route in the table `local`.
        let mut routes = self.routes.iter().filter(|route| !table::is_ours(route.table) && far(route.prefix));
        routes.any(|route| route.hops.iter().any(|hop| hop.link == link))
    }

    /// The private networks that this host is connected to, in the main table, but by the uplink.
    ///
    /// A DHCP server or a router of the network chooses what is on the link. With public prefixes, it could get any traffic
    /// (CVE-2023-36672).
    pub(super) fn lan(&self, uplink: Option<u32>) -> impl Iterator<Item = (u32, Route)> {
        let networks = self.routes.iter().filter(|route| {
            let (is_ipv4, len) = (route.prefix.is_ipv4(), route.prefix.len());
            let is_narrow = len >= if is_ipv4 { 8 } else { 32 };
            let is_on_link = route.is_direct() && (!is_ipv4 || route.scope == ON_LINK);
            route.table == MAIN && is_narrow && is_on_link && is_private(route.prefix)
        });
        let hops = networks.flat_map(|route| route.hops.iter().map(move |hop| (hop.link, route)));
        let lan = hops.filter(move |(link, _)| Some(*link) != uplink && self.is_lan(*link));
        lan.filter_map(|(link, route)| Some((link, route.through(link)?)))
    }

    /// Links with a network of this host behind them.
    pub(super) fn lan_links(&self, uplink: Option<u32>) -> impl Iterator<Item = u32> {
        self.links.keys().copied().filter(move |&link| Some(link) != uplink && self.is_lan(link))
    }

    /// The addresses of this host.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = Prefix> {
        self.routes.iter().filter(|route| route.kind == OWN && route.table == LOCAL).map(|route| route.prefix)
    }

    /// The addresses of this host by the link that has them, or loopback.
    pub fn own_by_link(&self) -> impl Iterator<Item = (Prefix, u32)> {
        let own = self.routes.iter().filter(|route| route.kind == OWN && route.table == LOCAL);
        own.filter_map(|route| Some((route.prefix, route.hops.first()?.link)))
    }

    /// The broadcast addresses of the private networks of a link; see [`Self::lan`].
    pub(super) fn broadcasts(&self, link: u32) -> impl Iterator<Item = Prefix> {
        let by = move |hop: &Hop| hop.link == link;
        let all = self.routes.iter().filter(move |route| route.kind == BROADCAST && route.hops.iter().any(by));
        all.map(|route| route.prefix).filter(|prefix| is_private(*prefix))
    }

    /// Whether a network of this host is behind a link, such as Ethernet, or a bridge for containers.
    fn is_lan(&self, index: u32) -> bool {
        let is_lan = |link: &Link| link.is_up() && !link.is_loopback();
        self.links.get(&index).is_some_and(is_lan) && !self.leads_into_tunnel(index, DEPTH)
    }

    /// Whether a link, the link below it, or a port of it, is a tunnel.
    fn leads_into_tunnel(&self, index: u32, depth: usize) -> bool {
        let Some(link) = self.links.get(&index) else { return false };
        let Some(depth) = depth.checked_sub(1) else { return true };
        let is_upper = UPPER.contains(&link.kind.as_slice());
        let below = link.below.filter(|_| is_upper);
        let ports = self.links.iter().filter(|(_, port)| port.bridge == Some(index) && port.kind != TUN);
        link.is_tunnel()
            || below.into_iter().chain(ports.map(|(port, _)| *port)).any(|next| self.leads_into_tunnel(next, depth))
    }
}

/// Whether a program can make sockets of the family.
fn has_sockets(family: u8) -> io::Result<bool> {
    match Socket::new(Domain::from(i32::from(family)), Type::DGRAM, None) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether all addresses of the prefix are used inside of networks only (RFC 1918, 3927, 4193 and 4291).
pub fn is_private(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            match (first, second) {
                (10, _) => prefix.len() >= 8,
                (172, 16..=31) => prefix.len() >= 12,
                (192, 168) | (169, 254) => prefix.len() >= 16,
                _ => false,
            }
        }
        IpAddr::V6(address) => address.is_unique_local() && prefix.len() >= 7 || is_link_local(prefix),
    }
}

pub(super) fn is_multicast(prefix: Prefix) -> bool {
    prefix.address().is_multicast()
}

pub(super) fn is_link_local(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() && prefix.len() >= 10,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Link, State, is_private};

    #[test]
    fn links_over_tunnels_are_no_lan() {
        let link = |kind: &str, below: Option<u32>, bridge: Option<u32>| Link {
            flags: libc::IFF_UP,
            kind: kind.into(),
            below,
            bridge,
            ..Link::default()
        };
        let links = BTreeMap::from([
            (1, link("", None, None)),
            (2, link("vxlan", Some(1), None)),
            (3, link("macvlan", Some(2), None)),
            (4, link("vlan", Some(1), None)),
            (5, link("bridge", None, None)),
            (6, link("tun", None, Some(5))),
            (7, link("bridge", None, None)),
            (8, link("gretap", Some(1), Some(7))),
            (9, link("vlan", Some(7), None)),
            (10, link("veth", Some(11), None)),
            (11, link("veth", Some(10), None)),
        ]);
        let state = State { links, ..State::default() };
        assert_eq!(state.lan_links(None).collect::<Vec<_>>(), [1, 4, 5, 10, 11]);
    }

    #[test]
    fn private_prefixes() {
        let cases = [
            ("10.0.0.0/8", true),
            ("10.0.0.0/7", false),
            ("172.31.1.0/24", true),
            ("172.32.0.0/16", false),
            ("192.168.0.0/16", true),
            ("192.168.0.0/15", false),
            ("169.254.0.0/16", true),
            ("198.51.100.0/24", false),
            ("100.64.0.0/10", false),
            ("fd00::/64", true),
            ("fe80::/64", true),
            ("2001:db8::/64", false),
            ("::/0", false),
        ];
        for (prefix, private) in cases {
            assert_eq!(is_private(prefix.parse().expect("a prefix")), private, "{prefix}");
        }
    }
}
