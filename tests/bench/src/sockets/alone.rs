//! Two workers that are compared with each other before and after another change.

use std::path::Path;

use anyhow::Result;

use super::{
    job::{Answer, Job},
    variant::Kind,
};
use crate::{
    statistic::Spread,
    worker::{self, Worker},
};

/// Sockets made in one turn.
const OPS: u32 = 200;

/// A process that makes sockets in a cgroup.
pub(crate) struct Alone(Worker);

impl Alone {
    pub(crate) fn start(cgroup: &Path) -> Result<Self> {
        Ok(Self(Worker::start("alone", &["sockets"], cgroup, worker::cpu()?)?))
    }

    /// Makes sockets. Returns the nanoseconds for each.
    pub(crate) fn turn(&mut self) -> Result<f64> {
        let Answer { elapsed, .. } = self.0.ask(&Job { kind: Kind::Udp4, bind: false, ops: OPS })?;
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(OPS))
    }

    /// The ratio of the times of a UDP socket in the two cgroups, turn by turn.
    pub(crate) fn against(&mut self, other: &mut Self, rounds: u32) -> Result<Spread> {
        // The first turns run with cold caches.
        self.turn()?;
        other.turn()?;
        let mut ratios = Vec::new();
        for round in 0..rounds {
            // The order alternates.
            let (here, there) = if round % 2 == 0 {
                let here = self.turn()?;
                (here, other.turn()?)
            } else {
                let there = other.turn()?;
                (self.turn()?, there)
            };
            ratios.push(here / there);
        }
        Ok(Spread::of(ratios))
    }
}
