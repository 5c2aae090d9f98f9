//! Daemons that are killed, come back, and are upgraded, under load: never a moment unsteered.

use std::fs;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{LoadReport, client_v4, client_v6, wait_until};
use steer_tests::{Bed, Daemon, Outcome, PATIENCE, Spy};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("killed_and_started_again_under_load", killed_and_started_again_under_load),
    ("another_program_in_its_place_under_load", another_program_in_its_place_under_load),
    ("another_abi_version_in_its_place_under_load", another_abi_version_in_its_place_under_load),
    ("another_abi_version_that_is_not_ours", another_abi_version_that_is_not_ours),
    ("converges_to_what_changed_while_it_was_away", converges_to_what_changed_while_it_was_away),
    ("mends_what_is_broken", mends_what_is_broken),
    ("reloads_under_load", reloads_under_load),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n";

fn check_report(report: &LoadReport) -> Outcome {
    let ours = |local: &std::net::IpAddr| *local == client_v4(1) || *local == client_v6(1);
    ensure!(report.ok > 100, "too little load to mean anything: {report:?}");
    ensure!(report.locals.keys().all(ours), "another address: {report:?}");
    ensure!(!report.bound.contains_key(&0), "an unbound socket: {report:?}");
    Ok(())
}

fn killed_and_started_again_under_load() -> Outcome {
    let bed = Bed::new("life-kill")?;
    let mut daemon = bed.daemon(CONFIG)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&bed.cgroup)?;
    for _ in 0..10 {
        ensure!(daemon.end(Signal::SIGKILL)?.is_none());
        daemon = Daemon::start(&bed)?;
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)?;
    ensure!(report.errors.is_empty(), "an interruption: {report:?}");
    bed.check_steered(&bed.cgroup, 1)
}

fn another_program_in_its_place_under_load() -> Outcome {
    let bed = Bed::new("life-program")?;
    let mut daemon = bed.daemon(CONFIG)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&bed.cgroup)?;
    for _ in 0..5 {
        // With the log on, the program is loaded anew, and replaces the pinned one in every link.
        daemon.end(Signal::SIGKILL)?;
        daemon = Daemon::start_with(&bed, &["--kernel-log", "trace"])?;
    }
    daemon.wait_for_log("bound to ifindex")?;
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)?;
    ensure!(report.errors.is_empty(), "an interruption: {report:?}");
    bed.check_steered(&bed.cgroup, 1)
}

fn another_abi_version_in_its_place_under_load() -> Outcome {
    let bed = Bed::new("life-abi")?;
    let mut daemon = bed.daemon(CONFIG)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&bed.cgroup)?;
    for _ in 0..10 {
        daemon.end(Signal::SIGKILL)?;
        // What this version has pinned becomes another version's.
        fs::rename(bed.pins.join("abi1"), bed.pins.join("abi0"))?;
        daemon = Daemon::start(&bed)?;
        ensure!(!bed.pins.join("abi0").exists(), "the other version was not removed");
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)?;
    bed.check_steered(&bed.cgroup, 1)
}

fn another_abi_version_that_is_not_ours() -> Outcome {
    let bed = Bed::new("life-abi-hand")?;
    let hand = bed.cgroup.child("hand")?;
    bed.succeed(&["attach", hand.path(), "-i", "a1"])?;
    fs::rename(bed.pins.join("abi1"), bed.pins.join("abi0"))?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a0\"\ncgroups = [\"@/conf\"]\n")?;
    daemon.wait_for_log("is steered by another version of steer")?;
    bed.check_steered(&hand, 1)?;
    // Off takes away every version.
    let said = bed.succeed(&["off"])?;
    ensure!(said.contains(hand.path()), "{said}");
    ensure!(!bed.pins.exists());
    bed.check_unsteered(Some(&hand))
}

fn converges_to_what_changed_while_it_was_away() -> Outcome {
    let mut bed = Bed::new("life-away")?;
    let (one, two) = (bed.cgroup.child("one")?, bed.cgroup.child("two")?);
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/one\", \"@/three\"]\n";
    let daemon = bed.daemon(config)?;
    daemon.end(Signal::SIGKILL)?;
    // The uplink is another one, a cgroup is new, one is gone, and one is no longer named.
    bed.net.remove_uplink(1)?;
    bed.check_closed(&one)?;
    bed.net.create_uplink(1)?;
    bed.check_closed(&one)?;
    let three = bed.cgroup.child("three")?;
    bed.write_config("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/two\", \"@/three\"]\n")?;
    let _daemon = Daemon::start(&bed)?;
    bed.check_unsteered(Some(&one))?;
    bed.check_steered(&two, 1)?;
    bed.check_steered(&three, 1)
}

fn mends_what_is_broken() -> Outcome {
    let bed = Bed::new("life-mend")?;
    let daemon = bed.daemon(CONFIG)?;
    daemon.end(Signal::SIGKILL)?;
    // Somebody has unpinned the link, which detaches it.
    let pin = bed.pins.join("abi1/links").join(bed.cgroup.id()?.to_string()).join("sock_create");
    fs::remove_file(&pin)?;
    wait_until("the kernel to detach it", PATIENCE, || bed.check_unsteered(Some(&bed.cgroup)).is_ok())?;
    let status = bed.succeed(&["status"])?;
    ensure!(status.contains("INCOMPLETE"), "{status}");
    let _daemon = Daemon::start(&bed)?;
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(pin.exists());
    Ok(())
}

fn reloads_under_load() -> Outcome {
    let bed = Bed::new("life-reload")?;
    let inner = bed.cgroup.child("inner")?;
    let daemon = bed.daemon(CONFIG)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&inner)?;
    // The load's cgroup stays on the same uplink, by one policy or another, by its own attachment or its parent's.
    let rest = "[[policy]]\nname = \"r\"\ninterface = \"a0\"\ncgroups = [\"@/rest\"]\n";
    for round in 0..30 {
        let policy = ["p", "q", "s"][round % 3];
        let cgroups = ["\"@\"", "\"@\", \"@/inner\"", "\"@/**\", \"@\""][round / 3 % 3];
        let marker =
            format!("[[policy]]\nname = \"round-{round}\"\ninterface = \"none\"\ncgroups = [\"@/none-{round}\"]\n");
        let own = format!("[[policy]]\nname = \"{policy}\"\ninterface = \"a1\"\ncgroups = [{cgroups}]\n");
        bed.write_config(&format!("{rest}{own}{marker}"))?;
        wait_until("the reload", PATIENCE, || bed.policy(&format!("round-{round}")).is_ok())
            .with_context(|| format!("round {round}: {:?}\n{}", bed.status(), daemon.log()))?;
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}
