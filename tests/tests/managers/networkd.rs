//! A real systemd-networkd that configures the links again and again.

use anyhow::{Context as _, ensure};
use steer_lab::wait_until;
use steer_tests::{
    Outcome, PATIENCE,
    beside::{Beside, THIRD},
};

use super::{Run, check_back, check_log};

const ROUNDS: usize = 20;

fn network(link: &str, number: u8, host: u8, metric: u32) -> String {
    let mut text = format!(
        "[Match]\nName={link}\n[Network]\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nLLMNR=no\nMulticastDNS=no\n\
         [Address]\nAddress=10.0.{number}.{host}/24\n[Address]\nAddress=fd00:{number}::{host}/64\nDuplicateAddressDetection=none\n"
    );
    if ["a0", "a1"].contains(&link) {
        for gateway in [format!("10.0.{number}.1"), format!("fd00:{number}::1")] {
            text.extend(["[Route]\nGateway=", &gateway, "\nMetric=", &metric.to_string(), "\n"]);
        }
    }
    text
}

fn write(beside: &Beside, link: &str, number: u8, host: u8, metric: u32) -> Outcome {
    beside.write(&format!("/etc/systemd/network/10-{link}.network"), &network(link, number, host, metric))
}

/// After a start, the bus knows it a moment later.
fn networkctl(beside: &Beside, arguments: &[&str]) -> Outcome {
    let command = [&["networkctl"], arguments].concat();
    wait_until("networkctl", PATIENCE, || beside.machine.run(&command).is_ok_and(|said| said.code == 0))?;
    Ok(())
}

pub(super) fn reconfigures() -> Outcome {
    let beside = Beside::new("managers-networkd")?;
    write(&beside, "a0", 0, 2, 100)?;
    write(&beside, "a1", 1, 2, 200)?;
    write(&beside, THIRD, 7, 2, 300)?;
    write(&beside, "n0", 8, 2, 400)?;
    beside.announce_links()?;
    let version = beside.machine.succeed(&["networkctl", "--version"])?;
    beside.machine.succeed(&["systemctl", "start", "systemd-networkd"])?;
    beside
        .machine
        .write("/etc/systemd/system/systemd-networkd.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n")?;
    beside.machine.succeed(&["systemctl", "daemon-reload"])?;
    let is_configured = |beside: &Beside, link: &str| {
        let said = beside.machine.run(&["networkctl", "--no-pager", "list", link]);
        said.is_ok_and(|said| said.stdout.contains(" configured"))
    };
    for link in ["a0", "a1", THIRD] {
        wait_until("the link to be configured", PATIENCE, || is_configured(&beside, link)).with_context(|| {
            format!("{:?} {:?}", beside.machine.run(&["networkctl", "--no-pager", "list"]), beside.machine.journal())
        })?;
    }
    beside.steer(None)?;
    let (foreign, marks) = (beside.findings("foreign-rule")?, beside.findings("mark-clash")?);
    ensure!(foreign.is_empty() && marks.is_empty(), "{foreign:?} {marks:?}");

    let mut run = Run::start(beside)?;
    let mut host = 2;
    for _ in 0..ROUNDS {
        for link in ["a1", "a0", THIRD] {
            networkctl(&run.beside, &["reconfigure", link])?;
            run.settle(&format!("reconfigure {link}"))?;
        }
        // A link that appears is configured for the first time.
        run.beside.bed.ip("link add n0 type veth peer name n1")?;
        run.beside.bed.ip("link set n1 up")?;
        wait_until("the new link to be configured", PATIENCE, || is_configured(&run.beside, "n0"))?;
        run.settle("a new link")?;
        run.beside.bed.ip("link delete n0")?;
        run.settle("a deleted link")?;
        // The same file again.
        write(&run.beside, "a0", 0, 2, 100)?;
        networkctl(&run.beside, &["reload"])?;
        run.settle("reload with a touched file")?;
        // As when a lease has ended.
        host = if host == 2 { 9 } else { 2 };
        write(&run.beside, "a1", 1, host, 200)?;
        networkctl(&run.beside, &["reload"])?;
        run.settle("another address of the uplink")?;
        run.beside.machine.succeed(&["systemctl", "restart", "systemd-networkd"])?;
        run.settle("restart")?;
    }
    let (beside, repairs) = run.finish("systemd-networkd")?;
    eprintln!("{}: {repairs:?}", version.lines().next().unwrap_or_default());
    let log = beside.log()?;
    // Newer ones keep the addresses.
    ensure!(repairs.took.is_empty() || log.contains("another program removed"), "not reported: {log}");
    check_log(&log)?;
    check_back(&repairs)
}
