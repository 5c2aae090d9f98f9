//! Daemons that are killed, come back, and are upgraded, under load: never a moment unsteered.

use std::fs;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{LoadReport, client_v4, client_v6, wait_until};
use steer_tests::{Bed, Daemon, NotHere, Outcome, PATIENCE, Spy};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("killed_and_started_again_under_load", killed_and_started_again_under_load),
    ("another_program_in_its_place_under_load", another_program_in_its_place_under_load),
    ("another_abi_version_in_its_place_under_load", another_abi_version_in_its_place_under_load),
    ("another_abi_version_that_is_not_ours", another_abi_version_that_is_not_ours),
    ("mends_what_is_broken", mends_what_is_broken),
    ("mends_what_was_attached_by_hand", mends_what_was_attached_by_hand),
    ("adds_a_program_that_is_new", adds_a_program_that_is_new),
    ("pins_of_a_version_without_a_program", pins_of_a_version_without_a_program),
    ("starts_without_a_policy_that_was_removed", starts_without_a_policy_that_was_removed),
    ("reloads_under_load", reloads_under_load),
    ("never_unsteered_by_a_reload", never_unsteered_by_a_reload),
    ("a_reload_that_fails_is_made_up_for", a_reload_that_fails_is_made_up_for),
    ("a_link_change_that_fails_is_made_up_for", a_link_change_that_fails_is_made_up_for),
    ("a_late_report_of_a_removal_detaches_nothing", a_late_report_of_a_removal_detaches_nothing),
    ("not_from_another_network_namespace", not_from_another_network_namespace),
    ("what_a_killed_off_leaves_is_no_obstacle", what_a_killed_off_leaves_is_no_obstacle),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n";

fn check_report(report: &LoadReport) -> Outcome {
    let ours = |local: &std::net::IpAddr| *local == client_v4(1) || *local == client_v6(1);
    ensure!(report.ok > 20, "too little load to mean anything: {report:?}");
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
        fs::rename(bed.abi(), bed.pins.join("abi0"))?;
        daemon = Daemon::start(&bed)?;
        ensure!(!bed.pins.join("abi0").exists(), "the other version was not removed");
    }
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)?;
    ensure!(report.errors.is_empty(), "an interruption: {report:?}");
    bed.check_steered(&bed.cgroup, 1)
}

fn another_abi_version_that_is_not_ours() -> Outcome {
    let bed = Bed::new("life-abi-hand")?;
    let hand = bed.cgroup.child("hand")?;
    bed.succeed(&["attach", hand.path(), "-i", "a1"])?;
    fs::rename(bed.abi(), bed.pins.join("abi0"))?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a0\"\ncgroups = [\"@/conf\"]\n")?;
    daemon.wait_for_log("is steered by another version of steer")?;
    bed.check_steered(&hand, 1)?;
    // Off takes away every version.
    let said = bed.succeed(&["off"])?;
    ensure!(said.contains(hand.path()), "{said}");
    ensure!(!bed.pins.exists());
    bed.check_unsteered(Some(&hand))
}

fn mends_what_is_broken() -> Outcome {
    let bed = Bed::new("life-mend")?;
    let daemon = bed.daemon(CONFIG)?;
    daemon.end(Signal::SIGKILL)?;
    // Somebody has unpinned the link, which detaches it.
    let pin = bed.abi().join("links").join(bed.cgroup.id()?.to_string()).join("sock_create");
    fs::remove_file(&pin)?;
    wait_until("the kernel to detach it", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["cgroups"][0]["complete"] == false)
    })?;
    // The others still hold.
    let mut spy = Spy::on(&bed, &["a1"])?;
    bed.probe(Some(&bed.cgroup), steer_tests::User::Nobody)?;
    spy.saw_nothing()?;
    let status = bed.succeed(&["status"])?;
    ensure!(status.contains("INCOMPLETE"), "{status}");
    let _daemon = Daemon::start(&bed)?;
    bed.check_steered(&bed.cgroup, 1)?;
    ensure!(pin.exists());
    Ok(())
}

fn mends_what_was_attached_by_hand() -> Outcome {
    let bed = Bed::new("life-mend-hand")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let pin = bed.abi().join("links").join(bed.cgroup.id()?.to_string()).join("connect4");
    fs::remove_file(&pin)?;
    let is_complete = |expected: bool| {
        bed.policy("a1").is_ok_and(|policy| policy["cgroups"][0]["complete"] == expected && pin.exists() == expected)
    };
    wait_until("the kernel to detach it", PATIENCE, || is_complete(false))?;
    let config = policy("p", "a0", "\"@/none\"");
    bed.daemon(&config)?.end(Signal::SIGTERM)?;
    ensure!(is_complete(true));
    // So does one that then refuses to start, for its configuration has lost what is in force.
    fs::remove_file(&pin)?;
    wait_until("the kernel to detach it", PATIENCE, || is_complete(false))?;
    bed.write_config("")?;
    let refused = bed.run(&["daemon", "--config", &bed.config_file().to_string_lossy()])?;
    ensure!(refused.code == 2 && refused.stderr.contains("has no policy") && is_complete(true), "{refused:?}");
    bed.check_steered(&bed.cgroup, 1)
}

