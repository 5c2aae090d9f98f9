//! Rules and tables of many policies with `local`: the time until they are in force, and until they are gone.
//!
//! **Invariant:** the rules are counted after each turn, so a daemon that writes less does not appear fast.

use std::{collections::BTreeSet, fmt::Write as _, fs, time::Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use steer_lab::{Tables, Uplinks};

use super::Bed;
use crate::{interrupt, statistic::Latency};

/// The number of policies.
pub(super) const POLICIES: usize = 60;
/// More turns would add no information and take long.
const MOST_TURNS: u32 = 20;

/// Milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Rules {
    pub(super) in_force: Latency,
    pub(super) gone: Latency,
}

/// Measures with a daemon that gets the policies by a reload, and `steer off`.
pub(super) fn measure(bed: &Bed, rounds: u32) -> Result<Rules> {
    let uplinks = Uplinks::new()?;
    let before = Tables::read(&uplinks.client)?.rules;
    let (mut in_force, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..rounds.min(MOST_TURNS) {
        interrupt::check()?;
        bed.configure(1, |_| format!("{}/nothing", bed.name))?;
        let (daemon, _) = bed.start(&uplinks.client)?;
        let mut text = String::new();
        for i in 0..POLICIES {
            write!(
                text,
                "[[policy]]\nname = \"p{i}\"\ninterface = \"a1\"\nlocal = [\"host\"]\n\
                 except = [{{ to = \"203.0.113.{i}\", by = \"a0\" }}]\ncgroups = [\"{}/nothing-{i}\"]\n",
                bed.name
            )?;
        }
        fs::write(bed.directory.join("steer.toml"), text)?;
        in_force.push(daemon.reload()?);
        let tables = Tables::read(&uplinks.client)?;
        for is_ipv4 in [true, false] {
            let ours = tables.rules.iter().filter(|rule| rule.is_ipv4 == is_ipv4 && rule.mark != 0);
            let marks = ours.map(|rule| rule.mark).collect::<BTreeSet<_>>().len();
            ensure!(marks >= POLICIES, "rules of {marks} policies of {POLICIES}");
        }
        let start = Instant::now();
        bed.switch_off()?;
        gone.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(Tables::read(&uplinks.client)?.rules == before, "rules are left");
        drop(daemon);
    }
    Ok(Rules { in_force: Latency::of(in_force), gone: Latency::of(gone) })
}
