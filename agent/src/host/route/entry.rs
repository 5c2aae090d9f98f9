//! Routes, as the kernel lists them and takes them.
//!
//! **Invariant:** a route has only what steer copies, so two routes are equal if the kernel would treat packets alike.

use std::{fmt, net::IpAddr};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{
    hop::Hop,
    netlink::{Attribute, Raw, Request},
};
use crate::model::prefix::Prefix;

/// The table of addresses of this host. The rule for it comes before all others.
pub(super) const LOCAL: u32 = 255;
/// The main table.
pub(super) const MAIN: u32 = 254;

/// Types of routes (`RTN_*`).
pub(super) const UNICAST: u8 = 1;
/// To an address of this host.
pub(super) const OWN: u8 = 2;
pub(super) const BROADCAST: u8 = 3;
pub(super) const BLACKHOLE: u8 = 6;
pub(super) const UNREACHABLE: u8 = 7;
pub(super) const PROHIBIT: u8 = 8;
pub(super) const THROW: u8 = 9;

/// The scope of destinations on the link (`RT_SCOPE_LINK`).
pub(super) const ON_LINK: u8 = 253;
/// In a deletion: any scope (`RT_SCOPE_NOWHERE`).
const ANY_SCOPE: u8 = 255;

const HEADER: usize = 12;
/// The kernel made this route for one destination (`RTM_F_CLONED`).
const CLONED: u32 = 0x200;
/// The gateway is on the link, whatever other routes say (`RTNH_F_ONLINK`).
const GATEWAY_ON_LINK: u8 = 4;

pub(super) const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
pub(super) const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
pub(super) const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
const RTA_PREF: u16 = 20;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) prefix: Prefix,
    /// Only packets from these addresses (IPv6).
    pub(super) source: Option<Prefix>,
    /// Type of service.
    pub(super) tos: u8,
    pub(super) metric: u32,
    pub(super) kind: u8,
    pub(super) scope: u8,
    pub(super) protocol: u8,
    pub(super) hops: Vec<Hop>,
    /// Preferred source, metrics and router preference. Not copied: what the kernel computes, how long the route is valid
    /// (the kernel reports its end), and the id of a next hop object. A copy by the id would follow the object to another
    /// link without a report of a changed route, and would go with the object. With `net.ipv4.nexthop_compat_mode=0` the kernel
    /// lists nothing else of such a route, so it is not copied at all.
    pub(super) attributes: Vec<Attribute>,
}

/// What identifies a route in the kernel.
pub(super) type Key = (u32, Prefix, Option<Prefix>, u8, u32);

impl Route {
    /// A route of the type `kind` that has no link.
    pub(super) fn without_link(kind: u8, prefix: Prefix) -> Self {
        Self {
            table: 0,
            prefix,
            source: None,
            tos: 0,
            metric: 0,
            kind,
            scope: 0,
            protocol: 0,
            hops: Vec::new(),
            attributes: Vec::new(),
        }
    }

    /// A route by a link, without a gateway.
    pub(super) fn by(link: u32, prefix: Prefix) -> Self {
        let scope = if prefix.is_ipv4() { ON_LINK } else { 0 };
        let hops = vec![Hop { link, weight: 0, attributes: Vec::new() }];
        Self { scope, hops, ..Self::without_link(UNICAST, prefix) }
    }

    pub(super) fn key(&self) -> Key {
        (self.table, self.prefix, self.source, self.tos, self.metric)
    }

    /// The part of the route that uses this link.
    pub(super) fn through(&self, link: u32) -> Option<Self> {
        let hops: Vec<_> = self.hops.iter().filter(|hop| hop.link == link).cloned().collect();
        (self.kind == UNICAST && !hops.is_empty()).then(|| Self { hops, ..self.clone() })
    }

    pub(super) fn has_gateway(&self) -> bool {
        self.hops.iter().any(Hop::has_gateway)
    }

    /// Whether destinations are on the link: packets go to them without a gateway or encapsulation.
    pub(super) fn is_direct(&self) -> bool {
        self.hops.iter().all(Hop::is_direct)
    }

