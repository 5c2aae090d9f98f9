//! `auto`: the best line that is not a tunnel, by topology.
//!
//! The lines of the bed are virtual Ethernet links, which `include` makes lines.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use steer_lab::wait_until;
use steer_tests::{Bed, Outcome, PATIENCE};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("topologies", topologies), ("without_configuration", without_configuration)];

fn config(local: &str) -> String {
    format!(
        "[[uplink]]\nname = \"physical\"\nauto = {{ include = [\"a*\", \"lan*\"], exclude = [\"ax*\"] }}\nhold = \"0s\"\n\
         [[policy]]\nname = \"p\"\nuplink = \"physical\"\nlocal = {local}\ncgroups = [\"@\"]\n"
    )
}

/// The members that all new sockets of IPv4 and of IPv6 get.
fn chosen(bed: &Bed) -> anyhow::Result<[String; 2]> {
    let groups: Value = serde_json::from_str(&bed.succeed(&["uplinks", "--json"])?)?;
    let members = groups[0]["members"].as_array().context("no members")?;
    let of = |family: &str| {
        let mut chosen =
            members.iter().filter(|member| member[family]["share"].as_f64().is_some_and(|share| share > 99.0));
        chosen.next().and_then(|member| member["interface"].as_str()).unwrap_or_default().to_owned()
    };
    Ok([of("ipv4"), of("ipv6")])
}

fn wait_for(bed: &Bed, what: &str, want: [&str; 2]) -> Outcome {
    wait_until(&format!("{what}: {want:?}"), PATIENCE, || chosen(bed).is_ok_and(|now| now == want))
        .with_context(|| bed.succeed(&["uplinks", "--json"]).unwrap_or_default())?;
    Ok(())
}

fn topologies() -> Outcome {
    for local in ["[]", "[\"host\"]"] {
        let mut bed = Bed::new("auto")?;
        let _daemon = bed.daemon(&config(local))?;
        let run = |commands: &[&str]| commands.iter().try_for_each(|command| bed.ip(command).map(drop));
        let both = |name: &'static str| [name; 2];
        wait_for(&bed, "by metric", both("a0"))?;
        // As those of containers and of virtual machines.
        for bridge in ["docker0", "virbr0"] {
            run(&[
                &format!("link add {bridge} type bridge"),
                &format!("link add {bridge}-p type veth peer name {bridge}-q"),
                &format!("link set {bridge}-p master {bridge} up"),
                &format!("link set {bridge}-q up"),
                &format!("addr add 172.17.0.1/16 dev {bridge}"),
                &format!("link set {bridge} up"),
                &format!("route add default via 172.17.0.2 dev {bridge} metric 1"),
            ])?;
            wait_for(&bed, "a bridge without a line", both("a0"))?;
            run(&[&format!("link del {bridge}"), &format!("link del {bridge}-p")])?;
        }
        // A VPN, and a VPN in it.
        for tun in ["tun7", "atun8"] {
            run(&[
                &format!("tuntap add {tun} mode tun"),
                &format!("addr add 10.9.0.1/24 dev {tun}"),
                &format!("link set {tun} up"),
                &format!("route add default dev {tun} metric {}", tun.len()),
            ])?;
            wait_for(&bed, "a tunnel with the best route", both("a0"))?;
        }
        run(&["-4 route del default dev a0", "-4 route add default via 10.0.0.1 dev a0 table 77"])?;
        wait_for(&bed, "the default route is in another table", both("a0"))?;
        if local != "[]" {
            bed.check_steered(&bed.cgroup, 0).context("a table that no rule leads to")?;
        }
        run(&["-4 route del default dev a0 table 77"])?;
        wait_for(&bed, "IPv6 only", ["a1", "a0"])?;
        run(&["-4 route append default via 10.0.0.1 dev a0 metric 200"])?;
        wait_for(&bed, "equal metrics, and the current one", ["a1", "a0"])?;
        run(&["-4 route del default dev a0 metric 200", "-4 route add default via 10.0.0.1 dev a0 metric 100"])?;
        wait_for(&bed, "the better metric", both("a0"))?;
        bed.check_steered(&bed.cgroup, 0).with_context(|| format!("local = {local}"))?;
        // A bridge over the line, with its address and routes.
        run(&[
            "link add br1 type bridge",
            "link set br1 up",
            "link set a0 master br1",
            "addr flush dev a0",
            "addr add 10.0.0.2/24 dev br1",
            "route add default via 10.0.0.1 dev br1 metric 50",
        ])?;
        wait_for(&bed, "a bridge over a line", ["br1", "a1"])?;
        run(&["link del br1", "addr add 10.0.0.2/24 dev a0", "route add default via 10.0.0.1 dev a0 metric 100"])?;
        wait_for(&bed, "the line again", ["a0", "a1"])?;
        if bed.ip("link add link a1 name vlan7 type vlan id 7").is_ok() {
            run(&[
                "link set vlan7 up",
                "addr add 10.7.0.2/24 dev vlan7",
                "route add default via 10.7.0.1 dev vlan7 metric 10",
            ])?;
            wait_for(&bed, "a VLAN over a line", ["vlan7", "a1"])?;
            run(&["link del vlan7"])?;
        }
        wait_for(&bed, "without it", ["a0", "a1"])?;
        run(&["link set a0 name lan0"])?;
        wait_for(&bed, "renamed", ["lan0", "a1"])?;
        run(&["link set lan0 name ax0"])?;
        wait_for(&bed, "excluded", both("a1"))?;
        run(&["link set ax0 name a0"])?;
        wait_for(&bed, "included again", ["a0", "a1"])?;
        bed.net.remove_uplink(0)?;
        wait_for(&bed, "gone", both("a1"))?;
        bed.check_steered(&bed.cgroup, 1).context("gone")?;
        bed.net.create_uplink(0)?;
        wait_for(&bed, "made again", both("a0"))?;
        bed.check_steered(&bed.cgroup, 0).with_context(|| format!("local = {local}"))?;
        bed.net.remove_uplink(0)?;
        bed.net.remove_uplink(1)?;
        wait_for(&bed, "no line at all", both(""))?;
        bed.check_closed(&bed.cgroup)?;
    }
    Ok(())
}

/// A machine without a device on a bus has no line, whatever its routes.
fn without_configuration() -> Outcome {
    let bed = Bed::new("auto-none")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"auto\"\ncgroups = [\"@\"]\n")?;
    bed.check_closed(&bed.cgroup)?;
    let status = bed.succeed(&["uplinks"])?;
    ensure!(status.contains("auto: closed, because no member works"), "{status}");
    let status = bed.succeed(&["status"])?;
    ensure!(status.starts_with("1 policy is closed: auto has no member (`steer doctor` says why)\n"), "{status}");
    let findings = bed.doctor(&[])?.findings;
    let finding = findings.iter().find(|finding| finding.id == "uplink-group").context("no finding")?;
    for text in ["a0: of kind veth", "a1: of kind veth"] {
        ensure!(finding.text("what").contains(text), "{finding:?}");
    }
    ensure!(finding.text("severity") == "error" && finding.advice()?.contains("include"), "{finding:?}");
    Ok(())
}
