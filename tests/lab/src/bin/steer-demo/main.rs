//! Demonstrates steer. The exit status is 0 if all results were as expected, 1 if not, 2 for wrong usage.
//!
//! **Invariant:** it runs the `steer` binary as a user would, and links none of its code.

mod failover;
mod report;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};
use steer_lab::{cli::ProbeArgs, escape::EscapeArgs};

/// Demonstrate steering in temporary network namespaces
#[derive(Parser)]
#[command(name = "steer-demo", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// The steer binary to demonstrate [default: the one beside this program, or else ../../bin/steer from there, /usr/bin/steer]
    #[arg(long, value_name = "FILE")]
    steer: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    client: Option<Client>,
}

/// The programs that the demonstration runs under steer.
#[derive(Subcommand)]
enum Client {
    /// The client
    #[command(hide = true)]
    Probe(ProbeArgs),
    /// The client that tries to escape
    #[command(hide = true)]
    Escape(EscapeArgs),
    /// The client that connects all the while
    #[command(hide = true)]
    Clients {
        /// Its cgroup
        cgroup: PathBuf,
        /// What it does, in JSON
        how: String,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("steer-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.client {
        Some(Client::Probe(args)) => return Ok(steer_lab::cli::run(args, &mut io::stdout())?),
        Some(Client::Escape(args)) => return Ok(steer_lab::escape::run(args, &mut io::stdout()).map(|()| true)?),
        Some(Client::Clients { cgroup, how }) => return failover::client(cgroup, how),
        None => {}
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "making network namespaces and loading BPF programs needs root: run it with sudo"
    );
    let report = report::run(&steer(cli.steer.as_deref())?)?;
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.steering_works())
}

/// Finds the steer binary. Packages install this program in PREFIX/libexec/steer.
fn steer(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find the path of this program")?;
    let places: Vec<PathBuf> = if let Some(named) = named {
        vec![named.to_owned()]
    } else {
        let prefix = this.ancestors().nth(4).map(|prefix| prefix.join("bin/steer"));
        [Some(this.with_file_name("steer")), prefix, Some("/usr/bin/steer".into())].into_iter().flatten().collect()
    };
    if let Some(path) = places.iter().find(|path| path.is_file()) {
        return Ok(path.clone());
    }
    let places = places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    bail!("no steer binary at {}; specify one with --steer FILE", places.join(" or "))
}
