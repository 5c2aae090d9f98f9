//! `steer demo`: see it work.

use std::process::ExitCode;

use crate::{host::capability::require_privilege, run::demo};

/// Arguments of `steer demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    require_privilege("demo")?;
    let report = demo::run()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.steering_works() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
