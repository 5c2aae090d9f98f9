//! What holds between any two messages, and how long all take.

use std::time::Instant;

use steer::host::route::{By, Local, Step, Wanted, steps};

use crate::bed::{Bed, ONE, bed, exception, mark};

/// Carries out the difference one message at a time. After each one, a marked packet takes one of the links, or none, as
/// soon as and as long as there is a goto.
fn step_by_step(bed: &Bed, wanted: &Wanted, links: &[&str]) -> usize {
    let steps = steps(&bed.plan(wanted), &bed.state());
    for step in &steps {
        let changes = bed.host.run(|| Step::carry_out(std::slice::from_ref(step))).expect("a namespace").expect("done");
        assert!(changes.failed.is_empty(), "{:?}", changes.failed);
        for (family, to) in [("-4", "198.51.100.1"), ("-6", "2001:db8::1")] {
            let rules = bed.ip(&format!("{family} rule"));
            assert!(!rules.contains("unresolved"), "after {step}: {rules}");
            if rules.contains("goto 40000")
                && let Ok(link) = bed.send(mark(1), to)
            {
                assert!(links.contains(&link.as_str()), "after {step}, {to} by {link}: {rules}");
            }
        }
    }
    steps.len()
}

#[test]
fn no_step_lets_marked_packets_pass() {
    let Some(bed) = bed() else { return };
    let mut first = bed.policy(1, "up0");
    first.exceptions = vec![exception("203.0.113.0/24", By::Refuse)];
    let both = Bed::wanted(vec![first.clone(), bed.policy(2, "eth1")], vec![bed.index("up0")]);
    assert!(step_by_step(&bed, &both, &["up0"]) > 10);
    bed.ip("route add default via 192.168.3.1 dev eth1 metric 500");
    bed.ip("-6 route add default via fd03::1 dev eth1 metric 500");
    let mut moved = bed.policy(1, "eth1");
    moved.local = Local { lan: true, discovery: true };
    assert!(step_by_step(&bed, &Bed::wanted(vec![moved], vec![]), &["up0", "eth1"]) > 5, "another uplink");
    assert!(step_by_step(&bed, &Bed::wanted(vec![first], vec![]), &["up0", "eth1"]) > 5, "back");
    let mut gone = bed.policy(1, "up0");
    gone.uplink = None;
    assert!(step_by_step(&bed, &Bed::wanted(vec![gone], vec![]), &["up0"]) > 2, "the uplink is gone");
    assert!(step_by_step(&bed, &Bed::wanted(vec![bed.policy(2, "eth1")], vec![]), &["up0"]) > 1, "the policy is gone");
    assert!(step_by_step(&bed, &Bed::wanted(vec![], vec![]), &[]) > 4, "all is gone");
    assert!(!bed.everything().contains("40000"));
    assert_eq!(bed.remove(ONE).removed, 0);
}

#[test]
fn many_policies() {
    let Some(bed) = bed() else { return };
    let policy = |number| {
        let mut policy = bed.policy(number, if number % 2 == 0 { "up0" } else { "eth1" });
        policy.local = Local { lan: true, discovery: true };
        policy.exceptions = vec![exception("203.0.113.0/24", By::Refuse), exception("2001:db8:1::/48", By::Main)];
        policy
    };
    let wanted = Bed::wanted((1..=60).map(policy).collect(), vec![bed.index("up0")]);
    let (started, state) = (Instant::now(), bed.state());
    let read = started.elapsed();
    let plan = steer::host::route::plan(&wanted, &state).expect("a plan");
    let planned = started.elapsed();
    let changes =
        bed.host.run(|| steer::host::route::write(&plan, &state, None)).expect("a namespace").expect("written");
    let written = started.elapsed();
    println!("60 policies: read {read:?}, planned {planned:?}, {} written after {written:?}", changes.written);
    assert!(changes.failed.is_empty() && changes.written > 600, "{changes:?}");
    let started = Instant::now();
    assert!(steps(&bed.plan(&wanted), &bed.state()).is_empty());
    println!("read twice, planned and compared: {:?}", started.elapsed());
    let started = Instant::now();
    bed.remove(ONE);
    println!("removed: {:?}", started.elapsed());
}
