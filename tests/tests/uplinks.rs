//! Uplinks that are missing, go, come back, and change their names: closed, never open.

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{Capture, leaks, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, Spy};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("missing_at_the_start", missing_at_the_start),
    ("deleted_and_made_again", deleted_and_made_again),
    ("by_an_alternative_name", by_an_alternative_name),
    ("down_and_up", down_and_up),
    ("two_hundred_times_under_load", two_hundred_times_under_load),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n";

/// Waits until the policy's uplink has this index; 0 for none.
fn wait_for_uplink(bed: &Bed, policy: &str, ifindex: u32) -> Outcome {
    wait_until(&format!("the uplink to have index {ifindex}"), PATIENCE, || {
        bed.policy(policy).is_ok_and(|policy| policy["ifindex"].as_u64().unwrap_or(0) == u64::from(ifindex))
    })?;
    Ok(())
}

fn missing_at_the_start() -> Outcome {
    let mut bed = Bed::new("uplink-missing")?;
    bed.net.remove_uplink(1)?;
    let _daemon = bed.daemon(CONFIG)?;
    bed.check_closed(&bed.cgroup)?;
    ensure!(bed.sockets("p", "closed_missing")? > 0 && bed.sockets("p", "bound")? == 0);
    ensure!(bed.succeed(&["status"])?.starts_with("1 policy is closed: a1 is missing\n"));
    ensure!(bed.get("/v1/status")?["policies"][0]["state"] == "missing");
    bed.net.create_uplink(1)?;
    wait_for_uplink(&bed, "p", bed.net.ifindex(1)?)?;
    bed.check_steered(&bed.cgroup, 1)
}

pub(crate) fn deleted_and_made_again() -> Outcome {
    let mut bed = Bed::new("uplink-again")?;
    let _daemon = bed.daemon(CONFIG)?;
    let before = bed.net.ifindex(1)?;
    bed.net.remove_uplink(1)?;
    // Closed whether or not the daemon has noticed yet, and when it has.
    bed.check_closed(&bed.cgroup)?;
    wait_for_uplink(&bed, "p", 0)?;
    bed.check_closed(&bed.cgroup)?;
    bed.net.create_uplink(1)?;
    let after = bed.net.ifindex(1)?;
    ensure!(before != after);
    wait_for_uplink(&bed, "p", after)?;
    bed.check_steered(&bed.cgroup, 1)
}

fn by_an_alternative_name() -> Outcome {
    let bed = Bed::new("uplink-alternative")?;
    let name = "the-second-line-of-the-house";
    let config = format!("[[policy]]\nname = \"p\"\ninterface = \"{name}\"\ncgroups = [\"@\"]\n");
    let _daemon = bed.daemon(&config)?;
    bed.check_closed(&bed.cgroup)?;
    bed.net.client.add_altname("a1", name)?;
    wait_for_uplink(&bed, "p", bed.net.ifindex(1)?)?;
    bed.check_steered(&bed.cgroup, 1)
}

fn down_and_up() -> Outcome {
    let mut bed = Bed::new("uplink-down")?;
    let _daemon = bed.daemon(CONFIG)?;
    bed.net.client.set_down("a1")?;
    bed.check_closed(&bed.cgroup)?;
    // Down and up again loses the routes; made afresh, they are there.
    bed.net.remove_uplink(1)?;
    bed.net.create_uplink(1)?;
    wait_for_uplink(&bed, "p", bed.net.ifindex(1)?)?;
    bed.check_steered(&bed.cgroup, 1)
}

fn two_hundred_times_under_load() -> Outcome {
    let mut bed = Bed::new("uplink-load")?;
    let daemon = bed.daemon(CONFIG)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&bed.cgroup)?;
    for round in 0..200 {
        bed.net.remove_uplink(1)?;
        if round % 4 == 0 {
            wait_for_uplink(&bed, "p", 0)?;
        }
        bed.net.create_uplink(1)?;
        let index = bed.net.ifindex(1)?;
        spy.allow(index)?;
        if round % 4 != 1 {
            wait_for_uplink(&bed, "p", index)?;
        }
    }
    // After the last one there must be traffic again.
    let mut uplink = Capture::start(&bed.net.client, "a1")?;
    wait_until("traffic on the new uplink", PATIENCE, || {
        uplink.take().is_ok_and(|packets| leaks(&packets).iter().any(|packet| packet.payload_len > 0))
    })?;
    spy.saw_nothing()?;
    let report = load.stop()?;
    spy.saw_nothing()?;
    ensure!(report.ok > 0 && !report.errors.is_empty(), "the load met no change: {report:?}");
    ensure!(!report.bound.contains_key(&0), "a socket was unbound: {report:?}");
    ensure!(
        report.locals.keys().all(|local| *local == steer_lab::client_v4(1) || *local == steer_lab::client_v6(1)),
        "{report:?}"
    );
    bed.check_steered(&bed.cgroup, 1).context("after the load")?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}
