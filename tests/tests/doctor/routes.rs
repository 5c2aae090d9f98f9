//! Rules and routes of policies, and what of others is in their way.

use std::{fs, net::IpAddr};

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_lab::{SERVER_V4, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("rules_and_routes_that_are_gone", rules_and_routes_that_are_gone),
    ("routes_of_a_bound_policy", routes_of_a_bound_policy),
    ("that_a_daemon_follows", that_a_daemon_follows),
    ("a_rule_in_front", a_rule_in_front),
    ("marks_of_others", marks_of_others),
    ("a_strict_reverse_path_filter", a_strict_reverse_path_filter),
    ("a_resolver_on_this_host", a_resolver_on_this_host),
    ("marks_of_sockets", marks_of_sockets),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"lan\"]\ncgroups = [\"@\"]\n";

fn routed_bed(name: &str, more: &[&str]) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&[&["attach", bed.cgroup.path(), "-i", "a1"], more].concat())?;
    bed.is_healthy()?;
    Ok(bed)
}

fn rules_and_routes_that_are_gone() -> Outcome {
    let bed = routed_bed("doctor-gone", &["--local", "lan"])?;
    for (delete, part) in [
        ("rule delete pref 40001", "to add IPv4 rule 40001: fwmark 0x81000000/0xff000000 lookup 0x73"),
        (
            "-6 rule delete pref 0 fwmark 0x80000000/0x80000000",
            "to add IPv6 rule 0: fwmark 0x80000000/0x80000000 goto 40000",
        ),
        ("-4 flush", "to write route 10.0.0.0/24 metric 1 table 0x73"),
        ("-6 route add 2001:db8::/32 via fd00:1::1 dev a1", "to write route 2001:db8::/32"),
    ] {
        match delete.strip_suffix(" flush") {
            Some(family) => bed.flush_steer_routes(family)?,
            None => drop(bed.ip(delete)?),
        }
        let finding = bed.only_finding("routes")?;
        ensure!(finding.text("severity") == "error" && finding.text("what").contains(part), "{part}: {finding:?}");
        let attach = format!("{} attach {} --interface a1 --local lan", bed.steer_words(), bed.cgroup.path());
        ensure!(finding.command()? == attach, "{finding:?}");
        ensure!(bed.repair(&finding)?);
        bed.is_healthy()?;
        bed.check_steered(&bed.cgroup, 1)?;
    }
    Ok(())
}

fn routes_of_a_bound_policy() -> Outcome {
    let bed = routed_bed("doctor-bound", &[])?;
    bed.ip("-6 rule delete pref 0 oif a1")?;
    let finding = bed.only_finding("routes")?;
    ensure!(finding.text("what").contains("to add IPv6 rule 0: oif a1 lookup 0x73"), "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer"])?;
    bed.is_healthy()
}

fn that_a_daemon_follows() -> Outcome {
    let bed = Bed::new("doctor-follows")?;
    let daemon = bed.daemon(CONFIG)?;
    bed.is_healthy()?;
    bed.ip("rule delete pref 40001")?;
    wait_until("the daemon to write the rule", PATIENCE, || bed.is_healthy().is_ok())?;
    daemon.end(Signal::SIGTERM)?;
    bed.ip("rule delete pref 40001")?;
    let said = bed.doctor(&[])?;
    let finding = said.findings.iter().find(|finding| finding.id == "routes");
    let start = format!("{} daemon --config {}", bed.steer_words(), bed.config_file().display());
    ensure!(finding.is_some_and(|finding| finding.command().is_ok_and(|command| command == start)), "{said:?}");
    let _daemon = bed.daemon(CONFIG)?;
    bed.is_healthy()
}

fn a_rule_in_front() -> Outcome {
    let bed = routed_bed("doctor-front", &["--local", "host"])?;
    // The kernel puts it behind the others of its preference, so those of steer are made again.
    bed.ip("rule delete pref 0 fwmark 0x80000000/0x80000000")?;
    bed.ip("rule add pref 0 to 198.51.100.0/24 lookup main")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    ensure!(bed.check_steered(&bed.cgroup, 1).is_err(), "nothing is wrong");
    let finding = bed.only_finding("foreign-rule")?;
    ensure!(finding.text("what").contains("IPv4 rule 0: ... lookup 254"), "{finding:?}");
    ensure!(finding.text("severity") == "warning" && finding.advice()?.contains("1 to 39999"), "{finding:?}");
    bed.ip("rule delete pref 0 to 198.51.100.0/24")?;
    bed.ip("rule add pref 1 to 198.51.100.0/24 lookup main")?;
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)
}

