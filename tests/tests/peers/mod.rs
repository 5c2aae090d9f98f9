//! steer beside its alternatives, `BindNetworkInterface=` of systemd and `ip vrf exec`, each on its own beds: packets
//! that leave by another link, and a service while its uplink changes.
//!
//! For the alternatives, the captured results are recorded. For steer, the results must be the expected ones. `cargo
//! xtask peers` runs this where all of them are installed and writes docs/peers.md.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use libtest_mimic::Trial;
use steer_tests::{MEANS, Means, NotHere};

use crate::report;

mod escape;
mod life;

/// A row: its name and the means.
type Cell = (&'static str, Means);

/// The result, as text of the table.
#[derive(Default)]
struct Cells(Mutex<BTreeMap<Cell, String>>);

impl Cells {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn record(&self, row: &'static str, means: Means, text: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((row, means), text.into());
    }

    /// Prints the results as a chapter with a table, if there are any.
    fn print(&self, title: &str, rows: impl Iterator<Item = &'static str>, legend: &str) {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |head: &str, cells: [String; 5]| println!("| {head} | {} |", cells.join(" | "));
        let rows: Vec<_> = rows.filter(|row| cells.keys().any(|(name, _)| name == row)).collect();
        if rows.is_empty() {
            return;
        }
        println!("\n## {title}\n");
        line("", MEANS.map(Means::name));
        line("---", MEANS.map(|_| "---".to_owned()));
        for row in rows {
            line(row, MEANS.map(|means| cells.get(&(row, means)).cloned().unwrap_or_default()));
        }
        println!("\n{legend}");
    }
}

/// Returns none if it cannot be made here, after printing why. Other errors are returned.
fn not_here<T>(made: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) if error.is::<NotHere>() => {
            eprintln!("not here: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// One trial for each row of the first table, and one for each means of the second.
pub(crate) fn trials(root: bool) -> Vec<Trial> {
    let escapes = escape::ROWS
        .iter()
        .map(|row| Trial::ignorable_test(format!("peers::escape::{}", row.name), || report(escape::check(row))));
    let lives = MEANS.into_iter().map(|means| {
        Trial::ignorable_test(format!("peers::life::{}", means.name()), move || report(life::check(means)))
    });
    escapes.chain(lives).map(|trial| trial.with_ignored_flag(!root)).collect()
}

/// Prints the results of the trials as a part of a Markdown document, between two marker lines.
pub(crate) fn print_tables() {
    println!("steer-peers: begin");
    escape::print();
    life::print();
    println!("steer-peers: end");
}
