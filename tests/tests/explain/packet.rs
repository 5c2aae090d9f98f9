//! `steer explain --to`: each prediction is compared with what really happens to packets of new sockets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use steer_lab::{
    Capture, Direction, Kind, Outcome as Probed, SERVER_V4, SERVER_V6, Server, client_v4, client_v6, gateway_v6,
    parse_outcomes, wait_until,
};
use steer_tests::{Bed, Outcome, PATIENCE, USERS, User, output};

use super::{explain, text};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("of_a_bound_policy", of_a_bound_policy),
    ("of_a_routed_policy", of_a_routed_policy),
    ("to_this_host", to_this_host),
    ("to_exceptions", to_exceptions),
    ("while_the_uplink_is_missing", while_the_uplink_is_missing),
    ("of_a_policy_that_only_steers", of_a_policy_that_only_steers),
    ("without_the_rules", without_the_rules),
    ("of_an_unsteered_program", of_an_unsteered_program),
];

/// The server that answers on the client's own addresses, and the one behind the uplinks, use different ports.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const FAR: IpAddr = IpAddr::V4(SERVER_V4);
const FAR6: IpAddr = IpAddr::V6(SERVER_V6);
/// In the network of `a0`; nobody has it.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

/// What explain says about a packet, after the comparison with packets that are sent.
fn predicted(bed: &Bed, to: IpAddr) -> anyhow::Result<Value> {
    let said = explain(bed, &[bed.cgroup.path(), "--to", &to.to_string()])?;
    let packet = said["packet"].clone();
    let own = Server::start(&bed.net.client)?;
    let port = if packet["fate"] == "this_host" { own.port() } else { bed.server.port() };
    for user in USERS {
        let mut capture = Capture::start_except(&bed.net.client, &["lo"])?;
        let outcomes = probe(bed, user, to, port)?;
        let sent: BTreeSet<u64> = capture
            .take()?
            .iter()
            .filter(|sent| sent.direction == Direction::Out && sent.dst == Some(to) && is_searched_or_sent(sent.kind))
            .map(|sent| u64::from(sent.ifindex))
            .collect();
        compare(&packet, &outcomes, &sent)
            .with_context(|| format!("as {user:?}: {packet:#}\n{outcomes:#?}\nby {sent:?}"))?;
    }
    Ok(packet)
}

/// A neighbour that does not answer gets no packet, only the question for it.
fn is_searched_or_sent(kind: Kind) -> bool {
    matches!(kind, Kind::Tcp | Kind::Udp | Kind::Arp | Kind::Ndp)
}

fn probe(bed: &Bed, user: User, to: IpAddr, port: u16) -> anyhow::Result<Vec<Probed>> {
    let mut client = bed.client(Some(&bed.cgroup), user)?;
    client.args(["--json", "--timeout-ms", "300", "--port", &port.to_string(), "--target", &to.to_string()]);
    for proto in ["tcp", "udp", "udp-unconnected"] {
        client.args(["--proto", proto]);
    }
    let ran = output(&mut client)?;
    parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))
}

fn compare(packet: &Value, outcomes: &[Probed], sent: &BTreeSet<u64>) -> Outcome {
    let fate = packet["fate"].as_str().context("no fate")?;
    let links: BTreeSet<u64> =
        packet["hops"].as_array().context("no hops")?.iter().filter_map(|hop| hop["ifindex"].as_u64()).collect();
    ensure!(outcomes.len() == 3, "three kinds of sockets");
    match fate {
        "uplink" | "other_link" | "unsteered" => ensure!(*sent == links, "another link"),
        "this_host" => ensure!(sent.is_empty() && outcomes.iter().all(Probed::is_ok), "this host is not reached"),
        "stopped" => ensure!(sent.is_empty() && outcomes.iter().all(|outcome| !outcome.is_ok()), "not stopped"),
        "refused" | "no_route" | "closed" => {
            ensure!(sent.is_empty(), "something left");
            let error = packet["error"].as_str().context("no error")?;
            ensure!(outcomes.iter().all(|outcome| outcome.error.as_deref() == Some(error)), "another error");
        }
        other => anyhow::bail!("an unknown fate {other}"),
    }
    Ok(())
}

fn has(packet: &Value, fate: &str, fields: &[(&str, Value)]) -> Outcome {
    ensure!(packet["fate"] == fate, "not {fate}: {packet:#}");
    for (field, value) in fields {
        let actual = if *field == "link" { &packet["hops"][0]["interface"] } else { &packet[*field] };
        ensure!(actual == value, "not {field} = {value}: {packet:#}");
    }
    Ok(())
}

fn hints(packet: &Value, part: &str) -> Outcome {
    let hint = packet["hint"].as_str().unwrap_or_default();
    ensure!(if part.is_empty() { hint.is_empty() } else { hint.contains(part) }, "hint {part:?}: {packet:#}");
    Ok(())
}

