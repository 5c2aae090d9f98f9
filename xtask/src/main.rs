//! `cargo xtask`: the project's only development tool. This file parses the command line and dispatches.
//!
//! **Invariant**: the tool itself never changes a cgroup, an interface or a BPF object; only the programs that it starts do.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod cargo;
mod containerd;
mod dependencies;
mod dist;
mod fuzz;
mod lint;
mod managers;
mod portable;
mod release;
mod root;
mod run;
mod setup;
mod suites;
mod tally;
mod test;
mod toolchain;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set up, run, test, measure, lint and pack steer")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Setup),
    Run(run::Run),
    Test(test::Test),
    Bench(bench::Bench),
    Fuzz(fuzz::Fuzz),
    Vm(vm::Vm),
    Peers(vm::Peers),
    Managers(managers::Managers),
    Suites(suites::Suites),
    /// Check formatting, lints, dependencies and documentation.
    Lint,
    Dist(dist::Dist),
    Release(release::Release),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup(setup) => setup.run().map(|()| ExitCode::SUCCESS),
        Verb::Run(run) => run.run(),
        Verb::Test(test) => test.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Fuzz(fuzz) => fuzz.run(),
        Verb::Vm(vm) => vm.run(),
        Verb::Peers(peers) => peers.run(),
        Verb::Managers(managers) => managers.run(),
        Verb::Suites(suites) => suites.run(),
        Verb::Lint => lint::run().map(|()| ExitCode::SUCCESS),
        Verb::Dist(dist) => dist.run(),
        Verb::Release(release) => release.run(),
    }
}
