//! `steer daemon` and its configuration.

use std::{fs, os::unix::fs::symlink};

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_lab::wait_until;
use steer_tests::{Bed, Cgroup, Daemon, Outcome, PATIENCE};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_cgroup_that_appears_later", a_cgroup_that_appears_later),
    ("a_tree_that_appears_at_once", a_tree_that_appears_at_once),
    ("reload", reload),
    ("reload_of_a_mounted_config_map", reload_of_a_mounted_config_map),
    ("a_bad_reload_changes_nothing", a_bad_reload_changes_nothing),
    ("a_second_daemon_is_refused", a_second_daemon_is_refused),
    ("status_with_and_without_it", status_with_and_without_it),
    ("the_kernel_log", the_kernel_log),
    ("a_parent_is_closed_where_nobody_has_attached", a_parent_is_closed_where_nobody_has_attached),
];

const ONE: &str = "[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = [\"@/one\"]\n";

fn wait_until_steered(bed: &Bed, policy: &str, cgroups: usize) -> Outcome {
    wait_until("the cgroup to be attached", PATIENCE, || {
        bed.policy(policy).is_ok_and(|policy| policy["cgroups"].as_array().map_or(0, Vec::len) == cgroups)
    })?;
    Ok(())
}

fn a_cgroup_that_appears_later() -> Outcome {
    let bed = Bed::new("daemon-later")?;
    let _daemon = bed.daemon(
        "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/**/app-*firefox*.scope\", \"@/x/y\"]\n",
    )?;
    let slice = bed.cgroup.child("user.slice")?;
    let scope = slice.child("app-firefox-1.scope")?;
    wait_until_steered(&bed, "p", 1)?;
    bed.check_steered(&scope, 1)?;
    bed.check_unsteered(Some(&slice))?;
    let other = slice.child("app-chrome-1.scope")?;
    let x = bed.cgroup.child("x")?;
    let y = x.child("y")?;
    wait_until_steered(&bed, "p", 2)?;
    bed.check_steered(&y, 1)?;
    bed.check_unsteered(Some(&other))
}

fn a_parent_is_closed_where_nobody_has_attached() -> Outcome {
    let bed = Bed::new("daemon-parent")?;
    let slice = bed.cgroup.child("slice")?;
    let (service, free, other) = (slice.child("x.service")?, slice.child("free")?, slice.child("other")?);
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/slice/x.service\"]\nparent = \"@/slice\"\n\
                  [[policy]]\nname = \"free\"\ninterface = \"none\"\ncgroups = [\"@/slice/free\"]\n";
    let daemon = bed.daemon(config)?;
    let check = |service: &Cgroup| {
        bed.check_steered(service, 1)?;
        bed.check_unsteered(Some(&free))?;
        bed.check_closed(&other)
    };
    check(&service)?;
    daemon.end(Signal::SIGKILL)?;
    service.remove()?;
    let service = slice.child("x.service")?;
    bed.check_closed(&service)?;
    let file = bed.config_file().display().to_string();
    let said = bed.succeed(&["explain", service.path(), "--config", &file])?;
    ensure!(said.contains("because `parent` holds"), "{said}");
    let daemon = Daemon::start(&bed)?;
    check(&service)?;
    bed.write_config(&config.replace("parent = \"@/slice\"\n", ""))?;
    daemon.wait_for_log("reloaded")?;
    bed.check_steered(&service, 1)?;
    bed.check_unsteered(Some(&other))
}

fn a_tree_that_appears_at_once() -> Outcome {
    let bed = Bed::new("daemon-tree")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/*/*/leaf\"]\n")?;
    let mut leaves = Vec::new();
    for i in 0..20 {
        let tree = bed.cgroup.child(&format!("tree-{i}"))?;
        let branch = tree.child("branch")?;
        let leaf = branch.child("leaf")?;
        leaves.push((leaf, branch, tree));
    }
    wait_until_steered(&bed, "p", 20)?;
    bed.check_steered(&leaves[13].0, 1)
}

fn reload() -> Outcome {
    let bed = Bed::new("daemon-reload")?;
    let (one, two) = (bed.cgroup.child("one")?, bed.cgroup.child("two")?);
    let daemon = bed.daemon(ONE)?;
    bed.check_steered(&one, 1)?;
    // By writing the file: another uplink for the one, a policy for the other.
    bed.write_config(
        "[[policy]]\nname = \"second\"\ninterface = \"a0\"\ncgroups = [\"@/one\"]\n\
         [[policy]]\nname = \"new\"\ninterface = \"a1\"\ncgroups = [\"@/two\"]\n",
    )?;
    wait_until_steered(&bed, "new", 1)?;
    bed.check_steered(&one, 0)?;
    bed.check_steered(&two, 1)?;
    // By replacing the file, as editors do, and SIGHUP.
    let next = bed.directory.join("next.toml");
    fs::write(
        &next,
        "[[policy]]\nname = \"new\"\ninterface = \"none\"\ncgroups = [\"@TWO\"]\n".replace("@TWO", two.path()),
    )?;
    fs::rename(&next, bed.config_file())?;
    daemon.signal(Signal::SIGHUP)?;
    wait_until("the first policy to be gone", PATIENCE, || bed.policy("second").is_err())?;
    bed.check_unsteered(Some(&one))?;
    bed.check_unsteered(Some(&two))?;
    ensure!(bed.sockets("new", "left_exempt")? > 0);
    Ok(())
}

