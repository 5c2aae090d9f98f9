use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use steer_common::meter::{TrafficKey, TrafficRecord};

use super::{Frame, LinkFrame};
use crate::{
    model::spec::{Enforce, Existing},
    observe::{
        status::{CgroupStatus, Origin, PolicyStatus, Status},
        top::Sample,
    },
};

const STEERED: u64 = 10;
const CHILD: u64 = 11;
const UNSTEERED: u64 = 99;

fn policy(counters: &[(&str, u64)]) -> PolicyStatus {
    PolicyStatus {
        slot: 1,
        name: "vpn".to_owned(),
        origin: Origin::Config,
        interface: Some("wg0".to_owned()),
        uplink: None,
        ifindex: Some(7),
        members: Vec::new(),
        stale: None,
        state: None,
        netns_cookie: Some(1),
        cgroups: vec![CgroupStatus {
            elsewhere: Vec::new(),
            path: Some("/a".parse().expect("a path")),
            id: STEERED,
            complete: true,
            programs: Vec::new(),
            manual: false,
        }],
        dns: Vec::new(),
        dns_of_link: false,
        existing: Existing::Keep,
        enforce: Enforce::Strict,
        local: Vec::new(),
        except: Vec::new(),
        counters: counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        account: false,
        traffic: Vec::new(),
    }
}

fn sample(at: Instant, policy: PolicyStatus, traffic: &[(u64, u32, u64)], sockets: &[(u64, u64)]) -> Sample {
    let traffic = traffic.iter().map(|&(cgroup_id, ifindex, packets)| {
        let key = TrafficKey { cgroup_id, ifindex, padding: 0 };
        (key, TrafficRecord { packets, bytes: packets * 100 })
    });
    Sample {
        time: Timestamp::UNIX_EPOCH,
        at,
        status: Status { policies: vec![policy], ..Status::default() },
        uplinks: Vec::new(),
        netns_cookie: 1,
        sockets: sockets.iter().copied().collect(),
        traffic: traffic.collect(),
        steered: BTreeMap::from([(STEERED, STEERED), (CHILD, STEERED)]),
        links: BTreeMap::from([(1, "lo".to_owned()), (3, "eth0".to_owned()), (7, "wg0".to_owned())]),
    }
}

fn frame(before: (PolicyStatus, &[(u64, u32, u64)]), after: (PolicyStatus, &[(u64, u32, u64)])) -> Frame {
    let start = Instant::now();
    Frame::between(
        &sample(start, before.0, before.1, &[(CHILD, 2)]),
        &sample(start + Duration::from_secs(2), after.0, after.1, &[(STEERED, 1), (CHILD, 5), (UNSTEERED, 9)]),
    )
}

fn links(frame: &Frame) -> Vec<(&str, u64, bool)> {
    let links = frame.policies[0].cgroups[0].links.iter();
    links.map(|link: &LinkFrame| (link.interface.as_deref().unwrap_or("?"), link.packets, link.stopped)).collect()
}

#[test]
fn a_cgroup_includes_its_children() {
    let before: &[_] = &[(CHILD, 7, 10)];
    let after: &[_] = &[(STEERED, 7, 1), (CHILD, 7, 15), (CHILD, 1, 3), (UNSTEERED, 7, 50)];
    let frame = frame((policy(&[("bound", 2)]), before), (policy(&[("bound", 6), ("closed_missing", 1)]), after));
    assert!((frame.seconds - 2.0).abs() < 1e-9);
    assert_eq!(links(&frame), [("lo", 3, false), ("wg0", 6, false)]);
    let shown = &frame.policies[0];
    assert_eq!((shown.sockets, shown.cgroups[0].sockets), (5, 4));
    assert_eq!(shown.blocked, BTreeMap::from([("closed_missing".to_owned(), 1)]));
    assert_eq!(shown.sent(), (9, 900));
}

#[test]
fn stopped_packets_are_not_sent() {
    let after: &[_] = &[(CHILD, 3, 4), (CHILD, 7, 1)];
    let stopped = frame((policy(&[]), &[]), (policy(&[("stopped_egress", 4)]), after));
    assert_eq!(links(&stopped), [("eth0", 4, true), ("wg0", 1, false)]);
    assert_eq!(stopped.policies[0].sent(), (1, 100));
    // Without strict there is no guard: the packets left.
    let steer = |counters| PolicyStatus { enforce: Enforce::Steer, ..policy(counters) };
    let leaked = frame((steer(&[]), &[]), (steer(&[("stopped_connect", 4)]), after));
    assert_eq!(links(&leaked), [("eth0", 4, false), ("wg0", 1, false)]);
    // A missing uplink has no index that matches a link.
    let missing = |counters| PolicyStatus { ifindex: None, ..policy(counters) };
    let closed = frame((missing(&[]), &[]), (missing(&[("stopped_egress", 5)]), after));
    assert_eq!(links(&closed), [("eth0", 4, true), ("wg0", 1, true)]);
}

#[test]
fn a_reset_counter_counts_from_zero() {
    let frame = frame((policy(&[("bound", 9)]), &[(CHILD, 7, 100)]), (policy(&[("bound", 2)]), &[(CHILD, 7, 3)]));
    assert_eq!(links(&frame), [("wg0", 3, false)]);
    assert_eq!(frame.policies[0].sockets, 2);
}

#[test]
fn another_network_namespace_has_other_links() {
    let elsewhere = || PolicyStatus { netns_cookie: Some(2), ..policy(&[]) };
    let frame = frame((elsewhere(), &[]), (elsewhere(), &[(CHILD, 3, 1), (CHILD, 7, 1)]));
    assert_eq!(links(&frame), [("?", 1, false), ("wg0", 1, false)]);
}
