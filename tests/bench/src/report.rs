//! What is printed: tables for people or JSON, and which goals were met.
//!
//! **Invariant:** every number printed is in the JSON too, and a goal is judged by the medians that stand beside it.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{containers, goal::Goal, machine::Machine, sockets, statistic::Spread, traffic};

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    command: String,
    #[serde(flatten)]
    sockets: sockets::Report,
    /// Microseconds.
    unsteered_after_appearing: Spread,
    traffic: traffic::Report,
    /// Nothing where there is no runc.
    containers: Option<containers::Report>,
    goals: Vec<Goal>,
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        command: String,
        sockets: sockets::Report,
        unsteered_after_appearing: Spread,
        traffic: traffic::Report,
        containers: Option<containers::Report>,
    ) -> Self {
        let container = containers::Report::goal(containers.as_ref());
        let goals = sockets.goals().into_iter().chain(traffic.goals()).chain([container]).collect();
        Self { machine, command, sockets, unsteered_after_appearing, traffic, containers, goals }
    }
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
