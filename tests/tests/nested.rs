//! Policies in policies, beside programs of others, and what is counted. Which one wins is in `model`.

use std::{net::IpAddr, process::Command};

use anyhow::{Context as _, ensure};
use steer_lab::{Probe, Proto, client_v4, client_v6};
use steer_tests::{Bed, Cgroup, Held, Outcome, Served, Spy, USERS, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("somebody_elses_program_does_not_win", somebody_elses_program_does_not_win),
    ("counted_where_it_was_decided", counted_where_it_was_decided),
    ("an_inner_policy_decides_about_old_sockets", an_inner_policy_decides_about_old_sockets),
    ("an_inner_guard_holds_old_sockets", an_inner_guard_holds_old_sockets),
    ("the_nearest_of_three_decides_about_old_sockets", the_nearest_of_three_decides_about_old_sockets),
    ("inner_programs_follow_the_outer_policy", inner_programs_follow_the_outer_policy),
];

fn attach(bed: &Bed, cgroup: &Cgroup, interface: &str) -> Outcome {
    bed.succeed(&["attach", cgroup.path(), "--interface", interface]).map(drop)
}

fn somebody_elses_program_does_not_win() -> Outcome {
    let bed = Bed::new("nested-foreign")?;
    attach(&bed, &bed.cgroup, "a1")?;
    // A program below ours, attached later, in the way that allows no other on its own cgroup.
    let inner = bed.cgroup.child("inner")?;
    steer_tests::exclusive_program(&inner, "foreign")?;
    bed.check_steered(&inner, 1)
}

fn counted_where_it_was_decided() -> Outcome {
    let bed = Bed::new("nested-count")?;
    let inner = bed.cgroup.child("inner")?;
    attach(&bed, &bed.cgroup, "a1")?;
    attach(&bed, &inner, "none")?;
    bed.check_unsteered(Some(&inner))?;
    let (exempt, left) = (bed.sockets("none", "left_exempt")?, bed.sockets("a1", "left_nested")?);
    ensure!(exempt == left && exempt > 0, "{exempt} exempted by the inner policy, {left} left to it by the outer");
    ensure!(bed.sockets("a1", "bound")? == 0);
    Ok(())
}

/// Of each kind that can be there before a policy, one of each family.
const KINDS: [&str; 6] = ["--proto", "tcp", "--proto", "udp", "--proto", "udp-unconnected"];

fn client(bed: &Bed, cgroup: &Cgroup, user: User, kinds: &[&str]) -> anyhow::Result<Command> {
    let mut command = bed.client(Some(cgroup), user)?;
    command.args(kinds).args(["--timeout-ms", "2000", "--port", &bed.server.port().to_string()]);
    Ok(command)
}

/// A server in the client's namespace answers at its address on uplink `i`, by TCP and UDP.
fn visit(bed: &Bed, served: &Served, i: u8) -> Outcome {
    for proto in [Proto::Tcp, Proto::Udp] {
        for target in [IpAddr::V4(client_v4(i)), IpAddr::V6(client_v6(i))] {
            let probe = Probe::new(proto, target, served.port());
            let outcome = bed.net.server.run(move || probe.run())?;
            ensure!(outcome.is_ok(), "{outcome:?}");
        }
    }
    Ok(())
}

