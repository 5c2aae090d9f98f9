//! What is printed: tables for people or JSON, and which goals were met.
//!
//! **Invariant:** every number printed is in the JSON too, and a goal is judged by the median that stands beside it.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    machine::Machine,
    rounds::{ProgramTime, Rounds, WallClock},
    statistic::Spread,
    variant::{Kind, Variant},
};

/// How much longer a steered socket may take.
const MAX_RATIO: f64 = 1.03;
/// How much longer than the constant program ours may run.
const MAX_OVER_CONSTANT_NS: f64 = 25.0;

/// What is compared by the wall clock.
const PAIRS: [(Variant, Variant); 5] = [
    (Variant::Steered, Variant::Unsteered),
    (Variant::Steered, Variant::Setsockopt),
    (Variant::Nested, Variant::Unsteered),
    (Variant::Constant, Variant::Unsteered),
    (Variant::Control, Variant::Unsteered),
];

/// One pair of variants, by the wall clock.
#[derive(Debug, Serialize)]
struct Comparison {
    sockets: Kind,
    measured: &'static str,
    against: &'static str,
    measured_ns: f64,
    against_ns: f64,
    ratio: Spread,
}

/// One program, by the kernel's account.
#[derive(Debug, Serialize)]
struct RunTime {
    program: &'static str,
    run_ns: Spread,
    over_empty_ns: f64,
    over_constant_ns: f64,
}

#[derive(Debug, Serialize)]
struct Goal {
    what: &'static str,
    met: bool,
    measured: Vec<f64>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    command: String,
    comparisons: Vec<Comparison>,
    run_times: Vec<RunTime>,
    /// Microseconds.
    unsteered_after_appearing: Spread,
    goals: [Goal; 3],
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        rounds: Rounds,
        wall: &WallClock,
        programs: &ProgramTime,
        unsteered_after_appearing: Spread,
    ) -> Self {
        let comparisons: Vec<_> =
            PAIRS.iter().flat_map(|&pair| Kind::ALL.map(|kind| Comparison::new(wall, kind, pair))).collect();
        let run_times: Vec<_> = programs.keys().map(|variant| RunTime::new(programs, *variant)).collect();
        let medians = |pair: (Variant, Variant)| {
            let ours =
                comparisons.iter().filter(|ratio| (ratio.measured, ratio.against) == (pair.0.name(), pair.1.name()));
            ours.map(|ratio| ratio.ratio.median).collect::<Vec<_>>()
        };
        let steered = run_times.iter().filter(|program| program.program == Variant::Steered.name());
        let over_constant = steered.map(|program| program.over_constant_ns).collect();
        let goals = [
            Goal::new(
                "a steered socket takes at most 1.03 times as long as an unsteered one",
                medians(PAIRS[0]),
                |ratio| ratio <= MAX_RATIO,
            ),
            Goal::new("a steered socket takes less time than one bound by setsockopt", medians(PAIRS[1]), |ratio| {
                ratio < 1.0
            }),
            Goal::new("a run takes at most 25 ns more than that of a constant program", over_constant, |over_ns| {
                over_ns <= MAX_OVER_CONSTANT_NS
            }),
        ];
        let Rounds { rounds, ops } = rounds;
        let command = format!("cargo xtask bench --rounds {rounds} --ops {ops}");
        Self { machine, command, comparisons, run_times, unsteered_after_appearing, goals }
    }
}

impl Comparison {
    fn new(wall: &WallClock, sockets: Kind, (measured, against): (Variant, Variant)) -> Self {
        let (a, b) = (&wall[&(sockets, measured)], &wall[&(sockets, against)]);
        Self {
            sockets,
            measured: measured.name(),
            against: against.name(),
            measured_ns: Spread::of(a.iter().copied()).median,
            against_ns: Spread::of(b.iter().copied()).median,
            ratio: Spread::of_pairs(a, b, |a, b| a / b),
        }
    }
}

impl RunTime {
    fn new(programs: &ProgramTime, variant: Variant) -> Self {
        let ours = &programs[&variant];
        let over = |other| Spread::of_pairs(ours, &programs[&other], |a, b| a - b).median;
        Self {
            program: variant.name(),
            run_ns: Spread::of(ours.iter().copied()),
            over_empty_ns: over(Variant::Empty),
            over_constant_ns: over(Variant::Constant),
        }
    }
}

impl Goal {
    fn new(what: &'static str, measured: Vec<f64>, is_met: impl Fn(f64) -> bool) -> Self {
        Self { what, met: measured.iter().all(|number| is_met(*number)), measured }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.machine)?;
        writeln!(formatter, "{}\n", self.command)?;

        writeln!(formatter, "Making and closing a socket, and the ratio of the two in each round:\n")?;
        let mut table = table(["sockets", "measured", "against", "ns", "ns", "ratio min", "median", "max"], 3);
        for Comparison { sockets, measured, against, measured_ns, against_ns, ratio } in &self.comparisons {
            let [measured_ns, against_ns] = [measured_ns, against_ns].map(|ns| format!("{ns:.0}"));
            let [min, median, max] = [ratio.min, ratio.median, ratio.max].map(|ratio| format!("{ratio:.3}"));
            table.add_row([sockets.name(), measured, against, &measured_ns, &against_ns, &min, &median, &max]);
        }
        writeln!(formatter, "{table}\n")?;

        writeln!(formatter, "A run of the program, with what BPF statistics add to every run:\n")?;
        let mut table = self::table(["program", "ns min", "median", "max", "over empty", "over constant"], 1);
        for RunTime { program, run_ns, over_empty_ns, over_constant_ns } in &self.run_times {
            let numbers = [run_ns.min, run_ns.median, run_ns.max, *over_empty_ns, *over_constant_ns];
            table.add_row([(*program).to_owned()].into_iter().chain(numbers.map(|ns| format!("{ns:.1}"))));
        }
        writeln!(formatter, "{table}\n")?;

        let Spread { min, median, max } = self.unsteered_after_appearing;
        writeln!(
            formatter,
            "A cgroup that the daemon's configuration names is steered {median:.0} \u{b5}s after it has appeared (median; {min:.0} \
             to {max:.0}).\n"
        )?;

        for Goal { what, met, measured } in &self.goals {
            let verdict = if *met { "met" } else { "NOT met" };
            let measured: Vec<_> = measured.iter().map(|number| format!("{number:.3}")).collect();
            writeln!(formatter, "Goal {verdict}: {what} ({}).", measured.join(", "))?;
        }
        Ok(())
    }
}

/// A Markdown table whose first `words` columns are words and the others numbers.
fn table<const N: usize>(header: [&str; N], words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
