//! Rounds: what is reported of several targets, members and families.

use steer::{
    host::probe::{Failure, Outcome, Round, Verdict, Via, ask},
    model::uplink::probe::Target,
};

use crate::bed::{FAMILIES, SHORT, bed};

fn round(via: Via) -> Round {
    let targets = ["icmp:198.51.100.1", "icmp:fd00:ffff::1"].map(|target| Target::parse(target).expect("a target"));
    Round { targets: targets.to_vec(), via, timeout: SHORT, need: 1 }
}

#[test]
fn members_and_families_are_reported_apart() {
    let Some(bed) = bed() else { return };
    let [v4, v6] = FAMILIES;
    bed.block_on(|| async {
        for uplink in [0, 1] {
            for (position, family) in [v4, v6].into_iter().enumerate() {
                let Outcome { verdict, latency, results } = ask(round(bed.bound(uplink, family))).await;
                assert_eq!(verdict, Verdict::Passed);
                assert_eq!(results[1 - position], Err(Failure::OtherFamily));
                assert_eq!(latency, results[position].clone().ok());
            }
        }
        bed.black_hole(true);
        for family in FAMILIES {
            let lost = ask(round(bed.bound(1, family))).await;
            assert_eq!((lost.verdict, lost.latency), (Verdict::Failed, None));
            assert!(lost.results.contains(&Err(Failure::Timeout)));
            assert_eq!(ask(round(bed.bound(0, family))).await.verdict, Verdict::Passed);
        }
    });
}
