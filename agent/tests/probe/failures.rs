//! What fails, how it is told, and that it is told in time.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use steer::host::probe::{Failure, Trust, Via};
use steer_lab::SERVER_V4;

use crate::bed::{Bed, FAMILIES, LONG, SHORT, bed, ip};

/// Every kind of target fails so by every member.
fn all_fail(bed: &Bed, want: &Failure, timeout: Duration) {
    for family in FAMILIES {
        for via in bed.members(family) {
            for (target, result) in bed.ask_all(family, via, timeout) {
                assert_eq!(result.as_ref(), Err(want), "{target} by {via:?}");
            }
        }
    }
}

#[test]
fn a_black_hole_behind_a_live_carrier() {
    let Some(bed) = bed() else { return };
    bed.black_hole(true);
    let mut spy = bed.spy();
    all_fail(&bed, &Failure::Timeout, SHORT);
    assert!(!spy.member_only("black hole").is_empty());
    // The other link is there all the time.
    for family in FAMILIES {
        for target in bed.targets(family) {
            bed.ask(&target, bed.bound(0, family), LONG).unwrap_or_else(|error| panic!("{target}: {error}"));
        }
    }
    bed.black_hole(false);
    bed.ask("gateway", bed.bound(1, FAMILIES[0]), LONG).expect("an answer");
}

#[test]
fn without_a_route_nothing_is_sent() {
    let Some(bed) = bed() else { return };
    ip(&bed.lab.client, "-4 route del default dev a1");
    ip(&bed.lab.client, "-6 route del default dev a1");
    let mut spy = bed.spy();
    for family in FAMILIES {
        for target in bed.targets(family) {
            assert_eq!(bed.ask(&target, bed.bound(1, family), LONG), Err(Failure::NoRoute), "{target}");
        }
    }
    assert!(spy.member_only("no route").is_empty());
    // A bound socket that does not look finds whoever answers ARP.
    let port = bed.servers.http;
    let connected = bed.lab.client.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(b"a1"))?;
        socket.connect(&SocketAddr::new(SERVER_V4.into(), port).into()).map(|()| TcpStream::from(socket))
    });
    connected.expect("a namespace").expect("connected without a route");
}

#[test]
fn a_gateway_needs_a_default_route_and_no_other_target_does() {
    let Some(bed) = bed() else { return };
    for (family, to, via) in [("-4", "198.51.100.1", "10.0.1.1"), ("-6", "fd00:ffff::1", "fd00:1::1")] {
        ip(&bed.lab.client, &format!("{family} route del default dev a1"));
        ip(&bed.lab.client, &format!("{family} route add {to} via {via} dev a1 metric 7"));
    }
    for family in FAMILIES {
        let via = bed.bound(1, family);
        assert_eq!(bed.ask("gateway", via, LONG), Err(Failure::NoRoute));
        bed.ask(&bed.targets(family)[1], via, LONG).expect("a route to the target");
    }
}

#[test]
fn a_link_that_is_down_or_gone() {
    let Some(mut bed) = bed() else { return };
    let gone = bed.members(FAMILIES[0])[0];
    bed.lab.client.set_down("a1").expect("down");
    for family in FAMILIES {
        for via in bed.members(family) {
            for target in bed.targets(family) {
                let failure = bed.ask(&target, via, LONG).expect_err("down");
                assert!(matches!(failure, Failure::NoRoute | Failure::Down), "{target} by {via:?}: {failure}");
            }
        }
    }
    bed.lab.remove_uplink(1).expect("removed");
    for target in ["gateway", "icmp:198.51.100.1"] {
        let failure = bed.ask(target, gone, LONG).expect_err("gone");
        assert!(matches!(failure, Failure::NoRoute | Failure::NoLink), "{target}: {failure}");
    }
    bed.lab.create_uplink(1).expect("made again");
}

#[test]
fn reverse_path_filters_affect_ipv4_only() {
    let Some(bed) = bed() else { return };
    bed.lab.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1").expect("written");
    let target = |family| bed.targets(family).swap_remove(1);
    let [v4, v6] = FAMILIES;
    for via in bed.members(v4) {
        assert_eq!(bed.ask(&target(v4), via, SHORT), Err(Failure::Timeout), "{via:?}");
        // The gateway is on the link.
        bed.ask("gateway", via, LONG).expect("an answer");
    }
    for via in bed.members(v6) {
        bed.ask(&target(v6), via, LONG).expect("an answer");
    }
}

