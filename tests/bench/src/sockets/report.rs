//! The tables and goals of this measurement.
//!
//! **Invariant:** the JSON contains every printed number.

use std::fmt;

use serde::Serialize;

use super::{
    ProgramTime, WallClock,
    variant::{Kind, Variant},
};
use crate::{chart::Bars, goal::Goal, report::table, statistic::Spread};

/// The allowed ratio of the time of a steered socket.
const MAX_RATIO: f64 = 1.03;
/// The allowed additional time of steer's program compared with the constant program.
const MAX_OVER_CONSTANT_NS: f64 = 25.0;

/// The comparisons by the wall clock.
const PAIRS: [(Variant, Variant); 9] = [
    (Variant::Steered, Variant::Unsteered),
    (Variant::Steered, Variant::Setsockopt),
    (Variant::Steered, Variant::Preload),
    (Variant::Nested, Variant::Unsteered),
    (Variant::Routed, Variant::Unsteered),
    (Variant::Setsockopt, Variant::Unsteered),
    (Variant::Preload, Variant::Unsteered),
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

/// One program, as timed by the kernel.
#[derive(Debug, Serialize)]
struct RunTime {
    program: &'static str,
    run_ns: Spread,
    over_empty_ns: f64,
    over_constant_ns: f64,
}

/// The cost of sockets.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    comparisons: Vec<Comparison>,
    run_times: Vec<RunTime>,
}

impl Report {
    pub(super) fn new(wall: &WallClock, programs: &ProgramTime) -> Self {
        let comparisons = PAIRS.iter().flat_map(|&pair| Kind::ALL.map(|kind| Comparison::new(wall, kind, pair)));
        let run_times = programs.keys().map(|variant| RunTime::new(programs, *variant));
        Self { comparisons: comparisons.collect(), run_times: run_times.collect() }
    }

    /// The time of a socket, relative to one without any program.
    pub(crate) fn bars(&self) -> Bars {
        let ours = self.comparisons.iter().filter(|pair| pair.against == Variant::Unsteered.name());
        let bars = ours.map(|pair| (format!("{}, {}", pair.measured, pair.sockets.name()), pair.ratio.median));
        Bars { title: "A new socket: time, unsteered = 1".to_owned(), bars: bars.collect() }
    }

    pub(crate) fn goals(&self) -> [Goal; 5] {
        let steered = self.run_times.iter().filter(|program| program.program == Variant::Steered.name());
        let over_constant = steered.map(|program| program.over_constant_ns).collect();
        [
            Goal::new(
                "a steered socket takes at most 1.03 times as long as an unsteered one",
                self.medians(PAIRS[0]),
                |ratio| ratio <= MAX_RATIO,
            ),
            Goal::new(
                "the same of a policy with `local`",
                self.medians((Variant::Routed, Variant::Unsteered)),
                |ratio| ratio <= MAX_RATIO,
            ),
            Goal::new(
                "a steered socket takes less time than one bound by setsockopt",
                self.medians(PAIRS[1]),
                |ratio| ratio < 1.0,
            ),
            Goal::new(
                "a steered socket takes less time than one bound by an LD_PRELOAD wrapper",
                self.medians(PAIRS[2]),
                |ratio| ratio < 1.0,
            ),
            Goal::new("a run takes at most 25 ns more than that of a constant program", over_constant, |over_ns| {
                over_ns <= MAX_OVER_CONSTANT_NS
            }),
        ]
    }

    fn medians(&self, (measured, against): (Variant, Variant)) -> Vec<f64> {
        let ours = self.comparisons.iter();
        let ours = ours.filter(|pair| (pair.measured, pair.against) == (measured.name(), against.name()));
        ours.map(|pair| pair.ratio.median).collect()
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

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "Making and closing a socket, and the ratio of the two in each round:\n")?;
        let mut table = table(["sockets", "measured", "against", "ns", "ns", "ratio min", "median", "max"], 3);
        for Comparison { sockets, measured, against, measured_ns, against_ns, ratio } in &self.comparisons {
            let [measured_ns, against_ns] = [measured_ns, against_ns].map(|ns| format!("{ns:.0}"));
            let [min, median, max] = [ratio.min, ratio.median, ratio.max].map(|ratio| format!("{ratio:.3}"));
            table.add_row([sockets.name(), measured, against, &measured_ns, &against_ns, &min, &median, &max]);
        }
        writeln!(formatter, "{table}\n")?;

        writeln!(formatter, "A run of the program, with what BPF statistics add to every run:\n")?;
        let mut table = crate::report::table(["program", "ns min", "median", "max", "over empty", "over constant"], 1);
        for RunTime { program, run_ns, over_empty_ns, over_constant_ns } in &self.run_times {
            let numbers = [run_ns.min, run_ns.median, run_ns.max, *over_empty_ns, *over_constant_ns];
            table.add_row([(*program).to_owned()].into_iter().chain(numbers.map(|ns| format!("{ns:.1}"))));
        }
        writeln!(formatter, "{table}")
    }
}
