//! Checks that uplinks exist, are up, and have addresses and routes.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Finding, Fix, Report, Severity, Subject, Topic, reverse_path, survey::Survey};
use crate::{
    host::link::{
        Error,
        network::{FAR_IPV4, FAR_IPV6, Link, Network},
    },
    model::quote::quoted,
};

/// The differences between the address families.
pub(super) struct Family {
    name: &'static str,
    address_id: Topic,
    route_id: Topic,
    /// An address that only a default route reaches.
    pub(super) far: IpAddr,
    no_route: &'static str,
    no_address: &'static str,
    ip: &'static str,
    any: &'static str,
}

pub(super) const IPV4: Family = Family {
    name: "IPv4",
    address_id: Topic::Ipv4Address,
    route_id: Topic::Ipv4Route,
    far: FAR_IPV4,
    no_route: "the kernel sends ARP requests on the link for every destination without a route, and gets no answer: programs \
               time out",
    no_address: "its packets have the address of another interface as their source, so no answers arrive",
    ip: "ip",
    any: "0.0.0.0/0",
};

pub(super) const IPV6: Family = Family {
    name: "IPv6",
    address_id: Topic::Ipv6Address,
    route_id: Topic::Ipv6Route,
    far: FAR_IPV6,
    no_route: "programs get ENETUNREACH for every destination without a route",
    no_address: "programs get ENETUNREACH or EADDRNOTAVAIL with IPv6; most of them then use IPv4",
    ip: "ip -6",
    any: "::/0",
};

/// An uplink and the policies that use it.
pub(super) struct Uplink<'a> {
    pub(super) name: &'a str,
    pub(super) policies: String,
    /// Whether it is only a member of groups, which have others.
    pub(super) is_member: bool,
    /// Whether another member of each of these groups works.
    pub(super) others_work: bool,
}

impl Uplink<'_> {
    pub(super) fn subject(&self) -> Subject {
        Subject::Uplink(self.name.to_owned())
    }
}

pub(super) async fn check(survey: &Survey, report: &mut Report) -> Result<(), Error> {
    let uplinks = survey.uplinks();
    if uplinks.is_empty() {
        report.not_applicable(Topic::Uplink, Subject::Host, "no policy steers anything in this network namespace");
        return Ok(());
    }
    let network = Network::new()?;
    for (name, policies) in &uplinks {
        let uplink = Uplink {
            name,
            policies: named(policies),
            is_member: survey.is_member(name),
            others_work: survey.others_work(name),
        };
        let index = survey.table.resolve(name).and_then(|index| u32::try_from(index).ok());
        let link = match index {
            Some(index) => Network::link(index)?,
            None => None,
        };
        if let Some(link) = check_link(&uplink, link, report) {
            let addresses = network.addresses(&link).await?;
            for family in [IPV4, IPV6] {
                check_family(&uplink, &family, &network, &link, &addresses, report).await?;
            }
            reverse_path::check(&uplink, &network, &link, &addresses, report).await?;
        }
    }
    reverse_path::check_exceptions(survey, &network, report).await
}

/// Policies in a sentence.
fn named(policies: &BTreeSet<String>) -> String {
    let names: Vec<_> = policies.iter().map(String::as_str).collect();
    match &names[..] {
        [rest @ .., last] if !rest.is_empty() => format!("policies {} and {last}", rest.join(", ")),
        names => format!("policy {}", names.concat()),
    }
}

