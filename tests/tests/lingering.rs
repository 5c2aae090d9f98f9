//! Sockets that are open longer than their cgroup exists: the policy holds them until the kernel has released the cgroup.

use anyhow::ensure;
use steer_lab::{Capture, leaks, wait_until};
use steer_tests::{Bed, Held, Outcome, PATIENCE, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_connection_from_before_is_held_without_a_daemon", || a_connection_from_before_is_held(false)),
    ("a_connection_from_before_is_held_with_a_daemon", || a_connection_from_before_is_held(true)),
];

/// The ids of removed cgroups in `steer status`.
fn removed(bed: &Bed) -> anyhow::Result<Vec<u64>> {
    let status = bed.status()?;
    let cgroups = status["policies"].as_array().into_iter().flatten().filter_map(|policy| policy["cgroups"].as_array());
    Ok(cgroups.flatten().filter(|cgroup| cgroup["path"].is_null()).filter_map(|cgroup| cgroup["id"].as_u64()).collect())
}

/// Its process has ended, and its cgroup is removed. The kernel still sends its end.
fn a_connection_from_before_is_held(daemon: bool) -> Outcome {
    let bed = Bed::new(if daemon { "lingering-daemon" } else { "lingering" })?;
    let config = "[[policy]]\nname = \"other\"\ninterface = \"a1\"\ncgroups = [\"/no-such-cgroup\"]\n";
    let _daemon = if daemon { Some(bed.daemon(config)?) } else { None };
    // The kernel gives up after this many repetitions.
    bed.net.client.write_sysctl("net/ipv4/tcp_orphan_retries", "3")?;
    let cgroup = bed.cgroup.child("old")?;
    let mut command = bed.client(Some(&cgroup), User::Nobody)?;
    let port = bed.server.port().to_string();
    let mut client = Held::start(command.args(["--json", "--proto", "tcp", "--family", "v4", "--port", &port]))?;
    check_outcomes(&client.round()?, User::Nobody, 0)?;
    bed.succeed(&["attach", cgroup.path(), "-i", "a1"])?;
    let mut default = Capture::start(&bed.net.client, "a0")?;
    let stopped = || bed.sockets("a1", "stopped_egress");
    let before = stopped()?;
    drop(client);
    let id = cgroup.id()?;
    cgroup.remove()?;
    let other = bed.cgroup.child("other")?;
    // This removes leftovers.
    bed.succeed(&["attach", other.path(), "-i", "a1"])?;
    let found = removed(&bed)?;
    ensure!(found == [id], "{found:?}, not {id}");
    wait_until("its end to be stopped", PATIENCE, || stopped().is_ok_and(|now| now > before))?;
    wait_until("the kernel to release the cgroup", PATIENCE, || {
        let cleaned = daemon || bed.succeed(&["doctor", "--fix"]).is_ok();
        cleaned && removed(&bed).is_ok_and(|removed| removed.is_empty())
    })?;
    let packets = default.take()?;
    let left = leaks(&packets);
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
