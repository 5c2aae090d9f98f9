//! Groups of uplinks: how long new connections go by a member that has failed, whether all leave it, how sockets are
//! shared, and what a group costs.
//!
//! **Invariant:** the time of a failure is read before the call that causes it, and that of a connection when a client
//! has it. So the measured times are never too short.

mod bed;
mod report;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use steer_common::program;
use steer_lab::Clients;

pub(crate) use self::bed::serve;
use self::bed::{Bed, Failure};
use crate::{
    bpf::{self, RunTime},
    interrupt,
    rounds::Rounds,
    sockets::Alone,
    statistic::{Latency, Spread},
};

/// The most failures of a kind.
const MOST_RUNS: u32 = 50;
/// The most failures with many cgroups.
const MOST_SWITCHES: u32 = 10;
/// The clients that connect all the while.
const CLIENTS: u32 = 1_000;
/// The sockets that are shared 3:1.
const SHARED: u32 = 400;
/// The intervals of the probes, in milliseconds.
const INTERVALS_MS: [u32; 2] = [1_000, 300];

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// How many failures of each kind.
    runs: u32,
    /// A black hole behind a live carrier, for each interval of probes.
    black_hole: Vec<Switch>,
    carrier: Switch,
    crowd: Crowd,
    /// The percentage of the sockets that the member with three of four shares has.
    share: Spread,
    cost: Cost,
    /// The number of cgroups of one group.
    cgroups: u32,
    /// How many records decide for all of them.
    records: usize,
    /// The loss of the carrier with so many cgroups.
    many: Switch,
}

/// The time from the failure, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Switch {
    /// Until a client has a connection by the other member.
    connected_ms: Latency,
    /// Until a connection that was there before has ended.
    ended_ms: Latency,
}

/// Many clients that connect all the while.
#[derive(Clone, Copy, Debug, Serialize)]
struct Crowd {
    clients: u32,
    per_second: f64,
    /// Sockets made on the failed member after one was made on the other.
    late: u64,
    connected_ms: f64,
}

/// The cost of a new socket under a group, and under a policy with one uplink.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// Nanoseconds of a run of the program, by BPF statistics.
    group_ns: f64,
    one_ns: f64,
    more_ns: Spread,
    /// The ratio by the wall clock.
    ratio: Spread,
}

/// A process under the group or under the policy with one uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Under {
    Group,
    One,
}

/// Measures everything.
pub(crate) fn measure(steer: &Path, Rounds(rounds): Rounds, cgroups: u32) -> Result<Report> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of open files")?;
    let runs = (rounds / 2).clamp(1, MOST_RUNS);
    let mut bed = Bed::new(steer)?;

    let mut black_hole = Vec::new();
    for interval in INTERVALS_MS {
        bed.start(&format!("probe = {{ targets = [\"gateway\"], interval = \"{interval}ms\", rise = 1 }}"))?;
        let interval = Duration::from_millis(interval.into());
        black_hole.push(switches(&mut bed, Failure::BlackHole, runs, interval)?);
    }
    let places = [bed.cgroups.add("p/cost")?, bed.cgroups.add("one")?];
    bed.start("")?;
    // While both members work.
    let share = share(&mut bed, runs)?;
    let cost = cost(&bed, &places, Rounds(rounds))?;
    let carrier = switches(&mut bed, Failure::Carrier, runs, Duration::ZERO)?;
    let crowd = crowd(&mut bed)?;

    for number in 0..cgroups {
        interrupt::check()?;
        bed.cgroups.add(&format!("p/c{number}"))?;
    }
    bed.start("")?;
    let attached = bed.attached()?;
    ensure!(attached >= usize::try_from(cgroups)?, "{attached} cgroups are attached, of {cgroups}");
    let many = switches(&mut bed, Failure::Carrier, runs.min(MOST_SWITCHES), Duration::ZERO)?;
    // One more is that of the group "shared".
    let records = bed.groups()?.len() - 1;
    Ok(Report { runs, black_hole, carrier, crowd, share, cost, cgroups, records, many })
}

/// Fails the preferred member again and again, at each point of the interval of probes.
fn switches(bed: &mut Bed, failure: Failure, runs: u32, interval: Duration) -> Result<Switch> {
    let (mut connected, mut ended) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // The golden ratio: the points are evenly spread for any number of runs.
        let delay = interval.mul_f64((f64::from(run) * 0.618_034).fract());
        let (first, last, _) = bed.failover(failure, 1, delay, Duration::ZERO)?;
        connected.push(first.as_secs_f64() * 1e3);
        ended.push(last.as_secs_f64() * 1e3);
    }
    Ok(Switch { connected_ms: Latency::of(connected), ended_ms: Latency::of(ended) })
}

/// The loss of the carrier, because probes could fail under the load.
fn crowd(bed: &mut Bed) -> Result<Crowd> {
    let (before, after) = (Duration::from_millis(400), Duration::from_millis(500));
    let (first, _, report) = bed.failover(Failure::Carrier, CLIENTS, before, after)?;
    let made: u64 = report.stretches.iter().map(|stretch| stretch.made).sum();
    let since = report.stretches.first().context("no client has connected")?.since;
    let until = report.ended.last().context("the kept connection has not ended")?.0 + after;
    Ok(Crowd {
        clients: CLIENTS,
        per_second: f64::from(u32::try_from(made)?) / until.saturating_sub(since).as_secs_f64(),
        late: report.late(),
        connected_ms: first.as_secs_f64() * 1e3,
    })
}

/// The percentage of the member with three of four shares.
fn share(bed: &mut Bed, runs: u32) -> Result<Spread> {
    let heavy = bed.lab.ifindex(0)?.cast_signed();
    // Each client connects once.
    let clients = Clients {
        count: SHARED,
        interval: Duration::from_mins(1),
        addresses: 2,
        after: Duration::from_millis(100),
        patience: Duration::from_secs(5),
        ..Clients::once(bed.target())
    };
    let mut shares = Vec::new();
    for _ in 0..runs {
        interrupt::check()?;
        let report = bed.share(clients)?;
        let of_heavy = report.stretches.iter().filter(|stretch| stretch.interface == heavy);
        let made: u64 = of_heavy.map(|stretch| stretch.made).sum();
        shares.push(f64::from(u32::try_from(made)?) * 100.0 / f64::from(SHARED));
    }
    Ok(Spread::of(shares))
}

fn cost(bed: &Bed, [grouped, one]: &[PathBuf; 2], rounds: Rounds) -> Result<Cost> {
    let worker = |cgroup: &Path| bed.lab.client.run(|| Alone::start(cgroup))?;
    let (mut grouped, mut one) = (worker(grouped)?, worker(one)?);
    let ratio = grouped.against(&mut one, rounds.0)?;
    let pin = bed.steering().program_pin(program::SOCK_CREATE);
    let program = bpf::open_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    let _enabled = bpf::enable_statistics().context("enable BPF statistics")?;
    let samples = rounds.take_turns(&mut [Under::Group, Under::One], |under| {
        let before = RunTime::of(&program)?;
        match under {
            Under::Group => grouped.turn()?,
            Under::One => one.turn()?,
        };
        RunTime::of(&program)?.per_run_since(before).with_context(|| format!("no program ran for {under:?}"))
    })?;
    let (of_group, of_one) = (&samples[&Under::Group], &samples[&Under::One]);
    Ok(Cost {
        group_ns: Spread::of(of_group.iter().copied()).median,
        one_ns: Spread::of(of_one.iter().copied()).median,
        more_ns: Spread::of_pairs(of_group, of_one, |group, one| group - one),
        ratio,
    })
}
