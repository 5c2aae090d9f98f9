//! An ordinary client program: see [`steer_lab::cli`]. The exit status is 0 if every probe was answered, 1 if not, 2
//! for wrong usage.

use clap::Parser;
use steer_lab::cli::{ProbeArgs, run};

#[derive(Parser)]
#[command(name = "steer-probe", about, version)]
struct Cli {
    #[command(flatten)]
    args: ProbeArgs,
}

fn main() -> std::process::ExitCode {
    match run(&Cli::parse().args, &mut std::io::stdout()) {
        Ok(true) => 0.into(),
        Ok(false) => 1.into(),
        Err(error) => {
            eprintln!("steer-probe: {error}");
            1.into()
        }
    }
}
