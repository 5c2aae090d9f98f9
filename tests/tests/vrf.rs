//! Uplinks in a VRF, a VRF as uplink, and `ip vrf exec` beside, where the kernel has VRFs.

use std::ffi::OsString;

use anyhow::{Context as _, ensure};
use steer_lab::parse_outcomes;
use steer_tests::{Bed, Cgroup, Held, Outcome, Spy, User, VRF, check_outcomes, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_link_in_a_vrf", a_link_in_a_vrf),
    ("the_vrf_itself_steered", the_vrf_itself_steered),
    ("the_vrf_itself_is_closed_if_strict", the_vrf_itself_is_closed_if_strict),
    ("ip_vrf_exec_beside_a_policy", ip_vrf_exec_beside_a_policy),
    ("ip_vrf_exec_in_a_steered_cgroup", ip_vrf_exec_in_a_steered_cgroup),
    ("a_cgroup_of_ip_vrf_exec_is_not_taken_over", a_cgroup_of_ip_vrf_exec_is_not_taken_over),
];

/// Everything leaves only by the VRF's link.
fn check(bed: &Bed) -> Outcome {
    for user in [User::Root, User::Nobody] {
        let mut spy = Spy::on(bed, &["a1", VRF])?;
        let outcomes = bed.probe(Some(&bed.cgroup), user)?;
        spy.saw_nothing().with_context(|| format!("{user:?}"))?;
        check_outcomes(&outcomes, user, 1).with_context(|| format!("{user:?}"))?;
    }
    Ok(())
}

pub(crate) fn a_link_in_a_vrf() -> Outcome {
    let bed = Bed::with_vrf("vrf-link")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    check(&bed)
}

fn the_vrf_itself_steered() -> Outcome {
    let bed = Bed::with_vrf("vrf-steer")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", VRF, "--enforce", "steer"])?;
    check(&bed)
}

/// Its packets leave by a link in the VRF, which is not the uplink: they are stopped.
fn the_vrf_itself_is_closed_if_strict() -> Outcome {
    let bed = Bed::with_vrf("vrf-strict")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", VRF])?;
    let mut spy = Spy::on(&bed, &[VRF])?;
    let outcomes = bed.probe(Some(&bed.cgroup), User::Root)?;
    spy.saw_nothing()?;
    ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:?}");
    ensure!(bed.sockets(VRF, "stopped_egress")? > 0);
    Ok(())
}

fn program(bed: &Bed) -> anyhow::Result<OsString> {
    Ok(bed.client(None, User::Root)?.get_program().to_owned())
}

/// Checks that packets of a program started by `ip vrf exec` in this cgroup leave only by uplink `i`.
fn check_vrf_exec(bed: &Bed, cgroup: &Cgroup, i: u8) -> Outcome {
    let allowed = if i == 1 { ["a1", VRF] } else { [bed.net.link(i), "lo"] };
    let mut spy = Spy::on(bed, &allowed)?;
    let done = output(bed.vrf_exec(cgroup, User::Root)?.arg(program(bed)?).args(bed.everything()))?;
    spy.saw_nothing()?;
    check_outcomes(&parse_outcomes(&done.stdout).with_context(|| format!("{done:?}"))?, User::Root, i)
}

pub(crate) fn ip_vrf_exec_beside_a_policy() -> Outcome {
    let bed = Bed::with_vrf("vrf-beside")?;
    let (steered, by_ip) = (bed.cgroup.child("steered")?, bed.cgroup.child("by-ip")?);
    bed.succeed(&["attach", steered.path(), "-i", "a0"])?;
    check_vrf_exec(&bed, &by_ip, 1)?;
    bed.check_steered(&steered, 0)?;
    check_vrf_exec(&bed, &by_ip, 1)
}

/// `ip vrf exec` makes a cgroup below and binds its sockets to the VRF. The policy above runs after it and decides.
fn ip_vrf_exec_in_a_steered_cgroup() -> Outcome {
    let bed = Bed::with_vrf("vrf-inside")?;
    for enforce in ["steer", "strict"] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a0", "--enforce", enforce])?;
        check_vrf_exec(&bed, &bed.cgroup, 0).context(enforce)?;
    }
    Ok(())
}

/// The program of `ip vrf exec` forbids other programs: steer reports that, and the processes there stay in the VRF.
fn a_cgroup_of_ip_vrf_exec_is_not_taken_over() -> Outcome {
    let bed = Bed::with_vrf("vrf-taken")?;
    let mut command = bed.vrf_exec(&bed.cgroup, User::Root)?;
    let mut held = Held::start(command.arg(program(&bed)?).args(bed.everything()))?;
    check_outcomes(&held.round()?, User::Root, 1)?;
    let made = format!("{}/vrf/{VRF}", bed.cgroup.path());
    let refused = bed.run(&["attach", &made, "-i", "a0"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("ip vrf exec"), "{refused:?}");
    check_vrf_exec(&bed, &bed.cgroup, 1)
}
