//! Pins, and the daemon that manages them.

use std::fs;

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_lab::wait_until;
use steer_tests::{Bed, Cgroup, Daemon, Outcome, PATIENCE};

use super::{CONFIG, attached_bed};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("no_daemon", no_daemon),
    ("an_incomplete_attachment", an_incomplete_attachment),
    ("an_outdated_index", an_outdated_index),
    ("a_removed_policy", a_removed_policy),
    ("an_emptied_file", an_emptied_file),
    ("another_version", another_version),
    ("leftovers", leftovers),
];

fn no_daemon() -> Outcome {
    let bed = Bed::new("doctor-daemon")?;
    let start = format!("{} daemon --config {}", bed.steer_words(), bed.config_file().display());
    bed.write_config(CONFIG)?;
    let said = bed.doctor(&[])?;
    let [unsteered, finding] = &said.findings[..] else { anyhow::bail!("{:#?}", said.findings) };
    ensure!(finding.id == "daemon" && finding.text("why").contains("none of them is in force"), "{finding:?}");
    ensure!(unsteered.json["subject"]["cgroup"] == bed.cgroup.path(), "{unsteered:?}");
    ensure!(finding.command()? == start && unsteered.command()? == start, "{finding:?} {unsteered:?}");
    let daemon = Daemon::start(&bed)?;
    bed.is_healthy()?;
    daemon.end(Signal::SIGKILL)?;
    let status = bed.succeed(&["status"])?;
    ensure!(status.starts_with("1 policy in force; no daemon runs, so "), "{status}");
    let finding = bed.only_finding("daemon")?;
    ensure!(finding.text("why").contains("stay steered") && finding.command()? == start, "{finding:?}");
    let _daemon = Daemon::start(&bed)?;
    bed.is_healthy()
}

/// Unpins one link of a cgroup, which detaches it.
fn unpin(bed: &Bed, cgroup: &Cgroup, program: &str) -> Outcome {
    fs::remove_file(bed.abi().join("links").join(cgroup.id()?.to_string()).join(program))?;
    wait_until("the kernel to detach it", PATIENCE, || bed.is_healthy().is_err())?;
    Ok(())
}

fn an_incomplete_attachment() -> Outcome {
    let bed = attached_bed("doctor-incomplete")?;
    let cases: [&[&str]; 4] = [
        &["-i", "a1"],
        &["-i", "a1", "--enforce", "steer", "--other-netns", "refuse", "--dns", "203.0.113.53,2001:db8::53"],
        &["-i", "a1", "--ingress", "uplink", "--existing", "destroy"],
        &["-i", "none"],
    ];
    for how in cases {
        bed.succeed(&[&["attach", bed.cgroup.path()], how].concat())?;
        let mut before = bed.policy(how[1])?;
        unpin(&bed, &bed.cgroup, "sock_create")?;
        let finding = bed.only_finding("attachment")?;
        ensure!(finding.text("what").ends_with("are missing: sock_create"), "{finding:?}");
        ensure!(finding.json["subject"]["cgroup"] == bed.cgroup.path(), "{finding:?}");
        ensure!(bed.repair(&finding)?);
        bed.is_healthy()?;
        let mut after = bed.policy(how[1])?;
        for policy in [&mut before, &mut after] {
            policy["counters"].take();
        }
        ensure!(before == after, "{finding:?} made {after} of {before}");
    }
    bed.succeed(&["off", "--forget"])?;
    let _daemon = bed.daemon(CONFIG)?;
    unpin(&bed, &bed.cgroup, "egress")?;
    let finding = bed.only_finding("attachment")?;
    ensure!(finding.command()? == format!("{} reload", bed.steer_words()), "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    Ok(())
}

fn an_outdated_index() -> Outcome {
    let mut bed = attached_bed("doctor-index")?;
    bed.net.remove_uplink(1)?;
    bed.only_finding("uplink")?;
    bed.net.create_uplink(1)?;
    let finding = bed.only_finding("uplink-index")?;
    let attach = format!("{} attach {} --interface a1", bed.steer_words(), bed.cgroup.path());
    ensure!(finding.command()? == attach && finding.json["subject"]["policy"] == "a1", "{finding:?}");
    bed.check_closed(&bed.cgroup)?;
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)
}

