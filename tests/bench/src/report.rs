//! What is printed: tables for people or JSON, and which goals were met.
//!
//! **Invariant:** every number printed is in the JSON too, and a goal is judged by the medians that stand beside it.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{chart, containers, goal::Goal, load, machine::Machine, scale, sockets, statistic::Spread, traffic};

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) command: String,
    #[serde(flatten)]
    pub(crate) sockets: sockets::Report,
    /// Microseconds.
    pub(crate) unsteered_after_appearing: Spread,
    pub(crate) traffic: traffic::Report,
    /// Nothing where there is no runc.
    pub(crate) containers: Option<containers::Report>,
    pub(crate) scale: scale::Report,
    pub(crate) load: load::Report,
    pub(crate) goals: Vec<Goal>,
}

impl Report {
    /// With the goals judged.
    pub(crate) fn judged(self) -> Self {
        let container = containers::Report::goal(self.containers.as_ref());
        let goals = self.sockets.goals().into_iter().chain(self.traffic.goals()).chain([container]);
        let goals = goals.chain(self.scale.goals()).chain(self.load.goals()).collect();
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

/// The day, as ISO 8601 has it.
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
        self.goals.iter().try_for_each(|goal| writeln!(formatter, "{goal}"))
    }
}

/// A Markdown table whose first `words` columns are words and the others numbers.
pub(crate) fn table<'a>(header: impl IntoIterator<Item = &'a str>, words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
