//! Readings of the rules and routes of a namespace, one after the other, as fast as a change by a daemon matters.
//!
//! Reports of netlink are not enough: the kernel removes IPv4 routes with an address or a link without a report.
//!
//! **Invariant:** only reads.

use crate::{
    error::{Error, Result},
    netns::Netns,
};
use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// The time between two readings.
const EVERY: Duration = Duration::from_millis(3);

/// A unicast route with one link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSeen {
    /// Its table.
    pub table: u32,
    /// The index of its link.
    pub link: u32,
    /// The destination.
    pub to: IpAddr,
    /// The length of the destination's prefix.
    pub prefix_len: u8,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSeen {
    /// Whether it is for IPv4.
    pub is_ipv4: bool,
    /// Its preference.
    pub preference: u32,
    /// Its mark, if any.
    pub mark: u32,
    /// Its table; 0 for other actions.
    pub table: u32,
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// All unicast routes.
    pub routes: BTreeSet<RouteSeen>,
    /// All rules.
    pub rules: BTreeSet<RuleSeen>,
}

impl Tables {
    /// Reads once.
    pub fn read(netns: &Netns) -> Result<Self> {
        netns.rtnetlink("read rules and routes", read)
    }

    /// Reads until `stop` is set, and gives each reading to `take`.
    pub fn follow(netns: &Netns, stop: &AtomicBool, mut take: impl FnMut(Self) + Send) -> Result<()> {
        netns.block_on(|| async {
            let (connection, handle, _) = rtnetlink::new_connection()
                .map_err(|source| Error::Os { doing: "read rules and routes".to_owned(), source })?;
            tokio::spawn(connection);
            while !stop.load(Ordering::Relaxed) {
                let read = read(handle.clone()).await;
                take(read.map_err(|error| Error::netlink("read rules and routes", error))?);
                std::thread::sleep(EVERY);
            }
            Ok(())
        })?
    }
}

async fn read(handle: rtnetlink::Handle) -> std::result::Result<Tables, rtnetlink::Error> {
    let mut tables = Tables::default();
    for message in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let routes: Vec<RouteMessage> = handle.route().get(message).execute().try_collect().await?;
        tables.routes.extend(routes.iter().filter_map(route));
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
        tables.rules.extend(rules.iter().map(rule));
    }
    Ok(tables)
}

fn route(message: &RouteMessage) -> Option<RouteSeen> {
    let is_ipv4 = message.header.address_family == AddressFamily::Inet;
    let any = if is_ipv4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut seen = RouteSeen {
        table: message.header.table.into(),
        link: 0,
        to: any,
        prefix_len: message.header.destination_prefix_length,
        gateway: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => seen.table = *table,
            RouteAttribute::Oif(link) => seen.link = *link,
            RouteAttribute::Destination(to) => seen.to = address(to)?,
            RouteAttribute::Gateway(gateway) => seen.gateway = address(gateway),
            _ => {}
        }
    }
    (message.header.kind == RouteType::Unicast && seen.link != 0).then_some(seen)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn rule(message: &RuleMessage) -> RuleSeen {
    let is_ipv4 = message.header.family == AddressFamily::Inet;
    let mut seen = RuleSeen { is_ipv4, preference: 0, mark: 0, table: message.header.table.into() };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(preference) => seen.preference = *preference,
            RuleAttribute::FwMark(mark) => seen.mark = *mark,
            RuleAttribute::Table(table) => seen.table = *table,
            _ => {}
        }
    }
    seen
}