fn of_a_bound_policy() -> Outcome {
    let bed = Bed::new("packet-bound")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let bind = ("method", "bind".into());
    for (to, prefix) in [(FAR, "0.0.0.0/0"), (FAR6, "::/0")] {
        let packet = predicted(&bed, to)?;
        has(
            &packet,
            "uplink",
            &[bind.clone(), ("link", "a1".into()), ("prefix", prefix.into()), ("mark", Value::Null)],
        )?;
        ensure!(packet["rule"]["preference"].is_u64(), "{packet:#}");
        hints(&packet, "")?;
    }
    // The strict policy's rule for IPv6.
    let rule = predicted(&bed, FAR6)?["rule"].clone();
    ensure!(rule["preference"] == 0 && rule["text"].as_str().is_some_and(|text| text.contains("oif a1")), "{rule:#}");
    for to in [LOOPBACK, Ipv6Addr::LOCALHOST.into()] {
        let here = predicted(&bed, to)?;
        has(&here, "refused", &[("error", "EPERM".into())])?;
        hints(&here, "`local = [\"host\"]`")?;
    }
    // Only `connect` is.
    for to in [client_v4(0).into(), client_v4(1).into(), IpAddr::V6(client_v6(1))] {
        let own = explain(&bed, &[bed.cgroup.path(), "--to", &to.to_string()])?["packet"].clone();
        has(&own, "refused", &[("error", "EPERM".into())])?;
        hints(&own, "`local = [\"host\"]`")?;
    }
    for to in [NEAR, gateway_v6(0).into()] {
        let near = predicted(&bed, to)?;
        has(&near, "uplink", &[("link", "a1".into())])?;
        hints(&near, "`local = [\"lan\"]`")?;
    }
    for family in ["-4", "-6"] {
        bed.ip(&format!("{family} route delete default dev a1"))?;
    }
    // Without a daemon, nothing follows the routes: the strict policy's table still has the one for IPv6.
    has(&predicted(&bed, FAR6)?, "uplink", &[("link", "a1".into())])?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let neighbour = predicted(&bed, FAR)?;
    has(&neighbour, "uplink", &[("link", "a1".into()), ("table", Value::Null)])?;
    ensure!(neighbour["conclusion"].as_str().is_some_and(|said| said.contains("neighbour")), "{neighbour:#}");
    has(&predicted(&bed, FAR6)?, "no_route", &[])
}

fn of_a_routed_policy() -> Outcome {
    let bed = Bed::new("packet-routed")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "lan"])?;
    let mark: Value = 0x8100_0000_u32.into();
    for (to, prefix) in [(FAR, "0.0.0.0/0"), (FAR6, "::/0")] {
        let packet = predicted(&bed, to)?;
        let fields =
            [("method", "route".into()), ("mark", mark.clone()), ("link", "a1".into()), ("prefix", prefix.into())];
        has(&packet, "uplink", &fields)?;
        ensure!(packet["rule"]["preference"] == 40_001, "{packet:#}");
        ensure!(packet["table"].as_u64().is_some_and(|table| table >> 24 == 0x73), "{packet:#}");
    }
    let lan: [(IpAddr, &str); 2] = [(NEAR, "10.0.0.0/24"), (gateway_v6(0).into(), "fd00::/64")];
    for (to, prefix) in lan {
        has(&predicted(&bed, to)?, "other_link", &[("link", "a0".into()), ("prefix", prefix.into())])?;
    }
    // The uplink is the way of multicast, unless the program chooses another link.
    let discovery = predicted(&bed, Ipv4Addr::new(224, 0, 0, 251).into())?;
    has(&discovery, "uplink", &[("link", "a1".into())])?;
    hints(&discovery, "\"discovery\"")?;
    let here = predicted(&bed, LOOPBACK)?;
    has(&here, "refused", &[])?;
    let text = text(&bed, &[bed.cgroup.path(), "--to", "10.0.0.9"])?;
    for part in [
        "method       sockets are marked 0x81000000",
        "local        lan",
        "a packet to 10.0.0.9 leaves by a0, a network of this host, which `local` in the policy allows",
        "IPv4 rule 40001: fwmark 0x81000000/0xff000000 lookup 0x73",
        "10.0.0.0/24 in table 0x73",
        "to 10.0.0.9: by a0; without steer: by a0",
    ] {
        ensure!(text.contains(part), "{part:?} in {text}");
    }
    Ok(())
}

fn to_this_host() -> Outcome {
    let bed = Bed::new("packet-host")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    let own: [IpAddr; 5] =
        [LOOPBACK, Ipv6Addr::LOCALHOST.into(), client_v4(0).into(), client_v6(1).into(), Ipv4Addr::UNSPECIFIED.into()];
    for to in own {
        let packet = predicted(&bed, to)?;
        has(&packet, "this_host", &[("method", "route".into()), ("table", 255.into())])?;
        ensure!(packet["rule"]["preference"] == 0, "{packet:#}");
        hints(&packet, "")?;
    }
    has(&predicted(&bed, NEAR)?, "uplink", &[("link", "a1".into())])
}

