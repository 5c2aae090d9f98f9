//! The benchmark: what steering costs a program that makes sockets. `cargo xtask bench` builds and starts it. This file
//! parses, dispatches and prints the error chain once.
//!
//! **Invariant:** a timing never fails the benchmark; only an error does. Every ratio comes from batches that ran next to
//! each other, and every batch proves that its sockets were bound to what its variant says.

mod bed;
mod bpf;
mod interrupt;
mod machine;
mod report;
mod rounds;
mod statistic;
mod variant;
mod window;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser};

use crate::{bed::Bed, machine::Machine, report::Report, rounds::Rounds};

/// Measures what steering costs a program that makes sockets; needs root.
#[derive(Parser)]
#[command(name = "steer-bench")]
enum Cli {
    /// Measure and print.
    Run(Run),
    /// A process whose sockets are measured.
    #[command(hide = true)]
    Worker(worker::Args),
}

#[derive(Args)]
struct Run {
    /// The steer executable
    #[arg(long, value_name = "FILE", env = "STEER_BIN")]
    steer: PathBuf,
    /// How often each variant takes its turn
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sockets made in one turn
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    ops: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run {
    fn run(self) -> Result<()> {
        interrupt::watch()?;
        let mut bed = Bed::new(&self.steer)?;
        let rounds = Rounds { rounds: self.rounds, ops: self.ops };
        let wall = rounds.wall_clock(&mut bed)?;
        let run_time = rounds.run_time(&mut bed)?;
        let window = bed.window(self.rounds)?;
        let report = Report::new(Machine::read(bed.cpu())?, rounds, &wall, &run_time, window);
        // Cleaned up before anything is printed, so that what fails in it stands out at the end of neither.
        drop(bed);
        if self.json {
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
        Cli::Worker(args) => worker::serve(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
