//! The table and goals of this measurement.
//!
//! **Invariant:** every number printed is in the JSON too, and a way that could not be measured is named with the reason.

use std::fmt;

use serde::Serialize;

use super::{
    Rates,
    bed::Unavailable,
    load::{Kind, Load},
    way::Way,
};
use crate::{
    goal::Goal,
    report::table,
    statistic::{Median, Spread},
};

/// How much less may be sent under a strict policy than without any.
const MIN_RATIO: f64 = 0.97;
/// How many fewer connections may be made.
const MIN_CONNECTIONS_RATIO: f64 = 0.95;

/// A load on a way.
#[derive(Debug, Serialize)]
struct Rate {
    #[serde(flatten)]
    load: Load,
    unit: &'static str,
    way: Way,
    per_second: f64,
    /// To no policy.
    ratio: Median,
    /// Of a strict policy to this way.
    strict_ratio: Median,
}

/// What it costs to send.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rates: Vec<Rate>,
    unavailable: Vec<Unavailable>,
}

impl Report {
    pub(super) fn new(rates: &Rates, unavailable: Vec<Unavailable>) -> Self {
        let rate = |(&(load, way), samples): (&(Load, Way), &Vec<f64>)| Rate {
            load,
            unit: load.unit(),
            way,
            per_second: Spread::of(samples.iter().copied()).median,
            ratio: Median::of_pairs(samples, &rates[&(load, Way::Unsteered)], |ours, none| ours / none),
            strict_ratio: Median::of_pairs(&rates[&(load, Way::Strict)], samples, |strict, other| strict / other),
        };
        Self { rates: rates.iter().map(rate).collect(), unavailable }
    }

    pub(crate) fn goals(&self) -> Vec<Goal> {
        let strict = |way, connections| {
            let rates = self.rates.iter();
            let rates = rates.filter(|rate| rate.way == way && (rate.load.kind == Kind::Connections) == connections);
            rates.map(|rate| rate.strict_ratio.value).collect::<Vec<_>>()
        };
        let faster = [Way::Mark, Way::MarkMasquerade, Way::Namespace].map(|way| {
            let goal = format!("a strict policy lets through more than {}", way.name());
            Goal::new(goal, strict(way, false), |ratio| ratio > 1.0)
        });
        let most = Goal::new(
            "a strict policy lets through at least 0.97 times as much as no policy",
            strict(Way::Unsteered, false),
            |ratio| ratio >= MIN_RATIO,
        );
        let connections = Goal::new(
            "under a strict policy at least 0.95 times as many connections are made as under none",
            strict(Way::Unsteered, true),
            |ratio| ratio >= MIN_CONNECTIONS_RATIO,
        );
        [most].into_iter().chain(faster).chain([connections]).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "What one CPU sends and delivers through a veth each second, and the ratio to no policy in each round \
             (median, and its 95 % confidence interval):\n"
        )?;
        let mut table = table(["traffic", "way", "per second", "ratio", "low", "high"], 2);
        for Rate { load, unit, way, per_second, ratio, .. } in &self.rates {
            let [median, low, high] = [ratio.value, ratio.low, ratio.high].map(|ratio| format!("{ratio:.3}"));
            table.add_row([load.name(), way.name().to_owned(), quantity(*per_second, unit), median, low, high]);
        }
        writeln!(formatter, "{table}")?;
        for Unavailable { way, reason } in &self.unavailable {
            writeln!(formatter, "\nNot available on this machine: {way}: {reason}.")?;
        }
        Ok(())
    }
}

/// A number with its unit, as people write it.
fn quantity(number: f64, unit: &str) -> String {
    match unit {
        "bits" => format!("{:.2} Gbit", number / 1e9),
        _ => format!("{number:.0} {unit}"),
    }
}
