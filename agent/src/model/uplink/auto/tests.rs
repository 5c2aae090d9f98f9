//! Which line is chosen, by topology.

use super::{ARPHRD_PPP, Auto, Link, Refusal, Selector};
use crate::model::uplink::{Family, PerFamily};

const NONE: u16 = 65534;

/// A line with IPv4 and IPv6.
fn line(index: u32, name: &str, metric: u32) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: None,
        arphrd: 1,
        is_up: true,
        has_carrier: true,
        has_bus_device_below: true,
        is_wireless: false,
        is_mobile: false,
        default_route: PerFamily { v4: Some(metric), v6: Some(metric) },
        has_address: PerFamily { v4: true, v6: true },
    }
}

/// A link of a kind over a line.
fn over(index: u32, name: &str, kind: &str, metric: u32) -> Link {
    Link { kind: Some(kind.to_owned()), ..line(index, name, metric) }
}

/// A virtual link.
fn virtual_link(index: u32, name: &str, kind: &str) -> Link {
    Link { has_bus_device_below: false, ..over(index, name, kind, 0) }
}

/// A line that is the port of another link: it has neither address nor route.
fn port(index: u32, name: &str) -> Link {
    Link { default_route: PerFamily::default(), has_address: PerFamily::default(), ..line(index, name, 0) }
}

fn tun(index: u32, name: &str) -> Link {
    Link { arphrd: NONE, ..virtual_link(index, name, "tun") }
}

fn wireguard(index: u32, name: &str) -> Link {
    Link { arphrd: NONE, ..virtual_link(index, name, "wireguard") }
}

fn wlan(index: u32, name: &str, metric: u32) -> Link {
    Link { is_wireless: true, ..line(index, name, metric) }
}

fn mobile(index: u32, name: &str, metric: u32) -> Link {
    Link { is_mobile: true, arphrd: 519, ..line(index, name, metric) }
}

/// No address and no route of IPv4.
fn only_ipv6(mut link: Link) -> Link {
    (link.has_address.v4, link.default_route.v4) = (false, None);
    link
}

fn changed(mut link: Link, change: impl Fn(&mut Link)) -> Link {
    change(&mut link);
    link
}

fn current(index: u32) -> PerFamily<Option<u32>> {
    PerFamily { v4: Some(index), v6: Some(index) }
}

