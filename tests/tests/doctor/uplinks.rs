//! Uplinks that are missing or have no route.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use steer_lab::{client_v4, gateway_v4, gateway_v6, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE};

use super::{CONFIG, attached_bed};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("an_uplink_that_is_missing", an_uplink_that_is_missing),
    ("a_group_with_faults", a_group_with_faults),
    ("an_uplink_that_is_down", an_uplink_that_is_down),
    ("an_uplink_without_carrier", an_uplink_without_carrier),
    ("no_default_route", no_default_route),
    ("no_address", no_address),
    ("a_strict_reverse_path_filter", a_strict_reverse_path_filter),
    ("a_filter_that_the_best_route_back_passes", a_filter_that_the_best_route_back_passes),
];

/// Changes addresses or routes. No daemon follows them, so the routes of the policy are written by another attachment.
fn ip(bed: &Bed, arguments: &str) -> Outcome {
    bed.ip(arguments)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"]).map(drop)
}

fn an_uplink_that_is_missing() -> Outcome {
    let mut bed = Bed::new("doctor-missing")?;
    let _daemon = bed.daemon(CONFIG)?;
    bed.net.remove_uplink(1)?;
    let finding = bed.only_finding("uplink")?;
    ensure!(finding.json["subject"]["uplink"] == "a1" && finding.text("severity") == "error", "{finding:?}");
    ensure!(
        finding.text("what").contains("a1, the uplink of policy p") && !finding.advice()?.is_empty(),
        "{finding:?}"
    );
    bed.net.create_uplink(1)?;
    wait_until("the daemon to follow", PATIENCE, || bed.is_healthy().is_ok())?;
    Ok(())
}

/// A member that is missing, and a target that nobody has.
fn a_group_with_faults() -> Outcome {
    let bed = Bed::new("doctor-group")?;
    let _daemon = bed.daemon(
        "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", \"a0\", \"a9\"]\n\
         probe = { targets = [\"gateway\", \"icmp:198.51.100.77\"], interval = \"100ms\" }\n\
         [[policy]]\nname = \"p\"\nuplink = \"lines\"\ncgroups = [\"@\"]\n",
    )?;
    let mut examined = None;
    wait_until("enough probes", PATIENCE, || {
        let found = bed.doctor(&[]);
        let has_it = found.as_ref().is_ok_and(|it| it.findings.iter().any(|finding| finding.id == "uplink-group"));
        examined = found.ok();
        has_it
    })?;
    let found = examined.context("no findings")?.findings;
    let said: Vec<_> = found.iter().map(|finding| (finding.id.as_str(), finding.text("what"))).collect();
    let want = [
        ("uplink", "there is no interface a9, a member of the uplink of policy p"),
        ("uplink-group", "icmp:198.51.100.77 has never answered a probe, by no member"),
    ];
    ensure!(said.len() == want.len() && want.iter().all(|want| said.contains(want)), "{said:?}");
    ensure!(found.iter().all(|finding| finding.text("severity") == "warning"), "{found:?}");
    let uplinks = bed.get("/v1/uplinks")?;
    let targets = &uplinks[0]["members"][0]["ipv4"]["probes"]["targets"];
    ensure!(targets[0]["target"] == "gateway" && targets[0]["answered"].as_u64() > Some(0), "{targets}");
    ensure!(targets[1]["answered"] == 0 && targets[1]["rounds"].as_u64() >= Some(10), "{targets}");
    Ok(())
}

fn an_uplink_that_is_down() -> Outcome {
    let bed = attached_bed("doctor-down")?;
    bed.net.client.set_down("a1")?;
    let finding = bed.only_finding("uplink")?;
    ensure!(finding.command()? == "ip link set dev a1 up", "{finding:?}");
    ensure!(bed.repair(&finding)?);
    // Its routes were removed when it went down.
    bed.net.client.wait_running("a1")?;
    let found = bed.doctor(&[])?.findings;
    ensure!(found.iter().all(|finding| finding.id != "uplink"), "{found:?}");
    Ok(())
}

fn an_uplink_without_carrier() -> Outcome {
    let bed = attached_bed("doctor-carrier")?;
    bed.net.server.set_down("b1")?;
    let finding = bed.only_finding("uplink")?;
    ensure!(finding.text("what").contains("no carrier") && finding.advice()?.contains("other end"), "{finding:?}");
    bed.net.server.set_up("b1")?;
    bed.net.client.wait_running("a1")?;
    bed.is_healthy()
}

