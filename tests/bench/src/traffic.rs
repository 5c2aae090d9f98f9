//! The cost of steering for a program that sends: packets, bits and connections per second through a veth to a server
//! in another network namespace. It is compared with no policy and with the alternatives to steer.
//!
//! **Invariant:** one CPU does all the work, including the receiver's, so the cost of a way shows in its rate. Every
//! turn proves that its bytes left by the uplink of its way.

mod bed;
mod flow;
mod foreign;
mod load;
mod report;
mod way;
mod worker;

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use self::{bed::Bed, load::Load, way::Way};
pub(crate) use self::{
    report::Report,
    worker::{Place, serve},
};
use crate::rounds::Rounds;

/// The number of times, for each load, that the processes are replaced.
const PARTS: u32 = 10;

/// Packets, bits or connections per second, one number per round.
type Rates = BTreeMap<(Load, Way), Vec<f64>>;

/// Measures every load on every way that this machine supports.
pub(crate) fn measure(steer: &Path, rounds: Rounds) -> Result<Report> {
    let mut bed = Bed::new(steer)?;
    let mut rates = Rates::new();
    // One load after the other, so that the ways of a round are measured next to each other.
    for load in Load::all() {
        for part in rounds.parts(PARTS) {
            bed.renew_workers()?;
            for (way, samples) in part.take_turns(&mut bed.ways(), |way| bed.measure(*way, load))? {
                rates.entry((load, way)).or_default().extend(samples);
            }
        }
    }
    Ok(Report::new(&rates, bed.into_unavailable()))
}
