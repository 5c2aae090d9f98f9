//! Checks whether the IPv4 reverse path filter drops packets that arrive on an uplink, or on the link of an exception.

use std::{fs, io, net::IpAddr, path::Path};

use super::{
    Finding, Fix, Report, Severity, Subject, Topic,
    survey::Survey,
    uplinks::{IPV4, Uplink},
};
use crate::host::link::{
    Error,
    network::{Link, Network},
};

/// Accept a packet only from the interface of the best route back.
const STRICT: u32 = 1;
/// Accept a packet if any interface has a route back.
const LOOSE: u32 = 2;

pub(super) async fn check(
    uplink: &Uplink<'_>,
    network: &Network,
    link: &Link,
    addresses: &[IpAddr],
    report: &mut Report,
) -> Result<(), Error> {
    let role = format!("the uplink of {}", uplink.policies);
    check_link(uplink.subject(), &role, uplink.name, IPV4.far, network, link, addresses, report).await
}

/// The links of exceptions, which packets of marked sockets use as the uplink.
pub(super) async fn check_exceptions(survey: &Survey, network: &Network, report: &mut Report) -> Result<(), Error> {
    for policy in survey.policies() {
        for exception in policy.reach.except.iter().filter(|exception| exception.to.is_ipv4()) {
            let Some(name) = exception.by.interface().filter(|name| *name != policy.uplink) else { continue };
            let index = survey.table.resolve(name).and_then(|index| u32::try_from(index).ok());
            let Some(link) = index.map(Network::link).transpose()?.flatten().filter(|link| link.is_up) else {
                continue;
            };
            let addresses = network.addresses(&link).await?;
            let role = format!("the link of the exception {exception} of {}", policy.name);
            let subject = Subject::Policy(policy.name.clone());
            check_link(subject, &role, name, exception.to.address(), network, &link, &addresses, report).await?;
        }
    }
    Ok(())
}

/// `far` is an address whose answers arrive on the link.
#[expect(clippy::too_many_arguments, reason = "one link in one role")]
async fn check_link(
    subject: Subject,
    role: &str,
    name: &str,
    far: IpAddr,
    network: &Network,
    link: &Link,
    addresses: &[IpAddr],
    report: &mut Report,
) -> Result<(), Error> {
    let Some(own) = addresses.iter().find(|address| address.is_ipv4()) else {
        report.not_applicable(Topic::ReversePathFilter, subject, "it has no IPv4 address");
        return Ok(());
    };
    let (all, device) = match (rp_filter("all"), rp_filter(&link.name)) {
        (Ok(all), Ok(device)) => (all, device),
        (Err(error), _) | (_, Err(error)) => {
            report.failed(Topic::ReversePathFilter, subject, &error);
            return Ok(());
        }
    };
    // The kernel takes the greater one (`IN_DEV_MAXCONF`), though 2 is less strict than 1.
    let value = all.max(device);
    if value != STRICT {
        report.ok(Topic::ReversePathFilter, subject, format!("rp_filter is {value} on {name}"));
        return Ok(());
    }
    // The filter's own query: the route back to a far sender, for a packet to this address. The packet has no mark.
    let back = network.route(far, None, Some(*own)).await?;
    if back.iter().any(|hop| hop.ifindex == link.index) {
        let detail = format!("rp_filter is 1 on {name}, and the best route back uses this link");
        report.ok(Topic::ReversePathFilter, subject, detail);
        return Ok(());
    }
    report.find(Finding {
        id: Topic::ReversePathFilter,
        severity: Severity::Error,
        subject,
        what: format!(
            "rp_filter is 1 on {name}, {role} (the greater of {device} on the interface and {all} on `all`), and the best route \
             back uses another link"
        ),
        why: "the kernel silently drops every IPv4 answer that arrives on it".to_owned(),
        fix: Some(Fix::interface_sysctl(&link.name, "rp_filter", LOOSE)),
    });
    Ok(())
}

fn rp_filter(interface: &str) -> io::Result<u32> {
    let file = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter");
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}
