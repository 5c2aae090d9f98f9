//! Asks the kernel which route a probe would take, and what the gateways of a link are.
//!
//! An IPv4 socket that is bound to a link needs no route: without one, the kernel takes the destination for a neighbour, and
//! whoever answers ARP for it gets the packet. So a probe looks for the route first.
//!
//! **Invariant:** these functions wait for the kernel, which may be busy with other changes: call them on a thread that may
//! wait.

use std::{io, net::IpAddr};

use super::{
    entry::{self, IPV4, IPV6, RTA_DST, RTA_MULTIPATH, RTA_OIF, RTA_TABLE, Route, UNICAST},
    hop::{Hop, RTA_GATEWAY, RTA_VIA},
    netlink::{Attribute, Connection, Raw},
    state::State,
    table,
};
use crate::model::prefix::Prefix;

const RTA_MARK: u16 = 16;
/// The answer has the table (`RTM_F_LOOKUP_TABLE`).
const WITH_TABLE: u32 = 0x1000;
/// The answer is the route as it was written, and an error if there is none (`RTM_F_FIB_MATCH`, Linux 4.13).
const AS_WRITTEN: u32 = 0x2000;
/// Offset of the type, and length, of `struct rtmsg`.
const KIND: usize = 7;
const HEADER: usize = 12;

/// By what a packet is told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Its socket is bound to the link.
    Bound,
    /// Its socket has this mark, which leads to a table of steer's: a route of another table does not count, even if it is by
    /// the link.
    Mark(u32),
}

/// Whether a route leads such packets to `to` by the link with this index, in the calling thread's network namespace.
/// `ENODEV`: there is no such link.
pub fn leads(link: u32, selector: Selector, to: IpAddr) -> io::Result<bool> {
    let mut connection = Connection::open()?;
    let (family, flags) = if to.is_ipv4() { (IPV4, AS_WRITTEN | WITH_TABLE) } else { (IPV6, WITH_TABLE) };
    let prefix = Prefix::host(to);
    let mut body = vec![family, prefix.len(), 0, 0, 0, 0, 0, 0];
    body.extend(flags.to_ne_bytes());
    let selected = match selector {
        Selector::Bound => Attribute::number(RTA_OIF, link),
        Selector::Mark(mark) => Attribute::number(RTA_MARK, mark),
    };
    Attribute::emit_all(&[Attribute::new(RTA_DST, entry::octets(to)), selected], &mut body);
    match connection.get(&Raw { kind: libc::RTM_GETROUTE, body }, libc::RTM_NEWROUTE) {
        Ok(answer) => Ok(is_by(&answer, link, selector)),
        Err(error) => match error.raw_os_error() {
            // Links without neighbours: a bound IPv4 socket uses them for every destination.
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH) if to.is_ipv4() && selector == Selector::Bound => {
                let state = State::read_link(&mut connection, link)?;
                Ok(state.links.get(&link).is_some_and(|link| link.is_up() && link.needs_no_gateway()))
            }
            Some(
                libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::EAGAIN
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP,
            ) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Whether an answer is a route to another host by this link.
fn is_by(answer: &[u8], link: u32, selector: Selector) -> bool {
    let is_unicast = answer.get(KIND) == Some(&UNICAST);
    let attributes = answer.get(HEADER..).and_then(Attribute::all).unwrap_or_default();
    let number = |kind| attributes.iter().find(|one| one.kind == kind).and_then(Attribute::as_number);
    let is_selected = selector == Selector::Bound || number(RTA_TABLE).is_some_and(table::is_marked);
    let several =
        attributes.iter().filter(|one| one.kind == RTA_MULTIPATH).filter_map(|one| Hop::decode_all(&one.value));
    is_unicast && is_selected && (number(RTA_OIF) == Some(link) || several.flatten().any(|hop| hop.link == link))
}

/// The gateways of the default routes by a link, in all tables but steer's, the preferred ones first. Empty: the link needs
/// none. `None`: no default route uses the link, or it is down or missing.
pub fn gateways(link: u32, is_ipv4: bool) -> io::Result<Option<Vec<IpAddr>>> {
    let mut connection = Connection::open()?;
    let mut state = State::read_link(&mut connection, link)?;
    state.read_routes(&mut connection, if is_ipv4 { IPV4 } else { IPV6 }, Some(link))?;
    Ok(gateways_in(&state, link, is_ipv4))
}

pub(super) fn gateways_in(state: &State, link: u32, is_ipv4: bool) -> Option<Vec<IpAddr>> {
    let all = if is_ipv4 { Prefix::ALL_IPV4 } else { Prefix::ALL_IPV6 };
    let routes = state.mirror(link, is_ipv4);
    let defaults: Vec<&Route> = routes.iter().filter(|route| route.prefix == all && route.source.is_none()).collect();
    if defaults.is_empty() {
        return None;
    }
    let mut gateways = Vec::new();
    for gateway in defaults.iter().flat_map(|route| &route.hops).filter_map(gateway) {
        // An IPv4 route can have an IPv6 gateway. It answers IPv6, and proves nothing about IPv4.
        if gateway.is_ipv4() == is_ipv4 && !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    Some(gateways)
}

fn gateway(hop: &Hop) -> Option<IpAddr> {
    let found = hop.attributes.iter().find(|one| matches!(one.kind, RTA_GATEWAY | RTA_VIA))?;
    // `struct rtvia` has the family in front.
    let address = if found.kind == RTA_VIA { found.value.get(size_of::<u16>()..)? } else { found.value.as_slice() };
    match address.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => None,
    }
}
