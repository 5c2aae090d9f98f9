//! Copies of all that routes can have.

use crate::bed::{Bed, ONE, bed, exception, mark};
use steer::host::route::{By, Local, steps};

/// Writes a policy with this uplink, and gives its table without metrics.
fn table(bed: &Bed, uplink: &str) -> Vec<String> {
    let wanted = Bed::wanted(vec![bed.policy(1, uplink)], vec![]);
    bed.write(&wanted);
    let left = steps(&bed.plan(&wanted), &bed.state());
    assert!(left.is_empty(), "written, and yet different: {left:?}");
    let number = 0x73 << 24 | 0x1a2 << 12 | 1;
    let routes = bed.ip(&format!("-4 route show table {number}")) + &bed.ip(&format!("-6 route show table {number}"));
    routes.lines().map(|line| line.replace("proto 115 ", "").trim().to_owned()).collect()
}

#[test]
fn routes_keep_what_they_have() {
    let Some(bed) = bed() else { return };
    for route in [
        "10.1.0.0/16 via 10.9.0.1 dev up0 mtu 1300 src 10.9.0.2",
        "10.2.0.0/16 nexthop via 10.9.0.1 dev up0 weight 2 nexthop via 10.9.0.9 dev up0",
        "10.3.0.0/16 nexthop via 10.9.0.1 dev up0 nexthop via 192.168.1.1 dev eth0",
        "10.4.0.0/16 via 172.16.0.1 dev up0 onlink",
        "10.5.0.0/16 via inet6 fe80::9 dev up0",
        "10.6.0.0/16 via 10.9.0.1 dev up0 realm 7",
        "10.7.0.0/16 via 10.9.0.1 dev up0 metric 50",
        "10.7.0.0/16 via 10.9.0.9 dev up0 metric 60",
        "10.8.0.0/16 tos 0x10 via 10.9.0.1 dev up0",
        "10.13.0.0/16 encap ip id 7 dst 10.9.0.9 dev up0",
        "unreachable 10.10.0.0/16",
        "blackhole 10.11.0.0/16",
    ] {
        bed.ip(&format!("-4 route add {route}"));
    }
    bed.ip("nexthop add id 7 via 10.9.0.9 dev up0");
    bed.ip("route add 10.12.0.0/16 nhid 7");
    for route in [
        "2001:db8:1::/48 via fe80::9 dev up0 mtu 1300",
        "2001:db8:2::/48 nexthop via fd09::1 dev up0 nexthop via fd09::9 dev up0 weight 3",
        "2001:db8:3::/48 via fd09::1 dev up0 pref high",
        "2001:db8:4::/48 via fd09::1 dev up0 src fd09::2 expires 3000",
        "2001:db8:6::/48 from fd09::/64 via fd09::1 dev up0",
        "2001:db8:7::/48 encap seg6 mode encap segs fd09::9 dev up0",
        "2001:db8:5::/48 nexthop via fd09::1 dev up0 nexthop via fd01::1 dev eth0",
    ] {
        bed.ip(&format!("-6 route add {route}"));
    }
    let table = table(&bed, "up0");
    let has = |start: &str, parts: &[&str]| {
        let found = table.iter().filter(|route| route.starts_with(start)).collect::<Vec<_>>();
        assert!(
            found.iter().any(|route| parts.iter().all(|part| route.contains(part))),
            "{start} {parts:?}: {table:#?}"
        );
        found.len()
    };
    has("default", &["via 10.9.0.1", "dev up0"]);
    has("default", &["via fd09::1", "dev up0"]);
    has("10.9.0.0/24", &["dev up0", "scope link", "src 10.9.0.2"]);
    has("fe80::/64", &["dev up0"]);
    has("fd09::/64", &["dev up0"]);
    has("10.1.0.0/16", &["via 10.9.0.1", "mtu 1300", "src 10.9.0.2"]);
    has("10.3.0.0/16", &["via 10.9.0.1"]);
    has("10.4.0.0/16", &["via 172.16.0.1", "onlink"]);
    has("10.5.0.0/16", &["via inet6 fe80::9"]);
    has("10.6.0.0/16", &["realm 7"]);
    assert_eq!(has("10.7.0.0/16", &["via 10.9.0.1", "metric 1"]), 2);
    has("10.7.0.0/16", &["via 10.9.0.9", "metric 2"]);
    has("10.8.0.0/16", &["tos"]);
    has("10.12.0.0/16", &["via 10.9.0.9"]);
    has("10.13.0.0/16", &["encap ip id 7", "dst 10.9.0.9"]);
    has("2001:db8:6::/48", &["from fd09::/64"]);
    has("2001:db8:7::/48", &["encap seg6", "fd09::9"]);
    has("2001:db8:1::/48", &["via fe80::9", "mtu 1300"]);
    has("2001:db8:3::/48", &["pref high"]);
    has("2001:db8:4::/48", &["src fd09::2"]);
    has("2001:db8:5::/48", &["via fd09::1"]);
    let text = table.join("\n");
    for hops in [["10.2.0.0/16", "weight 2"], ["2001:db8:2::/48", "weight 3"]] {
        assert!(hops.iter().all(|part| text.contains(part)), "{text}");
    }
    for absent in ["eth0", "eth1", "nhid", "expires", "10.10.0.0", "10.11.0.0"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    bed.remove(ONE);
}

#[test]
fn routes_are_followed() {
    let Some(bed) = bed() else { return };
    let has = |table: &[String], start: &str| table.iter().any(|route| route.starts_with(start));
    assert!(has(&table(&bed, "up0"), "default via 10.9.0.1"));
    bed.ip("route replace default via 10.9.0.9 dev up0 table 51820");
    assert!(has(&table(&bed, "up0"), "default via 10.9.0.9"));
    bed.ip("-6 route add 2001:db8::/32 nexthop via fd09::1 dev up0 nexthop via fd09::9 dev up0");
    table(&bed, "up0");
    bed.ip("-6 route replace 2001:db8::/32 via fd09::9 dev up0");
    table(&bed, "up0");
    bed.ip("-6 route replace 2001:db8::/32 nexthop via fd09::1 dev up0 nexthop via fd09::9 dev up0");
    table(&bed, "up0");
    bed.ip("-6 route del 2001:db8::/32");
    assert!(!has(&table(&bed, "up0"), "2001:db8::/32"));
    bed.ip("link set up0 down");
    assert_eq!(table(&bed, "up0"), Vec::<String>::new());
    bed.ip("link set up0 up");
    bed.ip("route add default via 10.9.0.1 dev up0 table 51820");
    assert!(has(&table(&bed, "up0"), "default via 10.9.0.1") && has(&table(&bed, "up0"), "10.9.0.0/24"));
}

#[test]
fn a_link_without_gateways_leads_everywhere() {
    let Some(bed) = bed() else { return };
    bed.ip("link add tunnel type veth peer name other");
    bed.ip("link set tunnel arp off up");
    bed.ip("link set other up");
    bed.ip("address add 10.66.0.2/32 dev tunnel");
    let defaults = |table: Vec<String>| table.into_iter().filter(|route| route.starts_with("default")).count();
    assert_eq!(defaults(table(&bed, "tunnel")), 1, "without an IPv6 address, IPv4 only");
    bed.ip("address add fd66::2/128 dev tunnel nodad");
    assert_eq!(defaults(table(&bed, "tunnel")), 2);
    assert_eq!(bed.send(mark(1), "198.51.100.1").expect("sent"), "tunnel");
    assert_eq!(bed.send(mark(1), "2001:db8::1").expect("sent"), "tunnel");
    bed.ip("route add default dev tunnel table 100 metric 7 mtu 1280");
    let table = table(&bed, "tunnel");
    assert_eq!(table.iter().filter(|route| route.starts_with("default")).count(), 2, "{table:?}");
    assert!(table.iter().any(|route| route.contains("mtu 1280")), "its own default route: {table:?}");
}

#[test]
fn networks_of_this_host() {
    let Some(bed) = bed() else { return };
    bed.ip("link add br0 type bridge");
    bed.ip("link set br0 up");
    bed.ip("address add 172.17.0.1/16 dev br0");
    bed.ip("link add tunnel type veth peer name other");
    bed.ip("link set tunnel arp off up");
    bed.ip("link set other up");
    bed.ip("address add 10.66.0.2/24 dev tunnel");
    let _tun = bed.host.add_tun("tap").expect("a tun");
    bed.ip("link set tap up");
    bed.ip("address add 10.67.0.2/24 dev tap");
    bed.ip("route add 10.0.0.0/7 dev eth0 scope link");
    bed.ip("route add 10.50.0.0/16 via 192.168.1.1");
    let mut policy = bed.policy(1, "up0");
    policy.local = Local { lan: true, discovery: false };
    policy.exceptions = vec![exception("fe80::/10", By::Refuse)];
    let wanted = Bed::wanted(vec![policy], vec![]);
    let plan = bed.plan(&wanted);
    let allowed: Vec<_> =
        plan.passes[&1].iter().filter(|pass| pass.allow).map(|pass| pass.prefix.to_string()).collect();
    for network in ["192.168.1.0/24", "192.168.3.0/24", "172.17.0.0/16", "fd01::/64", "fd03::/64", "fe80::/64"] {
        assert!(allowed.iter().any(|prefix| prefix == network), "{network}: {allowed:?}");
    }
    for prefix in &allowed {
        assert!(!prefix.starts_with("10."), "{prefix}: {allowed:?}");
    }
    bed.write(&wanted);
    let scoped = bed.index("eth1");
    let socket = |socket: &socket2::Socket| socket.bind_device_by_index_v6(std::num::NonZeroU32::new(scoped));
    assert_eq!(bed.send_by(mark(1), "fe80::9", socket).expect("sent"), "eth1");
}

#[test]
fn a_host_that_uses_no_ipv6() {
    let Some(bed) = bed() else { return };
    bed.host.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1").expect("a sysctl");
    let mut policy = bed.policy(1, "up0");
    policy.local = Local { lan: true, discovery: true };
    policy.exceptions = vec![exception("2001:db8::/32", By::Refuse), exception("2001:db8:1::/48", By::Main)];
    bed.write(&Bed::wanted(vec![policy], vec![bed.index("up0")]));
    assert_eq!(bed.send(mark(1), "198.51.100.1").expect("sent"), "up0");
    assert!(bed.send(mark(1), "2001:db9::1").is_err());
    bed.remove(ONE);
}
