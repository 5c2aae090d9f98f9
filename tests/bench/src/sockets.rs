//! The cost of a socket: compared with no steering, and with `setsockopt` by the program or by a preloaded library. The
//! kernel's statistics measure the programs alone.
//!
//! **Invariant:** every batch proves that its sockets were bound to the interface of its variant. BPF statistics are
//! off while the wall clock is measured, because they slow down every run of a program.

mod alone;
mod bed;
mod job;
mod report;
mod variant;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use self::variant::{Kind, Variant};
pub(crate) use self::{alone::Alone, bed::Bed, job::serve, report::Report};
use crate::{
    bpf::{self, RunTime},
    rounds::Rounds,
};

/// Nanoseconds, one number per round.
type WallClock = BTreeMap<(Kind, Variant), Vec<f64>>;
/// The same for the programs alone.
type ProgramTime = BTreeMap<Variant, Vec<f64>>;

/// Measures everything. Each turn makes `ops` sockets.
pub(crate) fn measure(bed: &mut Bed, rounds: Rounds, ops: u32) -> Result<Report> {
    Ok(Report::new(&wall_clock(bed, rounds, ops)?, &run_time(bed, rounds, ops)?))
}

/// The time to make and close a socket.
fn wall_clock(bed: &mut Bed, rounds: Rounds, ops: u32) -> Result<WallClock> {
    let mut turns: Vec<_> =
        Kind::ALL.into_iter().flat_map(|kind| Variant::ALL.map(|variant| (kind, variant))).collect();
    rounds.take_turns(&mut turns, |&(kind, variant)| bed.measure(variant, kind, ops))
}

/// The time of a run of each program, as measured by the kernel, for IPv4 UDP sockets.
fn run_time(bed: &mut Bed, rounds: Rounds, ops: u32) -> Result<ProgramTime> {
    let _enabled = bpf::enable_statistics().context("enable BPF statistics")?;
    let mut turns = [Variant::Steered, Variant::Nested, Variant::Routed, Variant::Constant, Variant::Empty];
    rounds.take_turns(&mut turns, |&variant| {
        let read = |bed: &Bed| {
            let program = bed.program(variant).context("the variant has no program")?;
            RunTime::of(program).context("read a program's statistics")
        };
        let before = read(bed)?;
        bed.measure(variant, Kind::Udp4, ops)?;
        let per_run = read(bed)?.per_run_since(before);
        per_run.with_context(|| format!("the program of {:?} did not run", variant.name()))
    })
}
