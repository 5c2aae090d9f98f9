//! A worker that is compared with itself, before and after something else has changed.

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

    /// The nanoseconds that a UDP socket takes.
    pub(crate) fn measure(&mut self, rounds: u32) -> Result<Spread> {
        let job = Job { kind: Kind::Udp4, bind: false, ops: OPS };
        let mut turn = || {
            let Answer { elapsed, .. } = self.0.ask(&job)?;
            Ok(elapsed.as_secs_f64() * 1e9 / f64::from(OPS))
        };
        // The first one meets cold caches.
        turn()?;
        Ok(Spread::of((0..rounds).map(|_| turn()).collect::<Result<Vec<_>>>()?))
    }
}
