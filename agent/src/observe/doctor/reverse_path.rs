//! Checks whether the IPv4 reverse path filter drops packets that arrive on an uplink.

use std::{fs, io, net::IpAddr, path::Path};

use super::{
    Finding, Fix, Report, Severity, Topic,
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
    let Some(own) = addresses.iter().find(|address| address.is_ipv4()) else {
        report.not_applicable(Topic::ReversePathFilter, uplink.subject(), "it has no IPv4 address");
        return Ok(());
    };
    let (all, device) = match (rp_filter("all"), rp_filter(&link.name)) {
        (Ok(all), Ok(device)) => (all, device),
        (Err(error), _) | (_, Err(error)) => {
            report.failed(Topic::ReversePathFilter, uplink.subject(), &error);
            return Ok(());
        }
    };
    // The kernel takes the greater one (`IN_DEV_MAXCONF`), though 2 is less strict than 1.
    let value = all.max(device);
    if value != STRICT {
        report.ok(Topic::ReversePathFilter, uplink.subject(), format!("rp_filter is {value}"));
        return Ok(());
    }
    // The filter's own query: the route back to a far sender, for a packet to this address.
    let back = network.route(IPV4.far, None, Some(*own)).await?;
    if back.iter().any(|hop| hop.ifindex == link.index) {
        report.ok(Topic::ReversePathFilter, uplink.subject(), "rp_filter is 1, and the best route back uses this link");
        return Ok(());
    }
    report.find(Finding {
        id: Topic::ReversePathFilter,
        severity: Severity::Error,
        subject: uplink.subject(),
        what: format!(
            "rp_filter is 1 on {}, the uplink of {} (the greater of {device} on the interface and {all} on `all`), and the \
             best route back uses another link",
            uplink.name, uplink.policies
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
