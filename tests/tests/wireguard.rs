//! A WireGuard interface as uplink, where the kernel has WireGuard: the kill switch.

use anyhow::ensure;
use steer_lab::wait_until;
use steer_tests::{Bed, Outcome, PATIENCE, Spy, TUNNEL, Tunnel, USERS, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("by_the_tunnel_only", by_the_tunnel_only),
    ("removed_and_made_again_under_load", removed_and_made_again_under_load),
];

const CONFIG: &str = "[[policy]]\nname = \"vpn\"\ninterface = \"wg0\"\ncgroups = [\"@\"]\n";

/// The tunnel's own packets leave by `a1`, so only `a0` is captured, which has the default route.
fn spy(bed: &Bed) -> anyhow::Result<Spy> {
    Spy::on(bed, &[Tunnel::LINK, "a1"])
}

fn check(bed: &Bed) -> Outcome {
    for user in USERS {
        let mut spy = spy(bed)?;
        let outcomes = bed.probe(Some(&bed.cgroup), user)?;
        spy.saw_nothing()?;
        check_outcomes(&outcomes, user, TUNNEL)?;
    }
    Ok(())
}

pub(crate) fn by_the_tunnel_only() -> Outcome {
    let bed = Bed::new("wg-only")?;
    let _tunnel = Tunnel::new(&bed)?;
    bed.check_unsteered(Some(&bed.cgroup))?;
    for level in ["steer", "strict"] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", Tunnel::LINK, "--enforce", level])?;
        check(&bed)?;
    }
    Ok(())
}

pub(crate) fn removed_and_made_again_under_load() -> Outcome {
    let bed = Bed::new("wg-again")?;
    let tunnel = Tunnel::new(&bed)?;
    let _daemon = bed.daemon(CONFIG)?;
    let mut watched = spy(&bed)?;
    let load = bed.load(&bed.cgroup)?;
    for _ in 0..3 {
        tunnel.tear_down()?;
        // It is closed before and after the daemon has noticed.
        let outcomes = bed.probe(Some(&bed.cgroup), User::Root)?;
        ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:?}");
        wait_until("the daemon to miss the tunnel", PATIENCE, || {
            bed.policy("vpn").is_ok_and(|policy| policy["ifindex"].is_null())
        })?;
        bed.check_closed(&bed.cgroup)?;
        tunnel.create()?;
        let index = bed.net.client.ifindex(Tunnel::LINK)?;
        watched.allow(index)?;
        wait_until("the daemon to follow the new tunnel", PATIENCE, || {
            bed.policy("vpn").is_ok_and(|policy| policy["ifindex"] == index)
        })?;
        check(&bed)?;
    }
    watched.saw_nothing()?;
    let report = load.stop()?;
    watched.saw_nothing()?;
    ensure!(report.ok > 0 && !report.errors.is_empty(), "the load met no change: {report:?}");
    Ok(())
}