fn marks_of_others() -> Outcome {
    let bed = routed_bed("doctor-marks", &["--local", "host"])?;
    // Tailscale uses other bits. wg-quick and Mullvad set whole marks, which do not look like those of steer.
    bed.ip("rule add not fwmark 0xca6c lookup 51820")?;
    bed.ip("rule add pref 5000 fwmark 0x6d6f6c65 lookup 1836018789")?;
    bed.ip("rule add pref 5210 fwmark 0x80000/0xff0000 lookup main")?;
    bed.is_healthy()?;
    bed.net.client.write_sysctl("net/ipv6/fwmark_reflect", "1")?;
    let finding = bed.only_finding("mark-clash")?;
    ensure!(finding.command()? == "sysctl -w net.ipv6.fwmark_reflect=0", "{finding:?}");
    bed.net.client.write_sysctl("net/ipv6/fwmark_reflect", "0")?;
    let mut mask = 0;
    for (rule, shown) in [
        ("fwmark 0x80000001 lookup 7", "IPv4 rule 5001: fwmark 0x80000001/0xffffffff lookup 7"),
        ("fwmark 0x1000000/0xf000000 lookup 7", "IPv4 rule 5001: fwmark 0x1000000/0xf000000 lookup 7"),
    ] {
        bed.ip(&format!("rule add pref 5001 {rule}"))?;
        let finding = bed.only_finding("mark-clash")?;
        ensure!(finding.text("what").contains(shown) && finding.text("what").contains("0xff000000"), "{finding:?}");
        let (_, found) = finding.advice()?.split_once("[route] mark_mask = \"0x").unwrap_or_default();
        mask = u32::from_str_radix(found.split('"').next().unwrap_or_default(), 16)?;
        bed.ip(&format!("rule delete pref 5001 {rule}"))?;
    }
    ensure!(mask != 0 && mask & 0xfff_0000 == 0, "{mask:#x}");
    bed.write_config(&format!("[route]\nmark_mask = \"{mask:#x}\"\n"))?;
    let config = bed.config_file().display().to_string();
    bed.succeed(&["check", "--config", &config])?;
    // The policy keeps its mark until it is attached again.
    bed.is_healthy()
}

fn a_strict_reverse_path_filter() -> Outcome {
    let bed = routed_bed("doctor-filter-mark", &["--local", "host"])?;
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1")?;
    ensure!(bed.check_steered(&bed.cgroup, 1).is_err(), "nothing is wrong");
    let finding = bed.only_finding("reverse-path-filter")?;
    ensure!(finding.json["subject"]["uplink"] == "a1", "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)?;
    // The link of an exception.
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a0", "--except", "198.51.100.0/24=a1"])?;
    let finding = bed.only_finding("reverse-path-filter")?;
    ensure!(
        finding.json["subject"]["policy"] == "a0" && finding.text("what").contains("198.51.100.0/24=a1"),
        "{finding:?}"
    );
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    let server: IpAddr = SERVER_V4.into();
    ensure!(bed.succeed(&["explain", bed.cgroup.path(), "--to", &server.to_string()])?.contains("leaves by a1"));
    Ok(())
}

fn a_resolver_on_this_host() -> Outcome {
    let bed = routed_bed("doctor-stub", &["--local", "host"])?;
    for server in ["127.0.0.53", "127.0.0.1", "::1"] {
        fs::write(bed.machine_file("resolv.conf"), format!("nameserver {server}\n"))?;
        let finding = bed.only_finding("local-resolver")?;
        ensure!(finding.text("severity") == "warning" && finding.text("what").contains(server), "{finding:?}");
        ensure!(finding.text("why").contains("not looked up by the uplink"), "{finding:?}");
        ensure!(finding.advice()?.contains("--dns RESOLVER"), "{finding:?}");
    }
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host", "--dns", "2001:db8::53"])?;
    bed.is_healthy()
}

/// Sockets of a policy with marks are right if they have its mark.
fn marks_of_sockets() -> Outcome {
    let bed = Bed::new("doctor-marked")?;
    let (client, port) = super::sockets::listening(&bed)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "lan"])?;
    let finding = bed.only_finding("older-sockets")?;
    for part in ["not marked 0x81000000 for a1, the uplink of a1", &format!(":{port} (not marked)")] {
        ensure!(finding.text("what").contains(part), "{part} in {finding:?}");
    }
    drop(client);
    bed.is_healthy()?;
    let (client, _) = super::sockets::listening(&bed)?;
    bed.is_healthy()?;
    let said = bed.succeed(&["explain", &client.0.id().to_string()])?;
    ensure!(said.contains("1 open, 0 without the mark"), "{said}");
    // The mark of another policy.
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", inner.path(), "-i", "a1", "--local", "host"])?;
    bed.is_healthy()?;
    fs::write(inner.directory().join("cgroup.procs"), client.0.id().to_string())?;
    let finding = bed.only_finding("older-sockets")?;
    ensure!(finding.text("what").contains("(marked 0x81000000)"), "{finding:?}");
    Ok(())
}
