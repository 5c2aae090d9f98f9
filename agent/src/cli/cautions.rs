//! What commands that steer at once say on standard error: names that no link has, and uplinks by which nothing leaves now.

use std::net::IpAddr;

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use steer_common::{CLOSED_IFINDEX, Kind, Owner, PolicyRecord, policy_flags};

use crate::{
    host::{
        link::{self, Table},
        resolver,
    },
    kernel::{self, Datapath, Pins},
    model::{
        quote::shown,
        spec::{Exceptions, PolicySpec},
    },
};

/// Whether it is the loopback interface.
pub(super) fn is_loopback(ifindex: i32) -> bool {
    link::name_of(ifindex)
        .and_then(|name| flags(&name))
        .is_some_and(|flags| flags.contains(InterfaceFlags::IFF_LOOPBACK))
}

/// The flags of the link with this name.
fn flags(name: &str) -> Option<InterfaceFlags> {
    getifaddrs().ok()?.find(|address| address.interface_name == name).map(|address| address.flags)
}

/// Warns about exceptions by an interface that is missing, and about resolvers of this host.
pub(super) fn of_options(spec: &PolicySpec, links: &Table) {
    for exception in spec.except.iter().flat_map(Exceptions::iter) {
        if let Some(name) = exception.by.interface().filter(|name| links.resolve(name).is_none()) {
            log::warn!("there is no interface {name}; until there is, {} cannot be reached", exception.to);
        }
    }
    let dns = spec.dns.unwrap_or_default();
    let own = if dns.is_empty() { Vec::new() } else { resolver::own_addresses() };
    for address in [dns.v4.map(IpAddr::V4), dns.v6.map(IpAddr::V6)].into_iter().flatten() {
        if !own.contains(&address) {
            continue;
        }
        if spec.local.is_some_and(|local| local.host) {
            log::warn!(
                "--dns {address} is an address of this host, which asks by its own routes and not by the uplink"
            );
        } else {
            log::warn!(
                "--dns {address} is an address of this host, so names are not resolved: name a resolver behind the uplink"
            );
        }
    }
}

/// Warns if nothing leaves by the uplink of a cgroup now.
pub(super) fn of_uplink(pins: &Pins, cgroup_id: u64) {
    match problem_of_uplink(pins, cgroup_id) {
        Ok(Some(problem)) => log::warn!("{problem}; until then, nothing gets out"),
        Ok(None) => {}
        // It is steered all the same.
        Err(error) => log::debug!("look at the uplink: {error}"),
    }
}

fn problem_of_uplink(pins: &Pins, cgroup_id: u64) -> anyhow::Result<Option<String>> {
    let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
    let Some(policy) = datapath.policy_of(cgroup_id)? else { return Ok(None) };
    // The links of another network namespace are not seen from here.
    if policy.kind != Kind::Steer as u32 || policy.netns_cookie != kernel::netns_cookie()? {
        return Ok(None);
    }
    Ok(if policy.flags & policy_flags::GROUP == 0 { of_interface(&policy) } else { of_group(&datapath, &policy)? })
}

fn of_interface(policy: &PolicyRecord) -> Option<String> {
    let name = kernel::text(&policy.interface);
    let interface = shown(&name).to_string();
    // A policy without an interface is closed for good, and says so elsewhere.
    if policy.ifindex == CLOSED_IFINDEX {
        return (!name.is_empty()).then(|| format!("there is no interface {interface} yet"));
    }
    let flags = flags(&link::name_of(policy.ifindex)?)?;
    if !flags.contains(InterfaceFlags::IFF_UP) {
        return Some(format!("{interface} is down: `ip link set dev {interface} up` sets it up"));
    }
    (!flags.contains(InterfaceFlags::IFF_RUNNING)).then(|| format!("{interface} has no carrier: wait for the line"))
}

fn of_group(datapath: &Datapath, policy: &PolicyRecord) -> Result<Option<String>, kernel::Error> {
    let groups = datapath.groups()?;
    let Some(group) = groups.get(&policy.uplink).filter(|group| group.live == [0, 0]) else { return Ok(None) };
    let name = shown(&kernel::text(&group.name)).to_string();
    let has_members = group.ifindex.iter().any(|ifindex| *ifindex > 0);
    Ok(match has_members {
        false => Some(format!("uplink {name} has no line: no interface that is no tunnel has a default route")),
        // The states of a group that was just made were logged.
        true if policy.owner == Owner::Config as u32 => Some(format!("no member of uplink {name} works")),
        true => None,
    })
}