fn to_exceptions() -> Outcome {
    let bed = Bed::new("packet-except")?;
    let (one, all) = (Ipv4Addr::new(203, 0, 113, 7), "203.0.113.0/24");
    for (by, fate, link) in [
        ("a0", "other_link", "a0"),
        ("main", "other_link", "a0"),
        ("a1", "uplink", "a1"),
        ("refuse", "no_route", ""),
        ("a9", "no_route", ""),
    ] {
        let except = format!("{all}={by},{SERVER_V6}={by}");
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--except", &except])?;
        for (to, written) in [(IpAddr::from(one), all.to_owned()), (FAR6, format!("{SERVER_V6}/128"))] {
            let packet = predicted(&bed, to)?;
            let hop: Value = if link.is_empty() { Value::Null } else { link.into() };
            let exception: Value = format!("{written}={by}").into();
            has(&packet, fate, &[("link", hop), ("exception", exception), ("prefix", written.into())])?;
            let number = packet["mark"].as_u64().context("no mark")? >> 24 & 0x7f;
            ensure!(packet["rule"]["preference"] == 40_000 + number, "{packet:#}");
        }
        has(&predicted(&bed, FAR)?, "uplink", &[("exception", Value::Null)])?;
    }
    let said = text(&bed, &[bed.cgroup.path()])?;
    ensure!(said.contains("except       203.0.113.0/24=a9, "), "{said}");
    Ok(())
}

fn while_the_uplink_is_missing() -> Outcome {
    let bed = Bed::new("packet-missing")?;
    let _daemon =
        bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\", \"lan\"]\ncgroups = [\"@\"]\n")?;
    bed.net.remove_uplink(1)?;
    wait_until("the daemon to follow", PATIENCE, || bed.policy("p").is_ok_and(|policy| policy["ifindex"].is_null()))?;
    let said = explain(&bed, &[bed.cgroup.path(), "--to", "::ffff:10.0.0.9"])?;
    ensure!(said["packet"]["destination"] == "10.0.0.9", "a mapped address: {said:#}");
    super::concludes(&said, "closed", "its uplink a1 is missing; what `local` and `except` name is still reached")?;
    for to in [FAR, FAR6] {
        let packet = predicted(&bed, to)?;
        has(&packet, "no_route", &[("method", "route".into()), ("error", "ENETUNREACH".into())])?;
        ensure!(packet["rule"]["preference"] == 40_999, "{packet:#}");
        ensure!(packet["conclusion"].as_str().is_some_and(|said| said.contains("the uplink is missing")), "{packet:#}");
    }
    has(&predicted(&bed, NEAR)?, "other_link", &[("link", "a0".into())])?;
    has(&predicted(&bed, LOOPBACK)?, "this_host", &[])?;
    // Without `local`, the same by the binding.
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    bed.succeed(&["reload"])?;
    has(&predicted(&bed, FAR)?, "closed", &[("method", "bind".into()), ("error", "ENODEV".into())])?;
    has(&predicted(&bed, FAR6)?, "closed", &[("error", "ENETUNREACH".into())])?;
    has(&predicted(&bed, LOOPBACK)?, "refused", &[])
}

fn of_a_policy_that_only_steers() -> Outcome {
    let bed = Bed::new("packet-steer")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer", "--local", "lan"])?;
    has(&predicted(&bed, FAR)?, "uplink", &[("link", "a1".into())])?;
    has(&predicted(&bed, NEAR)?, "other_link", &[("link", "a0".into())])?;
    // A rule in front leads elsewhere, and no packet is stopped.
    bed.ip("rule add pref 0 fwmark 0x80000000/0x80000000 lookup main")?;
    bed.ip("rule delete pref 0 fwmark 0x80000000/0x80000000 goto 40000")?;
    let packet = predicted(&bed, FAR)?;
    has(&packet, "other_link", &[("link", "a0".into()), ("table", 254.into())])?;
    ensure!(packet["conclusion"].as_str().is_some_and(|said| said.contains("enforce = \"steer\"")), "{packet:#}");
    Ok(())
}

fn without_the_rules() -> Outcome {
    let bed = Bed::new("packet-rules")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    bed.ip("rule delete pref 0 fwmark 0x80000000/0x80000000")?;
    bed.ip("rule delete pref 40001")?;
    bed.ip("rule delete pref 40999")?;
    let packet = predicted(&bed, FAR)?;
    has(&packet, "stopped", &[("link", "a0".into()), ("table", 254.into())])?;
    ensure!(packet["rule"]["preference"] == 32_766, "{packet:#}");
    let near = predicted(&bed, NEAR)?;
    has(&near, "stopped", &[("link", "a0".into())])?;
    hints(&near, "`local = [\"lan\"]`")
}

fn of_an_unsteered_program() -> Outcome {
    let bed = Bed::new("packet-free")?;
    has(&predicted(&bed, FAR)?, "unsteered", &[("link", "a0".into()), ("method", Value::Null)])?;
    bed.ip("route add unreachable 203.0.113.0/24")?;
    let packet = predicted(&bed, Ipv4Addr::new(203, 0, 113, 7).into())?;
    has(&packet, "no_route", &[("error", "EHOSTUNREACH".into()), ("prefix", "203.0.113.0/24".into())])
}
