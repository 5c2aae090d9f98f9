//! The output: tables for people or JSON, and the goals that were met.
//!
//! **Invariant:** the JSON contains every printed number, and a goal is judged by the medians that are printed with it.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    chart, containers, failover, goal::Goal, load, machine::Machine, scale, sockets, statistic::Spread, traffic,
};

/// The whole report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) command: String,
    #[serde(flatten)]
    pub(crate) sockets: sockets::Report,
    /// Microseconds.
    pub(crate) unsteered_after_appearing: Spread,
    pub(crate) traffic: traffic::Report,
    /// None if runc is not installed.
    pub(crate) containers: Option<containers::Report>,
    pub(crate) scale: scale::Report,
    pub(crate) load: load::Report,
    pub(crate) failover: failover::Report,
    pub(crate) goals: Vec<Goal>,
}

impl Report {
    /// With the results of the goals.
    pub(crate) fn judged(self) -> Self {
        let container = containers::Report::goal(self.containers.as_ref());
        let goals = self.sockets.goals().into_iter().chain(self.traffic.goals()).chain([container]);
        let goals = goals.chain(self.scale.goals()).chain(self.load.goals()).chain(self.failover.goals()).collect();
        Self { goals, ..self }
    }
}

impl Report {
    /// Writes it as `bench.md` and `bench.svg` into a directory.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let write = |name: &str, text: &str| {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        };
        let day = today();
        let head = format!(
            "# Benchmarks\n\nMade on {day} by the command below. Another machine has other numbers, and similar ratios.\n\n"
        );
        write("bench.md", &format!("{head}![the ratios](bench.svg)\n\n{self}"))?;
        write("bench.svg", &chart::svg(&[self.sockets.bars(), self.traffic.bars()])?)
    }
}

/// The current day in ISO 8601.
fn today() -> String {
    jiff::Timestamp::now().strftime("%F").to_string()
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.machine)?;
        writeln!(formatter, "{}\n", self.command)?;
        writeln!(formatter, "{}", self.sockets)?;
        let Spread { min, median, max } = self.unsteered_after_appearing;
        writeln!(
            formatter,
            "A cgroup that the daemon's configuration names is steered {median:.0} \u{b5}s after it has appeared (median; {min:.0} \
             to {max:.0}).\n"
        )?;
        writeln!(formatter, "{}", self.traffic)?;
        if let Some(containers) = &self.containers {
            writeln!(formatter, "{containers}")?;
        }
        writeln!(formatter, "{}", self.scale)?;
        writeln!(formatter, "{}", self.load)?;
        writeln!(formatter, "{}", self.failover)?;
        self.goals.iter().try_for_each(|goal| writeln!(formatter, "{goal}"))
    }
}

/// A Markdown table. The first `words` columns are words and the others are numbers.
pub(crate) fn table<'a>(header: impl IntoIterator<Item = &'a str>, words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
