use super::*;

/// An IPv6 packet from `src` to `ff02::16`, with its payload after `before` extension headers.
fn ipv6(src: [u8; 16], protocol: u8, before: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(before.len() + payload.len()).unwrap();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend([protocol, 1]);
    bytes.extend(src);
    bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
    bytes.extend(before);
    bytes.extend(payload);
    bytes
}

fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 10, 0, 0, 2, 198, 51, 100, 1]);
    bytes.extend(payload);
    bytes
}

fn mld2(groups: &[[u8; 16]]) -> Vec<u8> {
    let mut bytes = vec![143, 0, 0, 0, 0, 0];
    bytes.extend(u16::try_from(groups.len()).unwrap().to_be_bytes());
    for group in groups {
        bytes.extend([4, 0, 0, 0]);
        bytes.extend(group);
    }
    bytes
}

const SOLICITED: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
const MDNS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb];
const NOBODY: [u8; 16] = [0; 16];
const CLIENT: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Hop-by-hop options with a router alert, then `ICMPv6`.
const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
/// A UDP header with ports 1000 and 53, and two bytes.
const UDP: [u8; 10] = [0x03, 0xe8, 0, 53, 0, 10, 0, 0, 1, 2];

#[test]
fn kinds_ports_and_noise() {
    struct Case {
        name: &'static str,
        ethertype: u16,
        bytes: Vec<u8>,
        kind: Kind,
        dst_port: Option<u16>,
        payload_len: usize,
        noise: bool,
    }
    let v4 = |name, bytes, kind, dst_port, payload_len| Case {
        name,
        ethertype: 0x0800,
        bytes,
        kind,
        dst_port,
        payload_len,
        noise: false,
    };
    let v6 = |name, bytes: Vec<u8>, kind, noise| Case {
        name,
        ethertype: 0x86dd,
        payload_len: 0,
        bytes,
        kind,
        dst_port: None,
        noise,
    };
    let solicitation = |src| {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(CLIENT);
        ipv6(src, 58, &[], &message)
    };
    let cases = [
        v4("udp", ipv4(17, 0, &UDP), Kind::Udp, Some(53), 2),
        v4("udp, later fragment", ipv4(17, 10, &UDP), Kind::Udp, None, 10),
        v4("udp, cut off", ipv4(17, 0, &UDP[..1]), Kind::Udp, None, 0),
        v4("tcp", ipv4(6, 0, &[0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50]), Kind::Tcp, Some(80), 0),
        v4("icmp", ipv4(1, 0, &[8; 12]), Kind::Icmp4, None, 4),
        v4("igmp", ipv4(2, 0, &[0x22; 8]), Kind::Igmp, None, 0),
        v4("gre", ipv4(47, 0, &[0; 4]), Kind::Other { ethertype: 0x0800, protocol: 47 }, None, 4),
        v4("no bytes at all", vec![], Kind::Other { ethertype: 0x0800, protocol: 0 }, None, 0),
        v6("echo", ipv6(CLIENT, 58, &[], &[128; 8]), Kind::Icmp6, false),
        v6("router solicitation", ipv6(CLIENT, 58, &[], &[133, 0, 0, 0, 0, 0, 0, 0]), Kind::Ndp, true),
        v6("duplicate address detection", ipv6(NOBODY, 0, &ROUTER_ALERT, &[135, 0, 0, 0, 0, 0, 0, 0]), Kind::Ndp, true),
        v6("mld for an address", ipv6(NOBODY, 0, &ROUTER_ALERT, &mld2(&[SOLICITED])), Kind::Mld, true),
        v6("mld for a joined group", ipv6(NOBODY, 0, &ROUTER_ALERT, &mld2(&[SOLICITED, MDNS])), Kind::Mld, false),
        v6("mld, empty", ipv6(NOBODY, 0, &ROUTER_ALERT, &mld2(&[])), Kind::Mld, false),
        v6("mld, cut off", ipv6(NOBODY, 0, &ROUTER_ALERT, &mld2(&[SOLICITED])[..10]), Kind::Mld, false),
        Case { payload_len: 16, ..v6("neighbour solicitation", solicitation(CLIENT), Kind::Ndp, false) },
        Case { dst_port: Some(53), payload_len: 2, ..v6("udp", ipv6(CLIENT, 17, &[], &UDP), Kind::Udp, false) },
        Case {
            payload_len: 10,
            ..v6("udp, later fragment", ipv6(CLIENT, 44, &[17, 0, 0, 0x10, 0, 0, 0, 1], &UDP), Kind::Udp, false)
        },
    ];
    for case in cases {
        let packet = Packet::parse(7, Direction::Out, case.ethertype, &case.bytes);
        assert_eq!(packet.kind, case.kind, "{}", case.name);
        assert_eq!(packet.dst_port, case.dst_port, "{}", case.name);
        assert_eq!(packet.is_kernel_noise(), case.noise, "{}", case.name);
        if !matches!(case.kind, Kind::Mld | Kind::Icmp6) {
            assert_eq!(packet.payload_len, case.payload_len, "{}", case.name);
        }
    }
}

#[test]
fn addresses() {
    let packet = Packet::parse(7, Direction::In, 0x0800, &ipv4(17, 0, &UDP));
    assert_eq!(packet.src, Some("10.0.0.2".parse().unwrap()));
    assert_eq!(packet.dst, Some("198.51.100.1".parse().unwrap()));

    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 2];
    arp.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    let packet = Packet::parse(7, Direction::Out, 0x0806, &arp);
    assert_eq!((packet.kind, packet.is_kernel_noise()), (Kind::Arp, false));
    assert_eq!((packet.src, packet.dst), (Some("10.0.0.2".parse().unwrap()), Some("10.0.0.1".parse().unwrap())));
}

#[test]
fn every_cut_of_a_packet_parses() {
    let whole = ipv6(NOBODY, 0, &ROUTER_ALERT, &mld2(&[SOLICITED, MDNS]));
    for len in 0..whole.len() {
        assert!(!Packet::parse(7, Direction::Out, 0x86dd, &whole[..len]).is_kernel_noise(), "cut at {len}");
    }
}