/// Returns the link if it can be used.
fn check_link(uplink: &Uplink<'_>, link: Option<Link>, report: &mut Report) -> Option<Link> {
    let wrong = |what, why: &str, fix| Finding {
        id: Topic::Uplink,
        severity: if uplink.is_member { Severity::Warning } else { Severity::Error },
        subject: uplink.subject(),
        what,
        why: match (uplink.is_member, uplink.others_work) {
            (true, true) => "new sockets of these policies get the other members",
            (true, false) => "no other member of the group works",
            (false, _) => why,
        }
        .to_owned(),
        fix: Some(fix),
    };
    let found = match link {
        None if uplink.is_member => wrong(
            format!("there is no interface {}, a member of the uplink of {}", uplink.name, uplink.policies),
            "",
            Fix::advice(
                "create the interface, or correct `members` of the uplink; `ip -brief link` lists all interfaces",
            ),
        ),
        None => wrong(
            format!("there is no interface {}, the uplink of {}", uplink.name, uplink.policies),
            "the cgroups of these policies have no network until it exists",
            Fix::advice(
                "create the interface, or correct `interface` in the policy; `ip -brief link` lists all interfaces",
            ),
        ),
        Some(link) if !link.is_up => wrong(
            format!("{}, the uplink of {}, is down", uplink.name, uplink.policies),
            "programs of these policies get ENETUNREACH",
            Fix::command(format!("ip link set dev {} up", quoted(&link.name))),
        ),
        Some(link) if !link.has_carrier => wrong(
            format!("{}, the uplink of {}, has no carrier", uplink.name, uplink.policies),
            "nothing is connected at the other end, so packets are lost",
            Fix::advice("check the cable, the radio, or the process or peer at the other end"),
        ),
        Some(link) => {
            report.ok(Topic::Uplink, uplink.subject(), format!("it is up, with index {}", link.index));
            return Some(link);
        }
    };
    report.find(found);
    for id in [IPV4.address_id, IPV4.route_id, IPV6.address_id, IPV6.route_id, Topic::ReversePathFilter] {
        report.not_applicable(id, uplink.subject(), "the uplink is not up");
    }
    None
}

async fn check_family(
    uplink: &Uplink<'_>,
    family: &Family,
    network: &Network,
    link: &Link,
    addresses: &[IpAddr],
    report: &mut Report,
) -> Result<(), Error> {
    let own: Vec<_> = addresses.iter().filter(|address| address.is_ipv4() == family.far.is_ipv4()).collect();
    let has_route = !network.route(family.far, Some(link.index), None).await?.is_empty();
    let no_address = || Finding {
        id: family.address_id,
        // Without a route, a missing IPv6 address does no harm. IPv4 uses the address of another interface.
        severity: if has_route || family.far.is_ipv4() { Severity::Warning } else { Severity::Info },
        subject: uplink.subject(),
        what: format!(
            "{}, the uplink of {}, has no {} address that is valid beyond the link",
            uplink.name, uplink.policies, family.name
        ),
        why: family.no_address.to_owned(),
        fix: Some(Fix::advice(format!("{} address add ADDRESS/PREFIX dev {}", family.ip, quoted(&link.name)))),
    };
    let no_route = || Finding {
        id: family.route_id,
        severity: Severity::Warning,
        subject: uplink.subject(),
        what: format!("there is no {} default route through {}", family.name, uplink.name),
        why: family.no_route.to_owned(),
        fix: Some(default_route(family, link)),
    };
    let addresses = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let found = own.is_empty().then(no_address);
    report.conclude(family.address_id, uplink.subject(), found.into_iter().collect(), addresses);
    if own.is_empty() {
        report.not_applicable(family.route_id, uplink.subject(), format!("it has no {} address", family.name));
    } else {
        let found = (!has_route).then(no_route);
        let ok = format!("there is a default route through {}", uplink.name);
        report.conclude(family.route_id, uplink.subject(), found.into_iter().collect(), ok);
    }
    Ok(())
}

/// A route for sockets that are bound to the link. Its metric is high, so that other sockets prefer any other route.
fn default_route(family: &Family, link: &Link) -> Fix {
    const METRIC: u32 = 4096;
    let Family { ip, any, .. } = family;
    let link_name = quoted(&link.name);
    if link.needs_no_gateway {
        return Fix::command(format!("{ip} route add {any} dev {link_name} metric {METRIC}"));
    }
    Fix::advice(format!("{ip} route add {any} via GATEWAY dev {link_name} metric {METRIC}"))
}