#[test]
fn a_link_without_gateways() {
    let Some(bed) = bed() else { return };
    let _tun = bed.lab.client.add_tun("tun0").expect("a link");
    for command in [
        "address add 10.8.0.2/24 dev tun0",
        "-6 address add fd08::2/64 dev tun0 nodad",
        "link set tun0 up",
        "-6 route add default dev tun0 metric 900",
    ] {
        ip(&bed.lab.client, command);
    }
    let ifindex = bed.lab.client.ifindex("tun0").expect("a link");
    for family in FAMILIES {
        let via = Via { ifindex, ..bed.bound(1, family) };
        assert_eq!(bed.ask("gateway", via, LONG), Err(Failure::NoGateway));
        // IPv4 needs no route on such a link.
        assert_eq!(bed.ask(&bed.targets(family)[1], via, SHORT), Err(Failure::Timeout));
    }
}

#[test]
fn answers_that_do_not_count() {
    let Some(bed) = bed() else { return };
    let [v4, v6] = FAMILIES;
    let via = bed.bound(1, v4);
    for (port, want) in bed.servers.errors.clone() {
        let result = bed.ask(&format!("dns:{SERVER_V4}:{port}"), via, LONG);
        assert_eq!(result.err(), want.map(|text| Failure::Answer(text.to_owned())), "after a stranger's answer");
    }
    let silent = bed.servers.silent;
    for (target, want) in [
        (format!("tcp:{SERVER_V4}:9"), Failure::Refused),
        (format!("dns:{SERVER_V4}:9"), Failure::Refused),
        (format!("http://{SERVER_V4}:9/"), Failure::Refused),
        (format!("http://{SERVER_V4}:{silent}/"), Failure::Timeout),
        (format!("https://{SERVER_V4}:{silent}/"), Failure::Timeout),
        ("icmp:fd00:ffff::1".to_owned(), Failure::OtherFamily),
    ] {
        let timeout = if want == Failure::Timeout { SHORT } else { LONG };
        assert_eq!(bed.ask(&target, via, timeout), Err(want), "{target}");
    }
    // One of the other family is none.
    let via = Via { resolver: bed.bound(1, v4).resolver, ..bed.bound(1, v6) };
    let target = format!("http://probe.test:{}/204", bed.servers.http);
    assert_eq!(bed.ask(&target, via, LONG), Err(Failure::NoResolver));
}

#[test]
fn a_router_says_so_at_once() {
    let Some(bed) = bed() else { return };
    ip(&bed.lab.server, "route add unreachable 192.0.2.0/24");
    bed.lab.server.write_sysctl("net/ipv4/conf/all/forwarding", "1").expect("written");
    bed.lab.server.write_sysctl("net/ipv4/icmp_ratelimit", "0").expect("written");
    // The kernel still reports five at a time only, so not by each method.
    for target in ["icmp:192.0.2.1", "tcp:192.0.2.1:80", "dns:192.0.2.1"] {
        assert_eq!(bed.ask(target, bed.bound(1, FAMILIES[0]), LONG), Err(Failure::Unreachable), "{target}");
    }
}

#[test]
fn certificates_are_verified() {
    let Some(bed) = bed() else { return };
    let (http, https) = (bed.servers.http, bed.servers.https);
    let via = bed.bound(1, FAMILIES[0]);
    let certificate = |result| match result {
        Err(Failure::Certificate(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = certificate(bed.ask(&format!("https://other.test:{https}/204"), via, LONG));
    assert!(text.contains("other.test"), "{text}");
    let result = bed.ask_trusting(&format!("https://{SERVER_V4}:{https}/204"), via, LONG, &Trust::System);
    match result {
        Err(Failure::NoCertificates(_)) => eprintln!("skipped in part: this host has no certificates"),
        other => drop(certificate(other)),
    }
    let result = bed.ask(&format!("https://{SERVER_V4}:{http}/204"), via, LONG);
    assert!(matches!(result, Err(Failure::Protocol(_) | Failure::Ended)), "no TLS: {result:?}");
}
