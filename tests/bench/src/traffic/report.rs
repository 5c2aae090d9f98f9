//! The table and goals of this measurement.
//!
//! **Invariant:** the JSON contains every printed number, and a way that could not be measured is named with the
//! reason.

use std::fmt;

use serde::Serialize;

use super::{
    Rates,
    bed::Unavailable,
    load::{Kind, Load},
    way::Way,
};
use crate::{
    chart::Bars,
    goal::Goal,
    report::table,
    statistic::{Median, Spread},
};

/// The allowed ratio of the rate under a strict policy to the rate without a policy.
const MIN_RATIO: f64 = 0.97;
/// The same for connections.
const MIN_CONNECTIONS_RATIO: f64 = 0.95;

/// One load on all ways.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    load: Load,
    unit: &'static str,
    ways: Vec<Cell>,
}

/// One load on one way.
#[derive(Debug, Serialize)]
struct Cell {
    way: Way,
    per_second: f64,
    /// The ratio to no policy.
    ratio: Median,
    /// The ratio of a strict policy to this way.
    strict_ratio: Median,
}

/// The cost of sending.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    loads: Vec<Row>,
    unavailable: Vec<Unavailable>,
}

impl Report {
    pub(super) fn new(rates: &Rates, unavailable: Vec<Unavailable>) -> Self {
        Self { loads: Load::all().map(|load| Row::new(load, rates)).collect(), unavailable }
    }

    /// The rate of each way, compared with no policy.
    pub(crate) fn bars(&self) -> Bars {
        let cells = self.loads.iter().flat_map(|row| row.ways.iter().map(move |cell| (row, cell)));
        let cells = cells.filter(|(_, cell)| cell.way != Way::Unsteered);
        let bars = cells.map(|(row, cell)| (format!("{}, {}", cell.way.name(), row.load.name()), cell.ratio.value));
        Bars { title: "What is sent: rate, without a policy = 1".to_owned(), bars: bars.collect() }
    }

    pub(crate) fn goals(&self) -> Vec<Goal> {
        let faster = [Way::Mark, Way::MarkMasquerade, Way::Namespace].map(|way| {
            let goal = format!("more is sent under a strict policy than by {}", way.name());
            Goal::new(goal, self.strict_ratios(way, false), |ratio| ratio > 1.0)
        });
        let no_policy = |connections| self.strict_ratios(Way::Unsteered, connections);
        let most = "under a strict policy at least 0.97 times as much is sent as under none";
        let most = Goal::new(most, no_policy(false), |ratio| ratio >= MIN_RATIO);
        let connections = "under a strict policy at least 0.95 times as many connections are made as under none";
        let connections = Goal::new(connections, no_policy(true), |ratio| ratio >= MIN_CONNECTIONS_RATIO);
        [most].into_iter().chain(faster).chain([connections]).collect()
    }

    /// The ratios of the strict policy to a way, for connections or for all other loads; none if they could not be
    /// measured.
    fn strict_ratios(&self, way: Way, connections: bool) -> Vec<f64> {
        let rows = self.loads.iter().filter(|row| (row.load.kind == Kind::Connections) == connections);
        rows.filter_map(|row| row.cell(way)).map(|cell| cell.strict_ratio.value).collect()
    }
}

impl Row {
    fn new(load: Load, rates: &Rates) -> Self {
        let cell = |way| {
            let [ours, none, strict] = [way, Way::Unsteered, Way::Strict].map(|way| rates.get(&(load, way)));
            let (ours, none, strict) = (ours?, none?, strict?);
            Some(Cell {
                way,
                per_second: Spread::of(ours.iter().copied()).median,
                ratio: Median::of_pairs(ours, none, |ours, none| ours / none),
                strict_ratio: Median::of_pairs(strict, ours, |strict, ours| strict / ours),
            })
        };
        Self { load, unit: load.unit(), ways: Way::all().filter_map(cell).collect() }
    }

    fn cell(&self, way: Way) -> Option<&Cell> {
        self.ways.iter().find(|cell| cell.way == way)
    }

    fn texts(&self, ways: &[Way]) -> Vec<String> {
        let text = |way| match (self.cell(way), way) {
            (None, _) => "n/a".to_owned(),
            (Some(cell), Way::Unsteered) => quantity(cell.per_second, self.unit),
            (Some(cell), _) => format!("{:.3}", cell.ratio.value),
        };
        let mut texts = vec![self.load.name()];
        texts.extend(ways.iter().map(|way| text(*way)));
        texts
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "What one CPU sends and delivers through a veth, and the ratio of each way to no policy in each round (median; that of \
             strict with its 95 % confidence interval):\n"
        )?;
        let header = ["traffic"].into_iter().chain(Way::OWN.map(Way::name)).chain(["strict from", "to"]);
        let mut own = table(header, 1);
        for row in &self.loads {
            let interval = row.cell(Way::Strict).map(|cell| [cell.ratio.low, cell.ratio.high]);
            let interval = interval.into_iter().flatten().map(|ratio| format!("{ratio:.3}"));
            own.add_row(row.texts(&Way::OWN).into_iter().chain(interval));
        }
        writeln!(formatter, "{own}\n\nWhat policies of other programs cost a program that has none:\n")?;
        let mut beside = table(["traffic"].into_iter().chain(Way::BESIDE.map(Way::name)), 1);
        for row in &self.loads {
            beside.add_row(row.texts(&Way::BESIDE));
        }
        writeln!(formatter, "{beside}\n")?;
        for way in Way::all() {
            writeln!(formatter, "- {}: {}", way.name(), way.description())?;
        }
        for Unavailable { way, reason } in &self.unavailable {
            writeln!(formatter, "- not available on this machine: {way}: {reason}")?;
        }
        Ok(())
    }
}

/// A rate per second with a unit prefix.
fn quantity(number: f64, unit: &str) -> String {
    match unit {
        "bits" => format!("{:.1} Gbit/s", number / 1e9),
        _ => format!("{:.1} k/s", number / 1e3),
    }
}
