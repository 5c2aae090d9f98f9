//! Sockets that are open longer than their cgroup exists: the policy holds them until the kernel has released the cgroup.

use anyhow::ensure;
use steer_lab::{Capture, leaks, wait_until};
use steer_tests::{Bed, Held, Outcome, PATIENCE, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_connection_from_before_is_held_without_a_daemon", || a_connection_from_before_is_held(false)),
    ("a_connection_from_before_is_held_with_a_daemon", || a_connection_from_before_is_held(true)),
    ("off_says_that_it_releases_them", off_says_that_it_releases_them),
];

/// The ids of removed cgroups in `steer status`.
fn removed(bed: &Bed) -> anyhow::Result<Vec<u64>> {
    let status = bed.status()?;
    let cgroups = status["policies"].as_array().into_iter().flatten().filter_map(|policy| policy["cgroups"].as_array());
    Ok(cgroups.flatten().filter(|cgroup| cgroup["path"].is_null()).filter_map(|cgroup| cgroup["id"].as_u64()).collect())
}

/// A connection by the default route, of a cgroup that is steered then and removed. The kernel still sends its end.
/// Returns the id of the cgroup, a capture on the default route, and how many packets had been stopped before.
fn leave_a_connection(bed: &Bed) -> anyhow::Result<(u64, Capture, u64)> {
    // The kernel gives up after this many repetitions.
    bed.net.client.write_sysctl("net/ipv4/tcp_orphan_retries", "3")?;
    let cgroup = bed.cgroup.child("old")?;
    let mut command = bed.client(Some(&cgroup), User::Nobody)?;
    let port = bed.server.port().to_string();
    let mut client = Held::start(command.args(["--json", "--proto", "tcp", "--family", "v4", "--port", &port]))?;
    check_outcomes(&client.round()?, User::Nobody, 0)?;
    bed.succeed(&["attach", cgroup.path(), "-i", "a1"])?;
    let default = Capture::start(&bed.net.client, "a0")?;
    let before = bed.sockets("a1", "stopped_egress")?;
    drop(client);
    let id = cgroup.id()?;
    cgroup.remove()?;
    Ok((id, default, before))
}

/// No program can be attached to a removed cgroup, so no daemon steers them again.
fn off_says_that_it_releases_them() -> Outcome {
    let bed = Bed::new("lingering-off")?;
    leave_a_connection(&bed)?;
    let said = bed.succeed(&["off"])?;
    ensure!(said.contains("no longer steered:\n  sockets of 1 removed cgroups"), "{said}");
    let again = bed.succeed(&["off"])?;
    ensure!(!again.contains("removed cgroups"), "{again}");
    Ok(())
}

/// Its process has ended, and its cgroup is removed. The kernel still sends its end.
fn a_connection_from_before_is_held(daemon: bool) -> Outcome {
    let bed = Bed::new(if daemon { "lingering-daemon" } else { "lingering" })?;
    let config = "[[policy]]\nname = \"other\"\ninterface = \"a1\"\ncgroups = [\"/no-such-cgroup\"]\n";
    let _daemon = if daemon { Some(bed.daemon(config)?) } else { None };
    let (id, mut default, before) = leave_a_connection(&bed)?;
    let stopped = || bed.sockets("a1", "stopped_egress");
    let other = bed.cgroup.child("other")?;
    // This removes leftovers.
    bed.succeed(&["attach", other.path(), "-i", "a1"])?;
    let found = removed(&bed)?;
    ensure!(found == [id], "{found:?}, not {id}");
    wait_until("its end to be stopped", PATIENCE, || stopped().is_ok_and(|now| now > before))?;
    wait_until("the kernel to release the cgroup", PATIENCE, || {
        // It may find something else on this machine, such as networkd.
        let cleaned = daemon || bed.run(&["doctor", "--fix"]).is_ok();
        cleaned && removed(&bed).is_ok_and(|removed| removed.is_empty())
    })?;
    let packets = default.take()?;
    let left = leaks(&packets);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
