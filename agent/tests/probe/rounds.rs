//! Rounds: what is reported, and what a list that changes or a reader that stalls does to them.

use std::time::Duration;

use steer::{
    host::probe::{Failure, Job, Outcome, Prober, Verdict, Via},
    model::uplink::{Family, probe::Target},
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{Receiver, channel},
    time::timeout,
};

use crate::bed::{Bed, FAMILIES, LONG, SHORT, bed, tasks_end};

const INTERVAL: Duration = Duration::from_millis(50);
/// How many intervals a test waits for what must not happen.
const MANY: usize = 10;

fn job(key: &'static str, targets: &[&str], via: Via) -> Job<&'static str> {
    let targets = targets.iter().map(|target| Target::parse(target).expect("a target")).collect();
    Job { key, targets, via, interval: INTERVAL, timeout: INTERVAL, need: 1 }
}

/// The next outcome of a job with this verdict.
async fn next(outcomes: &mut Receiver<Outcome<&'static str>>, key: &str, verdict: Verdict) -> Outcome<&'static str> {
    let next = async {
        loop {
            let outcome = outcomes.recv().await.expect("a prober");
            if outcome.key == key && outcome.verdict == verdict {
                return outcome;
            }
        }
    };
    timeout(LONG, next).await.unwrap_or_else(|_| panic!("{key} is never {verdict:?}"))
}

#[test]
fn members_and_families_are_reported_apart() {
    let Some(bed) = bed() else { return };
    let [v4, v6] = FAMILIES;
    bed.block_on(|| async {
        let (sender, mut outcomes) = channel(64);
        let mut prober = Prober::new(sender);
        let targets = ["icmp:198.51.100.1", "icmp:fd00:ffff::1"];
        let mut jobs: Vec<_> = [("a0/4", 0, v4), ("a0/6", 0, v6), ("a1/4", 1, v4), ("a1/6", 1, v6)]
            .map(|(key, uplink, family)| Job {
                timeout: SHORT,
                interval: SHORT,
                ..job(key, &targets, bed.bound(uplink, family))
            })
            .to_vec();
        prober.replace(jobs.clone());
        for job in &jobs {
            let outcome = next(&mut outcomes, job.key, Verdict::Passed).await;
            let applicable = usize::from(job.via.family == v6);
            assert_eq!(outcome.results[1 - applicable], Err(Failure::OtherFamily));
            assert_eq!(outcome.latency, outcome.results[applicable].clone().ok());
        }
        bed.black_hole(true);
        for key in ["a1/4", "a1/6"] {
            let outcome = next(&mut outcomes, key, Verdict::Failed).await;
            assert!(outcome.results.contains(&Err(Failure::Timeout)) && outcome.latency.is_none());
        }
        for key in ["a0/4", "a0/6"] {
            next(&mut outcomes, key, Verdict::Passed).await;
        }
        // Those that are no longer in the list end; the others go on.
        jobs.retain(|job| job.key == "a0/4");
        prober.replace(jobs);
        while outcomes.try_recv().is_ok() {}
        for _ in 0..3 {
            assert_eq!(next(&mut outcomes, "a0/4", Verdict::Passed).await.key, "a0/4");
        }
        prober.replace(Vec::new());
        while outcomes.try_recv().is_ok() {}
        drop(prober);
        assert!(timeout(LONG, outcomes.recv()).await.expect("an end").is_none(), "nothing is left that could report");
    });
}

/// A job whose rounds need no network, as it has no target of its family.
fn idle(bed: &Bed, key: &'static str) -> Job<&'static str> {
    job(key, &["icmp:fd00:ffff::1"], bed.bound(1, Family::V4))
}

#[test]
fn a_reader_that_stalls_makes_nothing_grow() {
    let Some(bed) = bed() else { return };
    bed.block_on(|| async {
        let (sender, mut stalled) = channel(1);
        let mut prober = Prober::new(sender);
        prober.replace(vec![job("stalled", &["icmp:198.51.100.1"], bed.bound(1, Family::V4))]);
        // The first outcome fills the channel; the captures show no packet after it.
        let (clock_sender, mut clock) = channel(64);
        let mut reference = Prober::new(clock_sender);
        while stalled.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut spy = bed.spy();
        reference.replace(vec![idle(&bed, "clock")]);
        for _ in 0..MANY {
            next(&mut clock, "clock", Verdict::Nothing).await;
        }
        assert!(spy.member_only("stalled").is_empty(), "nobody reads, so nothing is asked");
        assert_eq!(stalled.len(), 1);
        let old = stalled.recv().await.expect("an outcome");
        let new = stalled.recv().await.expect("an outcome");
        assert!(new.at - old.at > INTERVAL * 5, "the next one is new");
    });
}

#[test]
fn frequent_changes_of_others_do_not_put_a_member_off() {
    let Some(bed) = bed() else { return };
    bed.block_on(|| async {
        let (sender, mut outcomes) = channel(64);
        let mut prober = Prober::new(sender);
        let steady = idle(&bed, "steady");
        let mut number = 0;
        // Each outcome changes the list.
        let mut change = |prober: &mut Prober<_>| {
            number += 1;
            let other = Job { need: number % 100 + 1, interval: INTERVAL / 2, ..idle(&bed, "other") };
            prober.replace(vec![other, steady.clone()]);
        };
        change(&mut prober);
        let mut seen = Vec::new();
        while seen.len() < MANY {
            let outcome = timeout(LONG, outcomes.recv()).await.expect("in time").expect("a prober");
            if outcome.key == "steady" {
                seen.push(outcome.at);
                change(&mut prober);
            }
        }
        assert!(seen.windows(2).all(|two| two[1] - two[0] >= INTERVAL / 2), "not at each change: {seen:?}");
    });
}

#[test]
fn without_jobs_there_is_no_task() {
    let Some(bed) = bed() else { return };
    bed.block_on(|| async {
        let (sender, mut outcomes) = channel(4);
        let mut prober = Prober::new(sender);
        let tasks = || Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks(), 0);
        prober.replace(vec![idle(&bed, "one"), idle(&bed, "two")]);
        assert_eq!((tasks(), prober.jobs().count()), (2, 2));
        next(&mut outcomes, "two", Verdict::Nothing).await;
        prober.replace(Vec::new());
        tasks_end().await;
    });
}