/// What it is, the links, those in use, and those to be chosen for IPv4 and IPv6.
type Case = (&'static str, Vec<Link>, PerFamily<Option<u32>>, [Option<u32>; 2]);

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn topologies() {
    let pppoe = |index, metric| Link { arphrd: ARPHRD_PPP, ..over(index, "ppp0", "ppp", metric) };
    let nothing = PerFamily::default();
    let cases: Vec<Case> = vec![
        ("nothing", vec![], nothing, [None; 2]),
        ("one line", vec![line(2, "eth0", 100)], nothing, [Some(2); 2]),
        (
            "docker0 and a veth, with routes of their own",
            vec![line(2, "eth0", 100), virtual_link(3, "docker0", "bridge"), virtual_link(4, "veth1", "veth")],
            nothing,
            [Some(2); 2],
        ),
        ("virbr0 alone", vec![virtual_link(3, "virbr0", "bridge")], nothing, [None; 2]),
        (
            "a WireGuard tunnel with the better route",
            vec![line(2, "eth0", 100), wireguard(5, "wg0")],
            nothing,
            [Some(2); 2],
        ),
        ("only the tunnel has a route", vec![port(2, "eth0"), wireguard(5, "wg0")], nothing, [None; 2]),
        ("VPN in VPN", vec![line(2, "eth0", 600), tun(7, "tun0"), wireguard(8, "wg0")], nothing, [Some(2); 2]),
        (
            "tunnels with a line below",
            vec![
                line(9, "eth0", 600),
                over(3, "vxlan0", "vxlan", 0),
                over(4, "gre0", "gretap", 0),
                over(5, "sit0", "sit", 0),
                over(6, "vti0", "vti6", 0),
                over(7, "xfrm0", "xfrm", 0),
                over(8, "new0", "a-kind-of-next-year", 0),
                Link { arphrd: 768, ..line(10, "tunl0", 0) },
            ],
            nothing,
            [Some(9); 2],
        ),
        ("IPv6 only", vec![only_ipv6(line(2, "eth0", 1024))], nothing, [None, Some(2)]),
        (
            "IPv6 by another line",
            vec![only_ipv6(line(2, "eth0", 50)), line(3, "eth1", 100)],
            nothing,
            [Some(3), Some(2)],
        ),
        ("by metric", vec![line(2, "eth0", 200), wlan(3, "wlan0", 100)], nothing, [Some(3); 2]),
        (
            "equal metrics: wired, wireless, mobile",
            vec![mobile(2, "wwan0", 0), wlan(3, "wlan0", 0), line(4, "eth0", 0)],
            nothing,
            [Some(4); 2],
        ),
        ("equal metrics: wireless", vec![mobile(2, "wwan0", 0), wlan(3, "wlan0", 0)], nothing, [Some(3); 2]),
        ("equal in all: lowest index", vec![line(4, "eth1", 0), line(3, "eth0", 0)], nothing, [Some(3); 2]),
        ("equal in all: the current one", vec![line(3, "eth0", 0), line(4, "eth1", 0)], current(4), [Some(4); 2]),
        (
            "the current one has the worse metric",
            vec![line(3, "eth0", 0), line(4, "eth1", 1)],
            current(4),
            [Some(3); 2],
        ),
        // A caller reads every table: main's default route is the tunnel's.
        (
            "default route in another table",
            vec![tun(2, "tun0"), line(3, "eth0", 7), port(4, "eth1")],
            nothing,
            [Some(3); 2],
        ),
        ("PPPoE", vec![port(2, "eth0"), pppoe(9, 0)], nothing, [Some(9); 2]),
        ("PPPoE without a kind", vec![Link { kind: None, ..pppoe(9, 0) }], nothing, [Some(9); 2]),
        (
            "PPTP",
            vec![line(2, "eth0", 100), Link { has_bus_device_below: false, ..pppoe(9, 0) }],
            nothing,
            [Some(2); 2],
        ),
        ("bridge over a line", vec![port(2, "eth0"), over(6, "br0", "bridge", 425)], nothing, [Some(6); 2]),
        (
            "VLAN on a bond",
            vec![port(2, "eth0"), port(3, "eth1"), over(4, "bond0", "bond", 300), over(5, "bond0.7", "vlan", 100)],
            nothing,
            [Some(5); 2],
        ),
        ("renamed", vec![line(3, "eth0", 0), line(4, "lan7", 0)], current(4), [Some(4); 2]),
        ("moved to another namespace", vec![line(3, "eth0", 9)], current(4), [Some(3); 2]),
        ("moved and back", vec![line(3, "eth0", 9), line(11, "eth1", 0)], current(3), [Some(11); 2]),
        (
            "unplugged",
            vec![changed(line(2, "eth0", 0), |link| link.has_carrier = false), wlan(3, "wlan0", 600)],
            current(2),
            [Some(3); 2],
        ),
        (
            "set down",
            vec![changed(line(2, "eth0", 0), |link| link.is_up = false), wlan(3, "wlan0", 600)],
            current(2),
            [Some(3); 2],
        ),
    ];
    for (name, mut links, current, [v4, v6]) in cases {
        let selector = Selector::default();
        assert_eq!(selector.select(&links, current), PerFamily { v4, v6 }, "{name}");
        links.reverse();
        assert_eq!(selector.select(&links, current), PerFamily { v4, v6 }, "{name}, in another order");
    }
}

fn selector(exclude: &[&str], prefer: &[&str]) -> Result<Selector, String> {
    let globs = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect();
    Selector::new(&Auto { exclude: globs(exclude), prefer: globs(prefer), include: Vec::new() })
}

#[test]
fn exclude_and_prefer() {
    let links = [line(2, "eth0", 0), line(3, "eth1", 5), wlan(4, "wlan0", 600), wireguard(5, "wg0")];
    for (exclude, prefer, want) in [
        (&[][..], &["wlan*", "eth*"][..], Some(4)),
        (&[], &["eth[1-9]", "wlan*"], Some(3)),
        (&[], &["wg*"], Some(2)),
        (&["eth0"], &[], Some(3)),
        (&["eth*"], &["eth0"], Some(4)),
        (&["{eth,wlan}?"], &[], None),
    ] {
        let selector = selector(exclude, prefer).expect("globs");
        let got = selector.select(&links, PerFamily::default());
        assert_eq!(got, PerFamily { v4: want, v6: want }, "{exclude:?} {prefer:?}");
    }
    let error = selector(&["a", "eth["], &[]).expect_err("a mistake");
    assert_eq!(error, r#""eth[": [ without ]"#);
}

#[test]
fn refusals_say_why() {
    let selector = selector(&["x*"], &[]).expect("a glob");
    for (link, want) in [
        (line(2, "eth0", 0), None),
        (line(2, "x", 0), Some(Refusal::Excluded)),
        (tun(2, "tun0"), Some(Refusal::Tunnel("tun".to_owned()))),
        (Link { arphrd: 776, ..line(2, "sit0", 0) }, Some(Refusal::Tunnel("ARPHRD 776".to_owned()))),
        (virtual_link(2, "docker0", "bridge"), Some(Refusal::NoDevice)),
        (changed(line(2, "eth0", 0), |link| link.is_up = false), Some(Refusal::NotUp)),
        (changed(line(2, "eth0", 0), |link| link.has_carrier = false), Some(Refusal::NoCarrier)),
        (port(2, "eth0"), Some(Refusal::NoAddress)),
        (changed(line(2, "eth0", 0), |link| link.default_route.v4 = None), Some(Refusal::NoDefaultRoute)),
    ] {
        assert_eq!(selector.refusal(&link, Family::V4), want, "{link:?}");
    }
    let shown = Refusal::Tunnel("tun".to_owned()).to_string();
    assert_eq!(shown, "of kind tun, which is, or may be, a tunnel");
}
