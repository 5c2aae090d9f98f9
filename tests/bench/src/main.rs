//! The benchmark: the cost of steering for a program that makes sockets and for one that sends. `cargo xtask bench`
//! builds and starts it. This file parses the command line, dispatches, and prints the error chain once.
//!
//! **Invariant:** a timing never fails the benchmark; only an error does. Every ratio compares batches that ran next to
//! each other.

mod bpf;
mod cgroups;
mod chart;
mod containers;
mod daemon;
mod failover;
mod goal;
mod interrupt;
mod load;
mod machine;
mod mount;
mod report;
mod rounds;
mod scale;
mod sockets;
mod statistic;
mod steering;
mod traffic;
mod window;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser};

use crate::{machine::Machine, report::Report, rounds::Rounds};

/// Measures the cost of steering for a program that makes sockets and for one that sends. Needs root.
#[derive(Parser)]
#[command(name = "steer-bench")]
enum Cli {
    /// Measure and print.
    Run(Run),
    /// A process that makes sockets.
    #[command(hide = true)]
    Sockets(worker::Place),
    /// A process that sends.
    #[command(hide = true)]
    Traffic(traffic::Place),
    /// A process of clients that connect.
    #[command(hide = true)]
    Clients(worker::Place),
    /// A process that loads the daemon.
    #[command(hide = true)]
    Storm(load::Storm),
}

#[derive(Args)]
struct Run {
    /// The steer executable
    #[arg(long, value_name = "FILE", env = "STEER_BIN")]
    steer: PathBuf,
    /// Number of turns of each variant
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sockets made in one turn
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    ops: u32,
    /// Number of cgroups to attach in the measurement of scale
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..))]
    cgroups: u32,
    /// Measure only groups of uplinks
    #[arg(long, conflicts_with = "report")]
    failover: bool,
    /// Also write the report as bench.md and bench.svg into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run {
    fn run(self) -> Result<()> {
        interrupt::watch()?;
        let Self { ref steer, rounds, ops, cgroups, failover, report: ref report_directory, json } = self;
        if failover {
            return failover::measure(steer, Rounds(rounds), cgroups)?.print(json);
        }
        let machine = Machine::read(worker::cpu()?)?;
        let command = format!("cargo xtask bench --rounds {rounds} --ops {ops} --cgroups {cgroups}");
        let mut bed = sockets::Bed::new(steer)?;
        let sockets = sockets::measure(&mut bed, Rounds(rounds), ops)?;
        let unsteered_after_appearing = bed.window(rounds)?;
        // Clean-up comes before printing, so that its errors are not in the middle of the report.
        drop(bed);
        let report = Report {
            machine,
            command,
            sockets,
            unsteered_after_appearing,
            traffic: traffic::measure(steer, Rounds(rounds))?,
            containers: containers::measure(steer, Rounds(rounds))?,
            scale: scale::measure(steer, cgroups, rounds)?,
            load: load::measure(steer, rounds)?,
            failover: failover::measure(steer, Rounds(rounds), cgroups)?,
            goals: Vec::new(),
        }
        .judged();
        let directory = report_directory.as_deref();
        if let Some(directory) = directory {
            report.write(directory)?;
        }
        if json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Run(run) => run.run(),
        Cli::Sockets(place) => sockets::serve(&place),
        Cli::Traffic(place) => traffic::serve(&place),
        Cli::Clients(place) => failover::serve(&place),
        Cli::Storm(storm) => load::serve(&storm),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