fn no_default_route() -> Outcome {
    let bed = attached_bed("doctor-route")?;
    for (id, ip_command, gateway) in
        [("ipv4-route", "ip", gateway_v4(1).to_string()), ("ipv6-route", "ip -6", gateway_v6(1).to_string())]
    {
        let family = ip_command.trim_start_matches("ip").trim();
        ip(&bed, format!("{family} route del default dev a1").trim())?;
        let finding = bed.only_finding(id)?;
        ensure!(finding.text("severity") == "warning", "{finding:?}");
        let advice = finding.advice()?;
        let any = if family.is_empty() { "0.0.0.0/0" } else { "::/0" };
        ensure!(advice == format!("{ip_command} route add {any} via GATEWAY dev a1 metric 4096"), "{finding:?}");
        ensure!(bed.run_in_a_shell(&advice.replace("GATEWAY", &gateway))?);
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        bed.is_healthy()?;
        // The other sockets still use the better route.
        bed.check_unsteered(None)?;
    }
    // A table that only sockets bound to the uplink use is sufficient.
    ip(&bed, "route del default dev a1")?;
    ip(&bed, "rule add oif a1 lookup 77")?;
    ip(&bed, "route add 0.0.0.0/1 via 10.0.1.1 dev a1 table 77")?;
    bed.only_finding("ipv4-route")?;
    ip(&bed, "route add 128.0.0.0/1 via 10.0.1.1 dev a1 table 77")?;
    bed.is_healthy()?;
    // A tunnel needs no gateway.
    let _tun = bed.net.client.add_tun("t0")?;
    bed.net.client.set_up("t0")?;
    bed.net.client.add_address("t0", Ipv4Addr::new(10, 0, 9, 2).into(), 24)?;
    bed.net.client.add_address("t0", Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2).into(), 64)?;
    bed.net.client.add_route(Ipv6Addr::UNSPECIFIED.into(), 0, None, "t0", 300)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "t0"])?;
    let finding = bed.only_finding("ipv4-route")?;
    ensure!(finding.command()? == "ip route add 0.0.0.0/0 dev t0 metric 4096", "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()
}

fn no_address() -> Outcome {
    let bed = attached_bed("doctor-address")?;
    ip(&bed, "address del 10.0.1.2/24 dev a1")?;
    let finding = bed.only_finding("ipv4-address")?;
    ensure!(finding.advice()? == "ip address add ADDRESS/PREFIX dev a1", "{finding:?}");
    bed.run_in_a_shell(&finding.advice()?.replace("ADDRESS/PREFIX", "10.0.1.2/24"))?;
    bed.only_finding("ipv4-route")?;
    ip(&bed, "route add default via 10.0.1.1 dev a1 metric 200")?;
    bed.is_healthy()?;
    ip(&bed, "-6 route del default dev a1")?;
    ip(&bed, "-6 address flush dev a1")?;
    // Many uplinks have only IPv4.
    let finding = bed.only_finding("ipv6-address")?;
    ensure!(finding.text("severity") == "info", "{finding:?}");
    ip(&bed, "-6 route add default dev a1 metric 200")?;
    ensure!(bed.only_finding("ipv6-address")?.text("severity") == "warning");
    Ok(())
}

fn a_strict_reverse_path_filter() -> Outcome {
    const FILTER: &str = "net/ipv4/conf/a1/rp_filter";
    let bed = attached_bed("doctor-filter")?;
    for (on_all, on_a1) in [("0", "1"), ("1", "0"), ("1", "1")] {
        for by_itself in [false, true] {
            bed.net.client.write_sysctl("net/ipv4/conf/all/rp_filter", on_all)?;
            bed.net.client.write_sysctl(FILTER, on_a1)?;
            // The finding is true: IPv4 answers are dropped.
            ensure!(bed.check_steered(&bed.cgroup, 1).is_err(), "nothing is wrong");
            let finding = bed.only_finding("reverse-path-filter")?;
            ensure!(finding.text("severity") == "error" && finding.json["fix"]["safe"] == true, "{finding:?}");
            ensure!(finding.command()? == "sysctl -w net.ipv4.conf.a1.rp_filter=2", "{finding:?}");
            let persistent = "echo 'net.ipv4.conf.a1.rp_filter = 2' > /etc/sysctl.d/90-steer-a1.conf";
            ensure!(finding.json["fix"]["persistent"] == persistent, "{finding:?}");
            if by_itself {
                let repaired = bed.doctor(&["--fix"])?;
                ensure!(repaired.code == 0 && repaired.findings.is_empty(), "{repaired:?}");
                let applied = &repaired.json["applied"][0];
                ensure!(applied["id"] == "reverse-path-filter" && applied["error"].is_null(), "{repaired:?}");
            } else if !bed.repair(&finding)? {
                continue;
            }
            bed.is_healthy()?;
            bed.check_steered(&bed.cgroup, 1)?;
        }
    }
    bed.net.client.write_sysctl(FILTER, "1")?;
    let text = bed.doctor_text(&["--fix"])?.stdout;
    ensure!(
        text.starts_with("repaired reverse-path-filter: uplink a1: sysctl -w net.ipv4.conf.a1.rp_filter=2\n"),
        "{text}"
    );
    // There is nothing left to repair.
    ensure!(bed.doctor(&["--fix"])?.json["applied"] == serde_json::json!([]));
    Ok(())
}

/// A filter that compares with the best route, and a rule that makes the uplink the best route for its own address.
fn a_filter_that_the_best_route_back_passes() -> Outcome {
    let bed = Bed::new("doctor-rule")?;
    // The policy uses another name of the interface than sysctls do.
    bed.net.client.add_altname("a1", "other-name")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "other-name"])?;
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1")?;
    let finding = bed.only_finding("reverse-path-filter")?;
    ensure!(finding.json["subject"]["uplink"] == "other-name", "{finding:?}");
    ensure!(finding.command()? == "sysctl -w net.ipv4.conf.a1.rp_filter=2", "{finding:?}");
    ip(&bed, &format!("rule add from {} lookup 77", client_v4(1)))?;
    ip(&bed, "route add default via 10.0.1.1 dev a1 table 77")?;
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)
}