    /// Decodes a listed route. `None`: it is of another family, or made for one destination, or cannot be decoded.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let header: [u8; HEADER] = body.get(..HEADER)?.try_into().ok()?;
        let [family, prefix_len, source_len, tos, table, protocol, scope, kind, flags @ ..] = header;
        if u32::from_ne_bytes(flags) & CLONED != 0 {
            return None;
        }
        let any = any(family)?;
        let mut route = Self {
            table: table.into(),
            tos,
            kind,
            scope,
            protocol,
            ..Self::without_link(kind, Prefix::of(any, prefix_len)?)
        };
        let (mut single, mut attributes) = (None, Vec::new());
        for attribute in Attribute::all(&body[HEADER..])? {
            match attribute.kind {
                RTA_DST => route.prefix = Prefix::of(address(family, &attribute.value)?, prefix_len)?,
                RTA_SRC => route.source = Some(Prefix::of(address(family, &attribute.value)?, source_len)?),
                RTA_TABLE => route.table = attribute.as_number()?,
                RTA_PRIORITY => route.metric = attribute.as_number()?,
                RTA_OIF => single = attribute.as_number(),
                RTA_MULTIPATH => route.hops = Hop::decode_all(&attribute.value)?,
                // The value medium is the same as none.
                RTA_PREF if attribute.value == [0] => {}
                RTA_PREFSRC | RTA_METRICS | RTA_PREF => route.attributes.push(attribute),
                _ => attributes.push(attribute),
            }
        }
        route.attributes.sort();
        // IPv6 gives routes that refuse the loopback link.
        if let Some(link) = single.filter(|_| kind == UNICAST || kind == BROADCAST || kind == OWN) {
            route.hops.insert(0, Hop { link, weight: 0, attributes: Hop::attributes(attributes) });
        }
        Some(route)
    }

    /// A request that writes the route, in place of one with the same key. `on_link`: gateways need not be found in other
    /// routes.
    pub(super) fn write(&self, on_link: bool) -> Request {
        let flag = if on_link && self.has_gateway() { GATEWAY_ON_LINK } else { 0 };
        let mut attributes = self.identity();
        attributes.extend(self.attributes.iter().cloned());
        match self.hops.as_slice() {
            [] => {}
            [hop] => {
                attributes.push(Attribute::number(RTA_OIF, hop.link));
                attributes.extend(hop.attributes.iter().cloned());
            }
            hops => attributes
                .push(Attribute::new(RTA_MULTIPATH, hops.iter().flat_map(|hop| hop.encode(flag)).collect::<Vec<_>>())),
        }
        let message = self.message(libc::RTM_NEWROUTE, self.scope, flag, &attributes);
        Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// A request that deletes the route with this key.
    pub(super) fn delete(&self) -> Request {
        Request { message: self.message(libc::RTM_DELROUTE, ANY_SCOPE, 0, &self.identity()), flags: 0 }
    }

    fn identity(&self) -> Vec<Attribute> {
        let mut attributes = vec![
            Attribute::new(RTA_DST, octets(self.prefix.address())),
            Attribute::number(RTA_TABLE, self.table),
            Attribute::number(RTA_PRIORITY, self.metric),
        ];
        attributes.extend(self.source.map(|source| Attribute::new(RTA_SRC, octets(source.address()))));
        attributes
    }

    fn message(&self, kind: u16, scope: u8, flags: u8, attributes: &[Attribute]) -> Raw {
        let source_len = self.source.map_or(0, |source| source.len());
        let table = u8::try_from(self.table).unwrap_or_default();
        let (family, len) = (family(self.prefix), self.prefix.len());
        let mut body = vec![family, len, source_len, self.tos, table, self.protocol, scope, self.kind];
        body.extend(u32::from(flags).to_ne_bytes());
        Attribute::emit_all(attributes, &mut body);
        Raw { kind, body }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            UNICAST => "route",
            UNREACHABLE => "unreachable route",
            PROHIBIT => "prohibit route",
            _ => "other route",
        };
        write!(formatter, "{kind} {} metric {} table {:#x}", self.prefix, self.metric, self.table)?;
        self.hops.iter().try_for_each(|hop| write!(formatter, " by link {}", hop.link))
    }
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn family(prefix: Prefix) -> u8 {
    if prefix.is_ipv4() { IPV4 } else { IPV6 }
}

/// `AF_INET`
pub(super) const IPV4: u8 = 2;
/// `AF_INET6`
pub(super) const IPV6: u8 = 10;

fn any(family: u8) -> Option<IpAddr> {
    match family {
        IPV4 => Some(Prefix::ALL_IPV4.address()),
        IPV6 => Some(Prefix::ALL_IPV6.address()),
        _ => None,
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        IPV4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        IPV6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::hop::RTA_GATEWAY, Attribute, Hop, Prefix, RTA_METRICS, Route, UNICAST, UNREACHABLE};

    fn routes() -> Vec<Route> {
        let prefix = |text: &str| text.parse::<Prefix>().expect("a prefix");
        let by = |to| Route { table: 0x7300_0001, metric: 7, protocol: 2, ..Route::by(3, prefix(to)) };
        let gateway =
            |link, last| Hop { link, weight: 2, attributes: vec![Attribute::new(RTA_GATEWAY, [10, 0, 0, last])] };
        let mut several = by("10.1.0.0/16");
        several.hops = vec![gateway(3, 1), gateway(4, 2)];
        several.attributes = vec![Attribute::new(RTA_METRICS, [8, 0, 2, 0, 20, 5, 0, 0])];
        let mut sourced = by("2001:db8::/32");
        sourced.source = Some(prefix("fd00::/8"));
        let refused = Route { table: 254, ..Route::without_link(UNREACHABLE, prefix("10.2.0.0/16")) };
        vec![by("0.0.0.0/0"), by("::/0"), several, sourced, refused]
    }

    #[test]
    fn what_is_written_is_read() {
        for route in routes() {
            assert_eq!(Route::decode(&route.write(false).message.body), Some(route));
        }
        let several = &routes()[2];
        assert_eq!(several.through(4).map(|route| route.hops.len()), Some(1));
        assert_eq!((several.through(5), several.kind), (None, UNICAST));
    }

    #[test]
    fn what_cannot_be_decoded_is_no_route() {
        for route in routes() {
            let body = route.write(false).message.body;
            for length in 0..body.len() {
                // Cut between two attributes, it is another route.
                drop(Route::decode(&body[..length]));
            }
            for at in 0..body.len() {
                for value in [0, 1, 3, 0xff] {
                    let mut body = body.clone();
                    body[at] = value;
                    drop(Route::decode(&body));
                }
            }
        }
        assert_eq!(Route::decode(&[2, 33, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0]), None, "no such length");
        assert_eq!(Route::decode(&[7, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0]), None, "another family");
        assert_eq!(Route::decode(&[2, 0, 0, 0, 254, 0, 0, 1, 0, 2, 0, 0]), None, "made for one destination");
    }
}