/// What an earlier version without it has attached by hand gets it with the next daemon.
fn adds_a_program_that_is_new() -> Outcome {
    let bed = Bed::new("life-new")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    if let Some(why) = bed.not_covered()? {
        return Err(NotHere(why).into());
    }
    let link = bed.abi().join("links").join(bed.cgroup.id()?.to_string()).join("family");
    for pin in [&bed.abi().join("programs/family"), &link] {
        fs::remove_file(pin)?;
    }
    let policy_without = bed.policy("a1")?;
    ensure!(policy_without["cgroups"][0]["complete"] == true, "asked for, but not there: {policy_without}");
    ensure!(bed.not_covered()?.is_some());
    let _daemon = bed.daemon(&policy("p", "a0", "\"@/none\""))?;
    ensure!(link.exists() && bed.not_covered()?.is_none());
    ensure!(bed.policy("a1")?["cgroups"][0]["complete"] == true);
    Ok(())
}

/// As those before the program that makes records got another hook, and with it another name.
fn pins_of_a_version_without_a_program() -> Outcome {
    let bed = Bed::new("life-anchor")?;
    let (old, new) = (bed.cgroup.child("old")?, bed.cgroup.child("new")?);
    bed.succeed(&["attach", old.path(), "-i", "a1"])?;
    let programs = bed.abi().join("programs");
    fs::rename(programs.join(steer_common::program::ANCHOR), programs.join("anchor"))?;
    bed.succeed(&["attach", new.path(), "-i", "a1"])?;
    bed.check_steered(&old, 1)?;
    bed.check_steered(&new, 1)?;
    bed.succeed(&["off"])?;
    ensure!(!bed.pins.exists(), "the old program is left");
    Ok(())
}

/// Whether what was attached to it is still there or not.
fn starts_without_a_policy_that_was_removed() -> Outcome {
    let bed = Bed::new("life-removed")?;
    let set = ["policy", "set", "p", "-i", "a1", "--cgroup", "/none"];
    for is_gone in [false, true] {
        let cgroup = bed.cgroup.child("manual")?;
        let daemon = bed.daemon("# no policy\n")?;
        bed.succeed(&set)?;
        bed.succeed(&["attach", cgroup.path(), "--policy", "p"])?;
        bed.check_steered(&cgroup, 1)?;
        bed.succeed(&["policy", "remove", "p"])?;
        bed.check_closed(&cgroup)?;
        daemon.end(Signal::SIGKILL)?;
        if is_gone {
            cgroup.remove()?;
            Daemon::start(&bed)?.end(Signal::SIGTERM)?;
            continue;
        }
        let daemon = Daemon::start(&bed)?;
        bed.check_closed(&cgroup)?;
        bed.succeed(&set)?;
        bed.check_steered(&cgroup, 1)?;
        bed.succeed(&["policy", "remove", "p"])?;
        bed.succeed(&["detach", cgroup.path()])?;
        daemon.end(Signal::SIGTERM)?;
    }
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

/// Takes the lock that orders all changes, as a process does that was stopped in the middle of one.
fn hold_lock(bed: &Bed) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
    let directory = fs::File::open(&bed.pins)?;
    let locked = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive);
    locked.map_err(|(_, errno)| errno.into())
}

fn policy(name: &str, interface: &str, cgroups: &str) -> String {
    format!("[[policy]]\nname = \"{name}\"\ninterface = \"{interface}\"\ncgroups = [{cgroups}]\n")
}

