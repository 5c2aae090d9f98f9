//! Probes members again and again, and reports each round.
//!
//! **Invariant:** a member has one task, which holds at most one round. A reader that stalls makes nothing wait and nothing
//! grow: rounds are left out while the channel is full. Without jobs there is no task and no timer.

use std::time::{Duration, Instant};

use tokio::{
    sync::mpsc::Sender,
    task::{AbortHandle, JoinSet},
    time::{MissedTickBehavior, interval_at},
};

use super::{Failure, Via, probe};
use crate::model::uplink::probe::Target;

/// A member of a group, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<K> {
    /// Comes back in each outcome.
    pub key: K,
    /// What is asked.
    pub targets: Vec<Target>,
    /// By what.
    pub via: Via,
    /// From one round to the next.
    pub interval: Duration,
    /// For each target. At most the interval.
    pub timeout: Duration,
    /// How many targets must answer.
    pub need: u8,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<K> {
    /// Of which job.
    pub key: K,
    /// When the round began.
    pub at: Instant,
    /// What it says about the member.
    pub verdict: Verdict,
    /// The time of the fastest answer.
    pub latency: Option<Duration>,
    /// What each target said, in the order of the job.
    pub results: Vec<Result<Duration, Failure>>,
}

/// What a round says about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enough targets answered.
    Passed,
    /// Too few answered.
    Failed,
    /// No target was applicable, so nothing was learned: the member stays what it is. See [`Failure::is_applicable`].
    Nothing,
}

impl Verdict {
    /// Of these results. Targets that are not applicable count as if they were not there; if fewer than `need` are left,
    /// all of those must answer.
    fn of(results: &[Result<Duration, Failure>], need: u8) -> Self {
        let applicable =
            results.iter().filter(|result| result.as_ref().err().is_none_or(Failure::is_applicable)).count();
        let answered = results.iter().filter(|result| result.is_ok()).count();
        match applicable {
            0 => Self::Nothing,
            _ if answered >= usize::from(need).min(applicable) => Self::Passed,
            _ => Self::Failed,
        }
    }
}

/// Probes the members of a list. It ends with its drop.
#[derive(Debug)]
pub struct Prober<K> {
    outcomes: Sender<Outcome<K>>,
    running: Vec<(Job<K>, AbortHandle)>,
    /// How many tasks were started; spreads their rounds.
    started: u32,
}

impl<K: Clone + PartialEq + Send + Sync + 'static> Prober<K> {
    /// With an empty list. Outcomes go into the channel.
    pub fn new(outcomes: Sender<Outcome<K>>) -> Self {
        Self { outcomes, running: Vec::new(), started: 0 }
    }

    /// Replaces the list. A job that stays the same goes on undisturbed, so that frequent changes of others do not put its
    /// rounds off. A new or changed one begins at once. Outcomes of jobs that went may still be in the channel.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn replace(&mut self, jobs: Vec<Job<K>>) {
        let mut before = std::mem::take(&mut self.running);
        for job in jobs {
            let same = before.iter().position(|(running, task)| *running == job && !task.is_finished());
            let task = if let Some(position) = same {
                before.swap_remove(position).1
            } else {
                self.started = self.started.wrapping_add(1);
                tokio::spawn(run(job.clone(), phase(self.started, job.interval), self.outcomes.clone())).abort_handle()
            };
            self.running.push((job, task));
        }
        for (_, task) in before {
            task.abort();
        }
    }

    /// The current list.
    pub fn jobs(&self) -> impl Iterator<Item = &Job<K>> {
        self.running.iter().map(|(job, _)| job)
    }
}

impl<K> Drop for Prober<K> {
    fn drop(&mut self) {
        for (_, task) in &self.running {
            task.abort();
        }
    }
}

/// From the first round to the second: half an interval to a whole one, spread evenly over however many tasks there are.
fn phase(number: u32, interval: Duration) -> Duration {
    // Multiples of the golden ratio leave the most even gaps.
    const GOLDEN: u32 = 0x9e37_79b9;
    let part = f64::from(number.wrapping_mul(GOLDEN)) / f64::from(u32::MAX);
    interval.mul_f64(0.5 + part / 2.0)
}

/// Probes one member until nobody reads any more.
async fn run<K: Clone>(job: Job<K>, phase: Duration, outcomes: Sender<Outcome<K>>) {
    let began = tokio::time::Instant::now();
    let mut rounds = interval_at(began + phase, job.interval);
    // After a pause of the machine, one round, and not all that were missed.
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if outcomes.capacity() > 0 {
            let outcome = round(&job).await;
            // Another task may have taken the place meanwhile: the next round tells the same, and newer.
            outcomes.try_send(outcome).ok();
        }
        tokio::select! {
            _ = rounds.tick() => {}
            () = outcomes.closed() => return,
        }
    }
}

/// Asks all targets at once.
async fn round<K: Clone>(job: &Job<K>) -> Outcome<K> {
    let (at, via, timeout) = (Instant::now(), job.via, job.timeout);
    let mut asking = JoinSet::new();
    for (position, target) in job.targets.iter().cloned().enumerate() {
        asking.spawn(async move { (position, probe(&target, &via, timeout).await) });
    }
    let mut results = vec![Err(Failure::Error("the probe ended".to_owned())); job.targets.len()];
    while let Some(answered) = asking.join_next().await {
        if let Ok((position, result)) = answered {
            results[position] = result;
        }
    }
    let latency = results.iter().filter_map(|result| result.as_ref().ok()).min().copied();
    Outcome { key: job.key.clone(), at, verdict: Verdict::of(&results, job.need), latency, results }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failure, Verdict, phase};

    #[test]
    fn what_is_not_applicable_does_not_count() {
        let (ok, lost, none) = (Ok(Duration::ZERO), Err(Failure::Timeout), Err(Failure::NoGateway));
        for (results, need, want) in [
            (vec![], 1, Verdict::Nothing),
            (vec![none.clone()], 1, Verdict::Nothing),
            (vec![none.clone(), ok.clone()], 2, Verdict::Passed),
            (vec![none, lost.clone()], 1, Verdict::Failed),
            (vec![ok.clone(), lost.clone()], 1, Verdict::Passed),
            (vec![ok.clone(), lost.clone()], 2, Verdict::Failed),
            (vec![ok, lost.clone(), lost], 2, Verdict::Failed),
        ] {
            assert_eq!(Verdict::of(&results, need), want, "{results:?}, need {need}");
        }
    }

    #[test]
    fn rounds_are_spread() {
        let second = Duration::from_secs(1);
        let mut phases: Vec<_> = (1..=8).map(|number| phase(number, second)).collect();
        phases.sort();
        assert!(phases[0] >= second / 2 && phases[7] <= second);
        assert!(phases.windows(2).all(|two| two[1] > two[0] + Duration::from_millis(20)), "{phases:?}");
    }
}
