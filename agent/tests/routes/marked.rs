//! Where marked packets go.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use socket2::Socket;
use steer::host::route::{By, Invalid, Local, Wanted};

use crate::bed::{Bed, ONE, OTHER, bed, exception, mark, mask};

/// What a row expects: a link, or an error.
fn shown(result: io::Result<String>) -> String {
    result.unwrap_or_else(|error| error.raw_os_error().map_or_else(|| error.to_string(), errno))
}

fn errno(number: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(number))
}

#[test]
fn destinations_take_their_links() {
    let Some(bed) = bed() else { return };
    let mut policy = bed.policy(1, "up0");
    policy.local.lan = true;
    policy.resolvers = ["192.168.1.53", "fd01::53", "8.8.8.8"].map(|one| one.parse().expect("an address")).to_vec();
    let (eth0, eth1) = (bed.index("eth0"), bed.index("eth1"));
    policy.exceptions = vec![
        exception("203.0.113.0/24", By::Refuse),
        exception("203.0.113.7", By::Link(Some(eth0))),
        exception("2001:db8:1::/48", By::Refuse),
        exception("198.18.0.0/15", By::Main),
        exception("2001:db8:2::/48", By::Main),
        exception("10.20.0.0/16", By::Link(Some(eth1))),
        exception("10.30.0.0/16", By::Link(None)),
        exception("192.168.1.64/26", By::Refuse),
        exception("8.8.8.8", By::Link(Some(eth0))),
    ];
    bed.ip("route add 10.20.5.0/24 via 192.168.3.1 dev eth1");
    bed.ip("route add 198.18.5.0/24 via 192.168.3.1 dev eth1");
    bed.ip("route add unreachable 198.18.6.0/24");
    bed.write(&Bed::wanted(vec![policy, bed.policy(2, "eth1"), bed.policy(3, "gone0")], vec![]));
    for (number, to, expected) in [
        (1, "198.51.100.1", "up0"),
        (1, "2001:db8::1", "up0"),
        (1, "10.9.0.9", "up0"),
        (1, "fd09::9", "up0"),
        (1, "192.168.1.9", "eth0"),
        (1, "fd01::9", "eth0"),
        (1, "192.168.3.9", "eth1"),
        (1, "fd03::9", "eth1"),
        (1, "192.168.1.255", "eth0"),
        (1, "192.168.1.70", "EACCES"),
        (1, "192.168.1.53", "up0"),
        (1, "fd01::53", "up0"),
        (1, "8.8.8.8", "up0"),
        (1, "203.0.113.1", "EACCES"),
        (1, "203.0.113.7", "eth0"),
        (1, "2001:db8:1::1", "EACCES"),
        (1, "198.18.0.1", "eth0"),
        (1, "198.18.5.1", "eth1"),
        (1, "198.18.6.1", "EHOSTUNREACH"),
        (1, "2001:db8:2::1", "eth0"),
        (1, "10.20.5.1", "eth1"),
        (1, "10.20.6.1", "EHOSTUNREACH"),
        (1, "10.30.6.1", "EHOSTUNREACH"),
        (1, "127.0.0.1", "lo"),
        (1, "192.168.3.2", "lo"),
        (1, "::1", "lo"),
        (2, "192.168.3.9", "eth1"),
        (2, "192.168.1.9", "ENETUNREACH"),
        (2, "198.51.100.1", "ENETUNREACH"),
        (2, "2001:db8::1", "ENETUNREACH"),
        (3, "198.51.100.1", "ENETUNREACH"),
        (3, "2001:db8::1", "ENETUNREACH"),
        (3, "127.0.0.1", "lo"),
        // No policy has this number.
        (9, "198.51.100.1", "ENETUNREACH"),
        (9, "2001:db8::1", "ENETUNREACH"),
    ] {
        assert_eq!(shown(bed.send(mark(number), to)), expected, "policy {number} to {to}");
    }
    // Others are not affected, also with a mark of their own.
    for others in [0, 0x7] {
        assert_eq!(shown(bed.send(others, "198.51.100.1")), "eth0");
        assert_eq!(shown(bed.send(others, "2001:db8::1")), "eth0");
    }
    // Bits of others in the mark do not matter.
    assert_eq!(shown(bed.send(mark(1) | 0xca6c, "198.51.100.1")), "up0");
}

