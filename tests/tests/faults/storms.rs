//! More events than a reader can process in time.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::ensure;
use steer_lab::wait_until;
use steer_tests::{Bed, Outcome, PATIENCE, Spy, check_uninterrupted, strace, stride};

pub(super) fn lost_reports_of_links() -> Outcome {
    let mut bed = Bed::new("storm-lost")?;
    let target = bed.cgroup.child("target")?;
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/target\"]\n")?;
    let before = bed.net.ifindex(1)?;
    // The error with which netlink reports that it dropped messages replaces every third message.
    let mut tracer = Command::new(strace()?)
        .args(["-f", "-q", "-o", "/dev/null", "-e", "trace=recvfrom", "-e"])
        .args(["inject=recvfrom:error=ENOBUFS:when=2+3", "-p", &daemon.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = daemon.pid();
    let is_traced = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    };
    wait_until("the daemon to be traced", PATIENCE, is_traced)?;
    for _ in 0..5 {
        bed.net.remove_uplink(1)?;
        wait_until("the policy to be closed", PATIENCE, || {
            bed.policy("p").is_ok_and(|policy| policy["ifindex"].is_null())
        })?;
        bed.check_closed(&target)?;
        bed.net.create_uplink(1)?;
        let now = bed.net.ifindex(1)?;
        wait_until("the new index to be in force", PATIENCE, || {
            bed.policy("p").is_ok_and(|policy| policy["ifindex"] == now)
        })?;
    }
    ensure!(bed.net.ifindex(1)? != before);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(tracer.id())?), nix::sys::signal::Signal::SIGINT)?;
    tracer.wait()?;
    bed.check_steered(&target, 1)
}

pub(super) fn storm_of_link_events() -> Outcome {
    let mut bed = Bed::new("storm-links")?;
    let target = bed.cgroup.child("target")?;
    let mut daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/target\"]\n")?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&target)?;
    // Two events each; ten thousand with `--thorough`.
    for _ in 0..if stride(0) == 1 { 5_000 } else { 250 } {
        bed.net.client.rename_link("lo", "lo0")?;
        bed.net.client.rename_link("lo0", "lo")?;
    }
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()?;
    bed.net.remove_uplink(1)?;
    wait_until("the policy to be closed", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["ifindex"].is_null())
    })?;
    bed.net.create_uplink(1)?;
    let now = bed.net.ifindex(1)?;
    wait_until("the new index to be in force", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["ifindex"] == now)
    })?;
    ensure!(daemon.is_running(), "{}", daemon.log());
    bed.check_steered(&target, 1)
}

pub(super) fn storm_of_cgroups() -> Outcome {
    let bed = Bed::new("storm-cgroups")?;
    let (kept, churn) = (bed.cgroup.child("kept")?, bed.cgroup.child("churn")?);
    let mut daemon =
        bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/kept\", \"@/churn/*\"]\n")?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&kept)?;
    // As fast as possible.
    for number in 0..if stride(0) == 1 { 60_000 } else { 1_000 } {
        let cgroup = churn.directory().join(format!("c{number}"));
        fs::create_dir(&cgroup)?;
        fs::remove_dir(&cgroup)?;
    }
    // When a cgroup that stays is steered, the daemon has processed all cgroups before it.
    let last = churn.child("last")?;
    wait_until("the last cgroup to be attached", PATIENCE, || {
        let cgroups = bed.policy("p").map(|policy| policy["cgroups"].clone()).unwrap_or_default();
        cgroups.as_array().is_some_and(|all| all.iter().any(|cgroup| cgroup["path"] == last.path()))
    })?;
    wait_until("all leftovers of the others to be removed", PATIENCE, || {
        bed.policy("p").is_ok_and(|policy| policy["cgroups"].as_array().is_some_and(|all| all.len() == 2))
    })?;
    check_uninterrupted(&load.stop()?)?;
    spy.saw_nothing()?;
    ensure!(daemon.is_running(), "{}", daemon.log());
    bed.check_steered(&last, 1)
}
