//! Policies in policies, beside programs of others, and what is counted. Which one wins is in `model`.

use anyhow::ensure;
use steer_tests::{Bed, Cgroup, Outcome};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("somebody_elses_program_does_not_win", somebody_elses_program_does_not_win),
    ("counted_where_it_was_decided", counted_where_it_was_decided),
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
