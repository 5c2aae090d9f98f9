//! Policies in policies: the most specific cgroup wins, whatever the order in which they came.

use anyhow::{Context as _, ensure};
use steer_tests::{Bed, Cgroup, Outcome};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("the_inner_policy_wins", the_inner_policy_wins),
    ("an_inner_exemption_wins", an_inner_exemption_wins),
    ("three_deep", three_deep),
    ("the_outer_one_again_when_the_inner_goes", the_outer_one_again_when_the_inner_goes),
    ("an_inner_policy_that_is_closed_stays_closed", an_inner_policy_that_is_closed_stays_closed),
    ("somebody_elses_program_does_not_win", somebody_elses_program_does_not_win),
    ("nested_in_the_configuration", nested_in_the_configuration),
    ("counted_where_it_was_decided", counted_where_it_was_decided),
];

fn attach(bed: &Bed, cgroup: &Cgroup, interface: &str) -> Outcome {
    bed.succeed(&["attach", cgroup.path(), "--interface", interface]).map(drop)
}

/// Runs `check` with both attached, once the outer one first and once the inner one first.
fn in_both_orders(name: &str, (outer, inner): (&str, &str), check: impl Fn(&Bed, &Cgroup) -> Outcome) -> Outcome {
    for outer_first in [true, false] {
        let bed = Bed::new(name)?;
        let cgroup = bed.cgroup.child("inner")?;
        let mut order = [(&bed.cgroup, outer), (&cgroup, inner)];
        if !outer_first {
            order.reverse();
        }
        for (cgroup, interface) in order {
            attach(&bed, cgroup, interface)?;
        }
        check(&bed, &cgroup).with_context(|| format!("outer first: {outer_first}"))?;
    }
    Ok(())
}

fn the_inner_policy_wins() -> Outcome {
    in_both_orders("nested", ("a0", "a1"), |bed, inner| {
        bed.check_steered(&bed.cgroup, 0)?;
        bed.check_steered(inner, 1)?;
        bed.check_steered(&inner.child("below")?, 1)
    })
}

fn an_inner_exemption_wins() -> Outcome {
    in_both_orders("nested-none", ("a1", "none"), |bed, inner| {
        bed.check_steered(&bed.cgroup, 1)?;
        bed.check_unsteered(Some(inner))
    })
}

fn three_deep() -> Outcome {
    // Every order of attaching an outer, a middle and an inner cgroup.
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let interfaces = ["a1", "none", "a1"];
    for order in orders {
        let bed = Bed::new("nested-three")?;
        let outer = bed.cgroup.child("outer")?;
        let middle = outer.child("middle")?;
        let inner = middle.child("inner")?;
        let cgroups = [&outer, &middle, &inner];
        for level in order {
            attach(&bed, cgroups[level], interfaces[level])?;
        }
        bed.check_steered(&outer, 1).with_context(|| format!("{order:?}"))?;
        bed.check_unsteered(Some(&middle)).with_context(|| format!("{order:?}"))?;
        bed.check_steered(&inner, 1).with_context(|| format!("{order:?}"))?;
    }
    Ok(())
}

fn the_outer_one_again_when_the_inner_goes() -> Outcome {
    in_both_orders("nested-gone", ("a1", "none"), |bed, inner| {
        bed.check_unsteered(Some(inner))?;
        bed.succeed(&["detach", inner.path()])?;
        bed.check_steered(inner, 1)?;
        bed.succeed(&["attach", inner.path(), "--interface", "a0"])?;
        bed.check_steered(inner, 0)?;
        // And without the outer one the inner one stays.
        bed.succeed(&["detach", bed.cgroup.path()])?;
        bed.check_steered(inner, 0)
    })
}

fn an_inner_policy_that_is_closed_stays_closed() -> Outcome {
    in_both_orders("nested-closed", ("a0", "a1"), |bed, inner| {
        bed.net.remove_uplink(1)?;
        bed.check_closed(inner)?;
        bed.check_steered(&bed.cgroup, 0)
    })
}

fn somebody_elses_program_does_not_win() -> Outcome {
    let bed = Bed::new("nested-foreign")?;
    attach(&bed, &bed.cgroup, "a1")?;
    // A program below ours, attached later, in the way that allows no other on its own cgroup.
    let inner = bed.cgroup.child("inner")?;
    steer_tests::exclusive_program(&inner, "foreign")?;
    bed.check_steered(&inner, 1)
}

fn nested_in_the_configuration() -> Outcome {
    let bed = Bed::new("nested-config")?;
    let (inner, exempt) = (bed.cgroup.child("inner")?, bed.cgroup.child("exempt")?);
    let globbed = inner.child("app-1.scope")?;
    let daemon = bed.daemon(
        "[[policy]]\nname = \"inner\"\ninterface = \"a0\"\ncgroups = [\"@/inner\"]\n\
         [[policy]]\nname = \"outer\"\ninterface = \"a1\"\ncgroups = [\"@\", \"@/**/app-*.scope\"]\n\
         [[policy]]\nname = \"exempt\"\ninterface = \"none\"\ncgroups = [\"@/exempt\"]\n",
    )?;
    bed.check_steered(&bed.cgroup, 1)?;
    bed.check_steered(&inner, 0)?;
    bed.check_steered(&globbed, 1)?;
    bed.check_unsteered(Some(&exempt))?;
    daemon.end(nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
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