fn a_removed_policy() -> Outcome {
    let bed = Bed::new("doctor-retired")?;
    let hand = bed.cgroup.child("hand")?;
    let daemon = bed.daemon(CONFIG)?;
    bed.succeed(&["attach", hand.path(), "--policy", "p"])?;
    bed.is_healthy()?;
    bed.write_config(&CONFIG.replace("\"p\"", "\"q\""))?;
    daemon.wait_for_log("reloaded")?;
    let finding = bed.only_finding("policy")?;
    ensure!(finding.json["subject"]["policy"] == "p", "{finding:?}");
    bed.check_closed(&hand)?;
    let status = bed.succeed(&["status"])?;
    let verdict = "1 policy in force; 1 policy is closed: p is not in the configuration any more\n";
    ensure!(status.starts_with(verdict) && status.lines().nth(3).is_some_and(|row| row.starts_with("p ")), "{status}");
    ensure!(bed.repair(&finding)?);
    wait_until("the daemon to forget the policy", PATIENCE, || bed.is_healthy().is_ok())?;
    bed.check_steered(&hand, 1)
}

/// A daemon that runs keeps what the file had.
fn an_emptied_file() -> Outcome {
    let bed = Bed::new("doctor-emptied")?;
    let daemon = bed.daemon(CONFIG)?;
    bed.is_healthy()?;
    bed.write_config("")?;
    daemon.wait_for_log("was not reloaded")?;
    let finding = bed.only_finding("policy")?;
    ensure!(finding.json["subject"]["policy"] == "p" && finding.text("severity") == "warning", "{finding:?}");
    ensure!(finding.text("why").contains(&*bed.config_file().to_string_lossy()), "{finding:?}");
    bed.write_config(CONFIG)?;
    bed.is_healthy()
}

fn another_version() -> Outcome {
    let bed = attached_bed("doctor-version")?;
    fs::rename(bed.abi(), bed.pins.join("abi0"))?;
    let finding = bed.only_finding("other-version")?;
    ensure!(finding.json["subject"]["cgroup"] == bed.cgroup.path(), "{finding:?}");
    ensure!(finding.command()?.ends_with(&format!("detach {}", bed.cgroup.path())), "{finding:?}");
    ensure!(bed.repair(&finding)?);
    bed.is_healthy()?;
    ensure!(!bed.pins.exists(), "something is left");
    Ok(())
}

fn leftovers() -> Outcome {
    let bed = attached_bed("doctor-left")?;
    let dead = bed.pins.join("abi0");
    fs::create_dir_all(dead.join("maps"))?;
    let finding = bed.only_finding("leftovers")?;
    ensure!(finding.text("severity") == "info" && finding.json["fix"]["safe"] == true, "{finding:?}");
    ensure!(finding.text("what").contains("abi0"), "{finding:?}");
    ensure!(finding.command()?.ends_with(" doctor --fix"), "{finding:?}");
    let text = bed.doctor_text(&["--fix"])?;
    let code = i32::from(bed.not_covered()?.is_some());
    ensure!(text.code == code && text.stdout.starts_with("repaired leftovers: "), "{text:?}");
    ensure!(!dead.exists());
    bed.is_healthy()?;
    bed.check_steered(&bed.cgroup, 1)?;

    let gone = bed.cgroup.child("gone")?;
    bed.succeed(&["attach", gone.path(), "-i", "a1"])?;
    gone.remove()?;
    wait_until("the kernel to release the cgroup", PATIENCE, || {
        bed.only_finding("leftovers").is_ok_and(|finding| finding.text("what").contains("gone: 1"))
    })?;
    ensure!(bed.doctor(&["--fix"])?.findings.is_empty());
    bed.is_healthy()?;

    fs::remove_file(bed.abi().join("maps/ATTACHMENTS"))?;
    let finding = bed.only_finding("leftovers")?;
    ensure!(finding.text("severity") == "warning" && finding.json["fix"]["safe"] == false, "{finding:?}");
    // It does not do that automatically.
    ensure!(bed.doctor(&["--fix"])?.json["applied"] == serde_json::json!([]));
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(finding.command()?.ends_with(" off") && bed.repair(&finding)?, "{finding:?}");
    bed.is_healthy()
}