/// A cgroup that is on the same uplink before and after a reload is on it all the while, whatever becomes of the policies'
/// names and of the cgroup around it.
fn never_unsteered_by_a_reload() -> Outcome {
    let outer_and_inner =
        |outer: &str, inner: &str| [policy("vpn", outer, "\"@\""), policy("direct", inner, "\"@/z*\"")].concat();
    let cases = [
        ("the outer one becomes exempt", policy("vpn", "a1", "\"@\""), outer_and_inner("none", "a1")),
        ("it is exempt no longer", outer_and_inner("none", "a1"), policy("vpn", "a1", "\"@\"")),
        (
            "two policies change their names",
            [policy("vpn", "a1", "\"@/z*\""), policy("direct", "none", "\"@\"")].concat(),
            [policy("direct", "a1", "\"@/z*\""), policy("vpn", "none", "\"@\"")].concat(),
        ),
    ];
    for (name, before, after) in cases {
        let bed = Bed::new("life-open")?;
        let _many = (0..100).map(|i| bed.cgroup.child(&format!("z{i}"))).collect::<anyhow::Result<Vec<_>>>()?;
        let inner = bed.cgroup.child("zz")?;
        let daemon = bed.daemon(&before)?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        let load = bed.load(&inner)?;
        for (round, config) in [&after, &before, &after, &before].into_iter().enumerate() {
            bed.write_config(config)?;
            wait_until("the reload", PATIENCE, || daemon.log().matches("reloaded").count() == round + 1)?;
        }
        let report = load.stop()?;
        spy.saw_nothing().context(name)?;
        check_report(&report).context(name)?;
        ensure!(report.errors.is_empty(), "{name}: an interruption: {report:?}");
    }
    Ok(())
}

fn a_reload_that_fails_is_made_up_for() -> Outcome {
    let bed = Bed::new("life-retry")?;
    let v = |interface: &str| policy("vpn", interface, "\"@/v*\"");
    let d = policy("direct", "none", "\"@/d*\"");
    let daemon = bed.daemon(&[v("a1"), d.clone()].concat())?;
    let lock = hold_lock(&bed)?;
    // The same policies in another order, so in other slots; and a cgroup that appears meanwhile.
    bed.write_config(&[d, v("a1")].concat())?;
    daemon.wait_for_log("did not finish within")?;
    let one = bed.cgroup.child("v1")?;
    drop(lock);
    daemon.wait_for_log("reloaded").or_else(|_| daemon.wait_for_log("steering"))?;
    wait_until("the cgroup to be attached", PATIENCE, || {
        bed.policy("vpn").is_ok_and(|policy| policy["cgroups"][0]["path"] == one.path())
    })?;
    bed.check_steered(&one, 1)
}

fn a_link_change_that_fails_is_made_up_for() -> Outcome {
    let mut bed = Bed::new("life-link")?;
    let daemon = bed.daemon(CONFIG)?;
    let lock = hold_lock(&bed)?;
    bed.net.remove_uplink(1)?;
    bed.net.create_uplink(1)?;
    daemon.wait_for_log("did not finish within")?;
    drop(lock);
    let index = bed.net.ifindex(1)?;
    wait_until("the uplink to be found", PATIENCE, || bed.policy("p").is_ok_and(|policy| policy["ifindex"] == index))?;
    bed.check_steered(&bed.cgroup, 1)
}

fn a_late_report_of_a_removal_detaches_nothing() -> Outcome {
    let bed = Bed::new("life-late")?;
    let daemon = bed.daemon(&policy("p", "a1", "\"@/one\""))?;
    daemon.freeze(&bed)?;
    for _ in 0..200 {
        bed.cgroup.child("one")?.remove()?;
    }
    let one = bed.cgroup.child("one")?;
    // Attached by hand while the daemon lags behind: what it hears of is the past.
    bed.succeed(&["attach", one.path(), "-i", "a1"])?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&one)?;
    daemon.signal(Signal::SIGCONT)?;
    daemon.wait_for_log("ready")?;
    let later = bed.cgroup.child("later")?;
    drop(later);
    bed.write_config(&policy("q", "a1", "\"@/one\""))?;
    daemon.wait_for_log("reloaded")?;
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_report(&report)
}

fn not_from_another_network_namespace() -> Outcome {
    let bed = Bed::new("life-netns")?;
    let daemon = bed.daemon(CONFIG)?;
    daemon.end(Signal::SIGKILL)?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let refused = steer_tests::output(&mut bed.steer_here(&["daemon", "--config", &config]))?;
    ensure!(refused.code == 1 && refused.stderr.contains("another network namespace"), "{refused:?}");
    bed.check_steered(&bed.cgroup, 1)
}

fn what_a_killed_off_leaves_is_no_obstacle() -> Outcome {
    let bed = Bed::new("life-off")?;
    for missing in ["maps/ATTACHMENTS", "maps/COUNTERS", "programs/sock_create"] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        fs::remove_file(bed.abi().join(missing))?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        bed.check_steered(&bed.cgroup, 1).context(missing)?;
        bed.succeed(&["detach", bed.cgroup.path()])?;
        bed.check_unsteered(Some(&bed.cgroup)).context(missing)?;
        bed.succeed(&["off"])?;
        ensure!(!bed.pins.exists(), "{missing}: something is left");
    }
    Ok(())
}