/// Sends with the index of a link in a control message.
fn packet_info(socket: &Socket, to: SocketAddr, index: u32) -> io::Result<()> {
    let SocketAddr::V4(to) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
    let info = nix::libc::in_pktinfo {
        ipi_ifindex: index.cast_signed(),
        ipi_spec_dst: nix::libc::in_addr { s_addr: 0 },
        ipi_addr: nix::libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"steer")], &control, MsgFlags::empty(), Some(&SockaddrIn::from(to)))?;
    Ok(())
}

#[test]
fn discovery_needs_no_routes() {
    let Some(bed) = bed() else { return };
    let wanted = |lan| {
        let mut policy = bed.policy(1, "up0");
        policy.local = Local { lan, discovery: true };
        Bed::wanted(vec![policy], vec![])
    };
    let index = bed.index("eth1");
    for lan in [true, false] {
        bed.write(&wanted(lan));
        for group in ["224.0.0.251", "239.255.255.250", "224.0.0.252", "255.255.255.255"] {
            if group != "255.255.255.255" {
                let option = |socket: &Socket| socket.set_multicast_if_v4(&Ipv4Addr::new(192, 168, 3, 2));
                assert_eq!(shown(bed.send_by(mark(1), group, option)), "eth1", "{group} with IP_MULTICAST_IF");
            }
            let message = |socket: &Socket, to: SocketAddr| packet_info(socket, to, index);
            assert_eq!(shown(bed.send_with(mark(1), group, message)), "eth1", "{group} with IP_PKTINFO");
            let bound = |socket: &Socket| socket.bind_device(Some(b"eth1"));
            assert_eq!(shown(bed.send_by(mark(1), group, bound)), "eth1", "{group}, bound");
        }
        for group in ["ff02::fb", "ff02::c", "ff05::c", "ff02::1:3"] {
            let option = |socket: &Socket| socket.set_multicast_if_v6(index);
            assert_eq!(shown(bed.send_by(mark(1), group, option)), "eth1", "{group} with IPV6_MULTICAST_IF");
        }
    }
    // The table `local` has it.
    assert_eq!(shown(bed.send(mark(1), "192.168.3.255")), "eth1");
    let passes = bed.plan(&wanted(false)).passes.remove(&1).expect("passes");
    let shown: Vec<_> =
        passes.iter().filter(|pass| pass.allow).map(|pass| (pass.ifindex, pass.prefix.to_string())).collect();
    for (link, broadcast) in [("eth0", "192.168.1.255/32"), ("eth1", "192.168.3.255/32"), ("eth1", "224.0.0.251/32")] {
        assert!(shown.contains(&(bed.index(link), broadcast.to_owned())), "{shown:?}");
    }
    assert!(!shown.iter().any(|(link, _)| *link == bed.index("up0") || *link == 0), "{shown:?}");
    assert!(!shown.contains(&(bed.index("eth0"), "192.168.3.255/32".to_owned())), "{shown:?}");
}

#[test]
fn removal_leaves_no_trace() {
    let Some(bed) = bed() else { return };
    let before = bed.everything();
    let mut policy = bed.policy(1, "up0");
    policy.local = Local { lan: true, discovery: true };
    policy.exceptions = vec![exception("203.0.113.0/24", By::Refuse), exception("2001:db8::/32", By::Main)];
    let wanted = Bed::wanted(vec![policy, bed.policy(2, "eth1")], vec![bed.index("up0")]);
    bed.write(&wanted);
    let other = Wanted { instance: OTHER, marked: vec![bed.policy(7, "eth1")], ..wanted.clone() };
    bed.write(&other);
    let both = bed.everything();
    bed.remove(ONE);
    let rest = bed.everything();
    assert!(!rest.contains("fwmark 0x81000000") && !rest.contains("fwmark 0x82000000"), "{rest}");
    assert!(rest.contains("fwmark 0x87000000/0xff000000 lookup"), "the other instance's stay: {rest}");
    assert!(
        rest.contains("goto 40000") && rest.contains("40000:\tfrom all lookup local") && rest.contains("unreachable"),
        "{rest}"
    );
    assert_eq!(shown(bed.send(mark(7), "192.168.3.9")), "eth1");
    bed.write(&wanted);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&bed.everything()), sorted(&both));
    bed.remove(ONE);
    let changes = bed.remove(OTHER);
    assert!(changes.removed > 0);
    assert_eq!(bed.everything(), before);
    assert_eq!(bed.remove(ONE).removed, 0, "twice");
}

