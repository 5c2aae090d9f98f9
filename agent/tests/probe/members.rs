//! The member that was asked answers, and no other link sees a packet.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener},
    thread,
};

use steer::{
    host::probe::{Failure, Method, Via},
    model::uplink::Family,
};
use steer_lab::{Kind, wait_until};

use crate::bed::{Bed, FAMILIES, LONG, SHORT, bed, ip};

#[test]
fn every_kind_is_answered_by_the_member() {
    let Some(bed) = bed() else { return };
    for family in FAMILIES {
        for via in bed.members(family) {
            for target in bed.targets(family) {
                let mut spy = bed.spy();
                let what = format!("{target} by {via:?}");
                let latency = bed.ask(&target, via, LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(!latency.is_zero() && latency < LONG, "{what}");
                assert!(!spy.member_only(&what).is_empty(), "{what}");
            }
        }
    }
    assert!(
        bed.names().take().iter().any(|question| question.name == "probe.test"),
        "names are resolved by the member"
    );
}

#[test]
fn without_ping_sockets_a_raw_one_asks() {
    let Some(bed) = bed() else { return };
    bed.lab.client.write_sysctl("net/ipv4/ping_group_range", "1 0").expect("written");
    for family in FAMILIES {
        for via in bed.members(family) {
            let mut spy = bed.spy();
            for target in &bed.targets(family)[..2] {
                bed.ask(target, via, LONG).unwrap_or_else(|error| panic!("{target} by {via:?}: {error}"));
            }
            spy.member_only("raw");
        }
    }
    // The answers to this question are of the other link.
    bed.black_hole(true);
    for family in FAMILIES {
        let target = &bed.targets(family)[1];
        bed.ask(target, bed.bound(0, family), LONG).expect("the other link answers");
        assert_eq!(bed.ask(target, bed.bound(1, family), SHORT), Err(Failure::Timeout));
    }
}

#[test]
fn a_link_local_gateway_is_one_of_the_member() {
    let Some(bed) = bed() else { return };
    for (uplink, last) in [(0, "a"), (1, "b")] {
        ip(&bed.lab.server, &format!("-6 address add fe80::1/64 dev b{uplink} nodad"));
        ip(&bed.lab.client, &format!("-6 address add fe80::{last}/64 dev a{uplink} nodad"));
    }
    // Gateways that do not answer make no difference if one does.
    for gateway in ["fe80::1", "fe80::99"] {
        ip(&bed.lab.client, &format!("-6 route append default via {gateway} dev a1 metric 200"));
    }
    ip(&bed.lab.client, "-6 route del default via fd00:1::1 dev a1 metric 200");
    let mut spy = bed.spy();
    bed.ask("gateway", bed.bound(1, FAMILIES[1]), LONG).expect("an answer");
    let packets = spy.member_only("gateway");
    assert!(packets.iter().any(|packet| packet.dst == Some("fe80::1".parse().expect("an address"))), "{packets:?}");
}

#[test]
fn what_the_kernel_sends_for_an_ended_probe_stays_on_the_member() {
    let Some(bed) = bed() else { return };
    for family in FAMILIES {
        let server: IpAddr = bed.bound(1, family).resolver.expect("a server").ip();
        for via in bed.members(family) {
            let listener =
                bed.lab.server.run(|| TcpListener::bind((server, 0))).expect("a namespace").expect("a listener");
            let to = listener.local_addr().expect("an address");
            // As SSH: it says something first, ends when the client has ended, and says something before that.
            let greets = thread::spawn(move || {
                let (mut stream, _) = listener.accept()?;
                stream.write_all(b"hello")?;
                stream.read_to_end(&mut Vec::new())?;
                stream.write_all(b"bye")
            });
            let mut spy = bed.spy();
            bed.ask(&format!("tcp:{to}"), via, LONG).expect("connected");
            greets.join().expect("a server").expect("a client that listens to the end");
            let port = format!(":{:04X} ", to.port());
            wait_until("the connection's end", LONG, || !connections(&bed, family).contains(&port)).expect("the end");
            let packets = spy.member_only(&format!("{to} by {via:?}"));
            assert!(packets.iter().any(|packet| packet.kind == Kind::Tcp), "{packets:?}");
        }
    }
}

/// The server's connections.
fn connections(bed: &Bed, family: Family) -> String {
    let file = if family == Family::V4 { "tcp" } else { "tcp6" };
    let read = bed.lab.server.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    read.expect("a namespace").expect("sockets")
}

#[test]
fn a_mark_without_a_rule_leads_nowhere() {
    let Some(bed) = bed() else { return };
    for family in FAMILIES {
        // The second has the flag of marks, so the last rule refuses it; the first is led to the other link.
        for mark in [0x7, 0x8900_0000] {
            let via = Via { method: Method::Mark(mark), ..bed.bound(1, family) };
            let mut spy = bed.spy();
            for target in &bed.targets(family) {
                assert_eq!(bed.ask(target, via, LONG), Err(Failure::NoRoute), "{target}");
            }
            assert!(spy.member_only("without a rule").is_empty());
        }
    }
}