/// Kubernetes replaces a link in the midst of the file's path; nothing happens in the directory of the file itself.
fn reload_of_a_mounted_config_map() -> Outcome {
    let bed = Bed::new("daemon-map")?;
    let one = bed.cgroup.child("one")?;
    let link = |to: &str, name: &str| symlink(to, bed.directory.join(name));
    fs::create_dir(bed.directory.join("..first"))?;
    fs::create_dir(bed.directory.join("..second"))?;
    link("..second", "..data")?;
    link("..data/steer.toml", "steer.toml")?;
    bed.write_config("[[policy]]\nname = \"new\"\ninterface = \"a0\"\ncgroups = [\"@/one\"]\n")?;
    link("..first", "..tmp")?;
    fs::rename(bed.directory.join("..tmp"), bed.directory.join("..data"))?;
    let _daemon = bed.daemon(ONE)?;
    bed.check_steered(&one, 1)?;
    link("..second", "..tmp")?;
    fs::rename(bed.directory.join("..tmp"), bed.directory.join("..data"))?;
    wait_until_steered(&bed, "new", 1)?;
    bed.check_steered(&one, 0)
}

fn a_bad_reload_changes_nothing() -> Outcome {
    let bed = Bed::new("daemon-bad")?;
    let one = bed.cgroup.child("one")?;
    let daemon = bed.daemon(ONE)?;
    let bad = [
        ("[[policy]]\nname = \"second\"\ninterface = 3\nfoo = 1\ncgroups = [\"/**\"]\n", "steer.toml:3:13"),
        ("[[policy", "steer.toml:1:9"),
        // Valid, but more likely cut off than meant.
        ("", "has no policy"),
    ];
    for (bad, complaint) in bad {
        bed.write_config(bad)?;
        daemon.wait_for_log(complaint)?;
        bed.check_steered(&one, 1)?;
        let (status, wrong) = (bed.succeed(&["status"])?, if bad.is_empty() { complaint } else { "has mistakes" });
        let verdict = status.lines().next().unwrap_or_default();
        ensure!(verdict.starts_with("1 policy in force; ") && verdict.contains(wrong), "{status}");
        ensure!(status.contains(complaint), "{status}");
        let examined = bed.doctor_text(&[])?.stdout;
        ensure!(!examined.contains("\\n") && examined.contains(complaint), "{examined}");
    }
    ensure!(daemon.log().matches("the previous policies stay in force").count() == bad.len(), "{}", daemon.log());
    // A file that is gone is a bad one.
    fs::remove_file(bed.config_file())?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_log("No such file")?;
    bed.check_steered(&one, 1)?;
    let verdict = bed.status()?["verdict"].as_str().unwrap_or_default().to_owned();
    ensure!(verdict.ends_with("steer.toml does not exist, and the previous policies stay in force"), "{verdict}");
    Ok(())
}

fn a_second_daemon_is_refused() -> Outcome {
    let bed = Bed::new("daemon-second")?;
    let one = bed.cgroup.child("one")?;
    let mut daemon = bed.daemon(ONE)?;
    let second = bed.run(&["daemon", "--config", &bed.config_file().to_string_lossy()])?;
    ensure!(
        second.code == 1
            && second.stderr.contains("another steer daemon (PID ")
            && !second.stderr.contains("/proc/self"),
        "{second:?}"
    );
    ensure!(daemon.is_running());
    bed.check_steered(&one, 1)?;
    drop(daemon);
    // Its place is free as soon as it is dead.
    let third = Daemon::start(&bed)?;
    bed.check_steered(&one, 1)?;
    ensure!(third.end(Signal::SIGINT)? == Some(0));
    Ok(())
}

fn status_with_and_without_it() -> Outcome {
    let bed = Bed::new("daemon-status")?;
    let one = bed.cgroup.child("one")?;
    let daemon = bed.daemon(ONE)?;
    let mut with = bed.status()?;
    ensure!(with["daemon"] == true);
    ensure!(
        with["policies"][0]["origin"] == "config" && with["policies"][0]["cgroups"][0]["path"] == one.path(),
        "{with}"
    );
    daemon.end(Signal::SIGKILL)?;
    let without = bed.status()?;
    with["daemon"] = false.into();
    let verdict = without["verdict"].as_str().unwrap_or_default();
    ensure!(verdict.contains("no daemon"), "{verdict}");
    with["verdict"] = verdict.into();
    ensure!(with == without, "{with}\n{without}");
    Ok(())
}

fn the_kernel_log() -> Outcome {
    let bed = Bed::new("daemon-log")?;
    let one = bed.cgroup.child("one")?;
    let silent = bed.daemon(ONE)?;
    bed.check_steered(&one, 1)?;
    ensure!(!silent.log().contains("bound to ifindex"), "the programs log without being asked to");
    silent.end(Signal::SIGTERM)?;
    let logging = Daemon::start_with(&bed, &["--kernel-log", "trace"])?;
    bed.check_steered(&one, 1)?;
    logging.wait_for_log(&format!("bound to ifindex {}", bed.net.ifindex(1)?))
}
