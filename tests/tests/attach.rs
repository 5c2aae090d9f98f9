//! `steer attach`, `detach`, `status` and `off`.

use std::{fs, process::Child};

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_lab::wait_until;
use steer_tests::{Bed, Cgroup, Daemon, Outcome, PATIENCE, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("attach_and_detach", attach_and_detach),
    ("doing_it_twice_is_no_error", doing_it_twice_is_no_error),
    ("by_its_directory", by_its_directory),
    ("counters_tell_what_happened", counters_tell_what_happened),
    ("other_network_namespaces", other_network_namespaces),
    ("off_removes_everything", off_removes_everything),
    ("off_ends_the_daemon", off_ends_the_daemon),
    ("a_daemon_steers_again_what_off_has_released", a_daemon_steers_again_what_off_has_released),
    ("what_a_glob_names_inside_is_attached_first", what_a_glob_names_inside_is_attached_first),
    ("a_pin_directory_of_its_own_mount", a_pin_directory_of_its_own_mount),
];

fn attach_and_detach() -> Outcome {
    let bed = Bed::new("attach")?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "--interface", "a1"])?;
    bed.check_steered(&bed.cgroup, 1)?;
    bed.check_steered(&inner, 1)?;
    bed.check_unsteered(None)?;
    bed.succeed(&["detach", bed.cgroup.path()])?;
    bed.check_unsteered(Some(&bed.cgroup))?;
    ensure!(!bed.pins.exists(), "something is left");
    Ok(())
}

fn doing_it_twice_is_no_error() -> Outcome {
    let bed = Bed::new("attach-twice")?;
    for _ in 0..2 {
        bed.succeed(&["attach", bed.cgroup.path(), "--interface", "a1"])?;
    }
    bed.check_steered(&bed.cgroup, 1)?;
    for _ in 0..2 {
        bed.succeed(&["detach", bed.cgroup.path()])?;
        bed.succeed(&["off"])?;
    }
    bed.check_unsteered(Some(&bed.cgroup))
}

fn by_its_directory() -> Outcome {
    let bed = Bed::new("attach-directory")?;
    bed.net.client.add_altname("a1", "a-name-that-is-longer-than-fifteen-bytes")?;
    let directory = bed.cgroup.directory().to_string_lossy().into_owned();
    bed.succeed(&["attach", &directory, "--interface", "a-name-that-is-longer-than-fifteen-bytes"])?;
    bed.check_steered(&bed.cgroup, 1)
}

fn counters_tell_what_happened() -> Outcome {
    let mut bed = Bed::new("attach-count")?;
    bed.succeed(&["attach", bed.cgroup.path(), "--interface", "a1"])?;
    ensure!(bed.sockets("a1", "bound")? == 0);
    bed.check_steered(&bed.cgroup, 1)?;
    // Eight sockets as root, and six without the privilege for raw ones, which fail before the program runs or after.
    let bound = bed.sockets("a1", "bound")?;
    ensure!((14..=16).contains(&bound), "{bound} bound");
    ensure!(bed.sockets("a1", "closed_missing")? == 0);
    let policy = bed.policy("a1")?;
    ensure!(policy["ifindex"] == bed.net.ifindex(1)?, "{policy}");
    ensure!(policy["origin"] == "manual" && policy["cgroups"][0]["path"] == bed.cgroup.path(), "{policy}");
    let text = bed.succeed(&["status"])?;
    ensure!(text.contains(bed.cgroup.path()) && text.contains("daemon: not running"), "{text}");
    // Without a daemon nobody follows the interface: closed, even when it is there again.
    bed.net.remove_uplink(1)?;
    bed.check_closed(&bed.cgroup)?;
    bed.net.create_uplink(1)?;
    bed.check_closed(&bed.cgroup)
}

fn other_network_namespaces() -> Outcome {
    let bed = Bed::new("attach-netns")?;
    // The policy belongs to another namespace than the client's, in which its index may be any interface or none.
    let elsewhere = steer_lab::Netns::new("elsewhere")?;
    elsewhere.add_tun("t0").map(std::mem::forget)?;
    for (other_netns, refused) in [("leave", false), ("refuse", true)] {
        let mut command = bed.steer_here(&["attach", bed.cgroup.path(), "-i", "t0", "--other-netns", other_netns]);
        let attached = output(elsewhere.enter(&mut command))?;
        ensure!(attached.code == 0, "{attached:?}");
        if refused {
            bed.check_closed(&bed.cgroup)?;
            ensure!(bed.sockets("t0", "refused_netns")? > 0);
        } else {
            bed.check_unsteered(Some(&bed.cgroup))?;
            ensure!(bed.sockets("t0", "left_netns")? > 0);
        }
        ensure!(bed.sockets("t0", "bound")? == 0);
    }
    Ok(())
}

fn off_removes_everything() -> Outcome {
    let bed = Bed::new("off")?;
    let other = bed.cgroup.child("other")?;
    bed.succeed(&["attach", bed.cgroup.path(), "--interface", "a1"])?;
    bed.succeed(&["attach", other.path(), "--interface", "a0"])?;
    let said = bed.succeed(&["off"])?;
    for expected in [format!("  {} (a1)\n", bed.cgroup.path()), format!("  {} (a0)\n", other.path())] {
        ensure!(said.contains(&expected), "{said}");
    }
    ensure!(said.contains("The next daemon steers 2 of them again") && said.lines().count() == 4, "{said}");
    ensure!(!bed.pins.exists(), "something is left");
    bed.check_unsteered(Some(&bed.cgroup))?;
    ensure!(bed.succeed(&["off", "--forget"])?.contains("nothing was steered"));
    ensure!(bed.succeed(&["status"])?.contains("nothing is steered"));
    Ok(())
}

