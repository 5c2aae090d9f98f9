//! One round of probes: all targets of a member at once.
//!
//! **Invariant:** a round ends when its timeout is over.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{Failure, Via, probe};
use crate::model::uplink::probe::Target;

/// A round of probes by one member, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// What is asked.
    pub targets: Vec<Target>,
    /// By what.
    pub via: Via,
    /// For each target.
    pub timeout: Duration,
    /// How many targets must answer.
    pub need: u8,
}

/// What a round has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it says about the member.
    pub verdict: Verdict,
    /// The time of the fastest answer.
    pub latency: Option<Duration>,
    /// What each target said, in the order of the round.
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

/// Asks all targets at once. It needs a tokio runtime with I/O and time.
pub async fn ask(round: Round) -> Outcome {
    let (via, timeout) = (round.via, round.timeout);
    let mut asking = JoinSet::new();
    let mut results = vec![Err(Failure::Error("the probe ended".to_owned())); round.targets.len()];
    for (position, target) in round.targets.into_iter().enumerate() {
        asking.spawn(async move { (position, probe(&target, &via, timeout).await) });
    }
    while let Some(answered) = asking.join_next().await {
        if let Ok((position, result)) = answered {
            results[position] = result;
        }
    }
    let latency = results.iter().filter_map(|result| result.as_ref().ok()).min().copied();
    Outcome { verdict: Verdict::of(&results, round.need), latency, results }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failure, Verdict};

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
}