#[test]
fn rules_survive_what_networkd_does() {
    let Some(bed) = bed() else { return };
    bed.write(&Bed::wanted(vec![bed.policy(1, "up0")], vec![bed.index("up0")]));
    let rules = bed.ip("-4 -details rule") + &bed.ip("-6 -details rule");
    let ours =
        rules.lines().filter(|line| ["goto", "40000:", "unreachable", "193109"].iter().any(|word| line.contains(word)));
    let ours: Vec<_> = ours.collect();
    assert_eq!(ours.len(), 9, "{rules}");
    assert!(ours.iter().all(|line| line.contains("proto kernel")), "{ours:?}");
}

#[test]
fn a_link_that_goes_down_closes_its_region_at_once() {
    let Some(bed) = bed() else { return };
    let mut policy = bed.policy(1, "up0");
    policy.local.lan = true;
    policy.resolvers = vec!["192.168.1.53".parse().expect("an address")];
    policy.exceptions =
        vec![exception("10.20.0.0/16", By::Link(Some(bed.index("eth1")))), exception("2001:db8:1::/48", By::Main)];
    bed.ip("route add 10.20.0.0/16 via 192.168.3.1 dev eth1");
    bed.write(&Bed::wanted(vec![policy], vec![]));
    assert_eq!(shown(bed.send(mark(1), "10.20.0.1")), "eth1");
    assert_eq!(shown(bed.send(mark(1), "2001:db8:1::1")), "eth0");
    // Nothing is written again.
    bed.ip("link set eth1 down");
    assert_eq!(shown(bed.send(mark(1), "10.20.0.1")), "EHOSTUNREACH");
    bed.ip("link set up0 down");
    assert_eq!(shown(bed.send(mark(1), "192.168.1.53")), "EHOSTUNREACH", "the resolver is not of the network");
    assert_eq!(shown(bed.send(mark(1), "192.168.1.9")), "eth0");
    assert_eq!(shown(bed.send(mark(1), "198.51.100.1")), "ENETUNREACH");
    bed.ip("link set eth0 down");
    assert_eq!(shown(bed.send(mark(1), "2001:db8:1::1")), "EHOSTUNREACH");
}

#[test]
fn marks_are_not_shared() {
    let Some(bed) = bed() else { return };
    let wanted = Bed::wanted(vec![bed.policy(1, "up0"), bed.policy(2, "up0")], vec![]);
    bed.write(&wanted);
    let other = Wanted { instance: OTHER, ..wanted.clone() };
    let plan = |wanted: &Wanted| steer::host::route::plan(wanted, &bed.state()).map(drop);
    assert_eq!(plan(&other), Err(Invalid::Taken(1, mark(1))));
    assert!(bed.state().taken(mask()).into_iter().eq([1, 2]), "also not for new policies of the same instance");
    assert_eq!(plan(&Wanted { marked: vec![bed.policy(3, "up0")], ..other }), Ok(()));
    assert_eq!(plan(&Bed::wanted(vec![bed.policy(128, "up0")], vec![])), Err(Invalid::Number(128, 0xff00_0000)));
    assert_eq!(plan(&Bed::wanted(vec![bed.policy(1, "up0"); 2], vec![])), Err(Invalid::Twice(1)));
    assert_eq!(plan(&wanted), Ok(()));
}