/// Sockets that no inner program has seen when they were made: older ones, those that the kernel makes for others.
fn an_inner_policy_decides_about_old_sockets() -> Outcome {
    for inner_policy in [["a0", "--enforce", "steer"], ["none", "--enforce", "steer"]] {
        for user in USERS {
            let bed = Bed::new("nested-old")?;
            let inner = bed.cgroup.child("inner")?;
            let mut held = Held::start(&mut client(&bed, &inner, user, &KINDS)?)?;
            check_outcomes(&held.round()?, user, 0)?;
            let old = Served::start(&mut bed.client(Some(&inner), user)?)?;
            visit(&bed, &old, 0)?;
            bed.succeed(&[&["attach", inner.path(), "-i"][..], &inner_policy].concat())?;
            bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;

            let mut spy = Spy::on(&bed, &["a0"])?;
            let new = Served::start(&mut bed.client(Some(&inner), user)?)?;
            let mut check = || {
                // The same sockets: one that failed would be an error here.
                check_outcomes(&held.round()?, user, 0).context("old sockets")?;
                visit(&bed, &old, 0).context("an old server")?;
                visit(&bed, &new, 0).context("a new server")?;
                let mut mptcp = Held::start(&mut client(&bed, &inner, user, &["--proto", "mptcp"])?)?;
                let mut outcomes = mptcp.round()?;
                // Not every kernel has it; and one that only binds does not reach its subflows.
                outcomes.retain(|outcome| outcome.error.as_deref() != Some("EPROTONOSUPPORT"));
                check_outcomes(&outcomes, user, 0).context("MPTCP")
            };
            let case = || format!("{inner_policy:?} as {user:?}");
            check().with_context(case)?;
            spy.saw_nothing().with_context(case)?;
            ensure!(bed.sockets("a1", "stopped_egress")? == 0);
            bed.check_steered(&bed.cgroup, 1)?;
        }
    }
    Ok(())
}

/// The other way round: what a policy inside holds, one that exempts around it does not let out.
fn an_inner_guard_holds_old_sockets() -> Outcome {
    for user in USERS {
        let bed = Bed::new("nested-held")?;
        let inner = bed.cgroup.child("inner")?;
        let mut held = Held::start(&mut client(&bed, &inner, user, &KINDS)?)?;
        check_outcomes(&held.round()?, user, 0)?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "none"])?;
        bed.succeed(&["attach", inner.path(), "-i", "a1"])?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        ensure!(held.round()?.iter().all(|outcome| !outcome.is_ok()));
        spy.saw_nothing()?;
        check_outcomes(&held.round()?, user, 1)?;
        spy.saw_nothing()?;
    }
    Ok(())
}

/// A note of one that is nested itself does not keep one inside it from deciding, whatever else is inside that.
fn the_nearest_of_three_decides_about_old_sockets() -> Outcome {
    let bed = Bed::new("nested-note")?;
    let middle = bed.cgroup.child("middle")?;
    let inner = middle.child("inner")?;
    let innermost = inner.child("innermost")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["attach", middle.path(), "-i", "none"])?;
    let mut held = Held::start(&mut client(&bed, &inner, User::Nobody, &KINDS)?)?;
    check_outcomes(&held.round()?, User::Nobody, 0)?;
    bed.succeed(&["attach", innermost.path(), "-i", "none"])?;
    bed.succeed(&["attach", inner.path(), "-i", "a1"])?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    ensure!(held.round()?.iter().all(|outcome| !outcome.is_ok()));
    spy.saw_nothing()?;
    check_outcomes(&held.round()?, User::Nobody, 1)?;
    spy.saw_nothing()
}

/// An inner attachment has the programs that note in time, as long as a policy around it needs them.
fn inner_programs_follow_the_outer_policy() -> Outcome {
    let bed = Bed::new("nested-programs")?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", inner.path(), "-i", "a0", "--enforce", "steer"])?;
    let programs = || -> anyhow::Result<usize> {
        let cgroup = bed.policy("a0")?["cgroups"][0].clone();
        ensure!(cgroup["complete"] == true, "{cgroup}");
        Ok(cgroup["programs"].as_array().context("no programs")?.len())
    };
    let alone = programs()?;
    // Not every kernel accepts the program for listeners.
    let strict = 3 + usize::from(bed.abi().join("programs/sock_ops").exists());
    for (enforce, more) in [("steer", 0), ("strict", strict), ("steer", 0), ("strict", strict)] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", enforce])?;
        ensure!(programs()? == alone + more, "{enforce}: {} programs, {alone} alone", programs()?);
        bed.check_steered(&inner, 0)?;
        bed.check_steered(&bed.cgroup, 1)?;
    }
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.succeed(&["detach", bed.cgroup.path()])?;
    ensure!(programs()? == alone);
    Ok(())
}