fn a_daemon_steers_again_what_off_has_released() -> Outcome {
    let bed = Bed::new("off-released")?;
    let other = bed.cgroup.child("other")?;
    for (cgroup, link) in [(&bed.cgroup, "a1"), (&other, "a0")] {
        bed.succeed(&["attach", cgroup.path(), "--interface", link])?;
    }
    let said = bed.succeed(&["off"])?;
    ensure!(
        said.contains(&format!("{} (a1)", bed.cgroup.path())) && said.contains("The next daemon steers 2"),
        "{said}"
    );
    // It can be repeated, and keeps what it has released before.
    bed.succeed(&["off"])?;
    let says_so = |cgroup: &Cgroup| -> anyhow::Result<bool> {
        let (status, begin) = (bed.succeed(&["status"])?, format!("warning: {}, policy ", cgroup.path()));
        let line = status.lines().find(|line| line.starts_with(&begin));
        Ok(line.is_some_and(|line| line.contains("is not steered since `steer off`"))
            && status.contains(" not steered since "))
    };
    ensure!(says_so(&bed.cgroup)? && says_so(&other)?);
    let doctor = bed.run(&["doctor"])?;
    ensure!(doctor.code == 1 && doctor.stdout.contains("has released it from policy a1"), "{doctor:?}");
    bed.succeed(&["detach", other.path()])?;
    ensure!(says_so(&bed.cgroup)? && !says_so(&other)?);
    let daemon = bed.daemon("")?;
    bed.check_steered(&bed.cgroup, 1)?;
    bed.check_steered(&other, 1)?;
    ensure!(!says_so(&bed.cgroup)?);
    bed.succeed(&["off", "--forget"])?;
    ensure!(daemon.wait()? == Some(0));
    ensure!(!says_so(&bed.cgroup)?);
    let _daemon = Daemon::start(&bed)?;
    bed.check_unsteered(Some(&bed.cgroup))
}

/// A glob names the inner cgroup, and the attachment around holds it. An attachment in between must not do so for a moment.
fn what_a_glob_names_inside_is_attached_first() -> Outcome {
    let bed = Bed::new("attach-inside")?;
    let middle = bed.cgroup.child("middle")?;
    let inner = middle.child("inner")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/**\"]\n")?;
    daemon.freeze(&bed)?;
    let mut attach = bed.steer(&["attach", middle.path(), "--interface", "a0"]).spawn()?;
    let announced = || {
        let entries = fs::read_dir(bed.pins.join("daemon")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("inside_"))
    };
    let has_ended = |attach: &mut Child| attach.try_wait().is_ok_and(|status| status.is_some());
    wait_until("attach to wait, or to be done", PATIENCE, || announced() || has_ended(&mut attach))?;
    ensure!(!has_ended(&mut attach), "it has not waited");
    daemon.signal(Signal::SIGCONT)?;
    ensure!(attach.wait()?.success());
    // Without a word from the daemon, which has nothing more to do.
    daemon.freeze(&bed)?;
    bed.check_steered(&inner, 1)?;
    bed.check_steered(&middle, 0)?;
    ensure!(!announced());
    Ok(())
}

fn off_ends_the_daemon() -> Outcome {
    let bed = Bed::new("off-daemon")?;
    let mut daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n")?;
    // It waits until the daemon has ended, so that another one can start at once.
    for _ in 0..5 {
        bed.check_steered(&bed.cgroup, 1)?;
        bed.succeed(&["off"])?;
        ensure!(!daemon.is_running());
        ensure!(!bed.pins.exists(), "the daemon made its pins again");
        ensure!(daemon.wait()? == Some(0));
        bed.check_unsteered(Some(&bed.cgroup))?;
        daemon = Daemon::start(&bed)?;
    }
    daemon.freeze(&bed)?;
    let hangs = bed.run(&["off"])?;
    let said = format!("the daemon (PID {}) was switched off, but did not end within", daemon.pid());
    ensure!(hangs.code == 1 && hangs.stderr.contains(&said), "{hangs:?}");
    bed.check_unsteered(Some(&bed.cgroup))?;
    daemon.signal(Signal::SIGCONT)?;
    ensure!(daemon.wait()? == Some(0));
    Ok(())
}

fn a_pin_directory_of_its_own_mount() -> Outcome {
    let bed = Bed::new("attach-mount")?;
    let pins = bed.directory.join("bpf").to_string_lossy().into_owned();
    let steer = |arguments: &[&str]| {
        let mut command = std::process::Command::new(steer_tests::binary("STEER_BIN", "steer"));
        command.args(["--bpffs", &pins]).args(arguments);
        output(bed.net.client.enter(&mut command))
    };
    let attached = steer(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    ensure!(attached.code == 0, "{attached:?}");
    bed.check_steered(&bed.cgroup, 1)?;
    let off = steer(&["off", "--forget"])?;
    ensure!(off.code == 0 && off.stderr.is_empty(), "{off:?}");
    ensure!(!std::path::Path::new(&pins).exists(), "the mount is left");
    // What is not empty is not covered by a mount.
    std::fs::create_dir_all(format!("{pins}/something"))?;
    let refused = steer(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("not empty"), "{refused:?}");
    Ok(())
}
