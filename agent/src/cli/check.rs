//! `steer check`: validate a configuration.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use crate::config;

/// Arguments of `steer check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = super::daemon::CONFIG)]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.config).with_context(|| format!("read {}", args.config.display()))?;
    let config = config::parse(&args.config.display().to_string(), &text)?;
    let count = config.policies.len();
    println!("{}: {count} {}, no mistakes", args.config.display(), if count == 1 { "policy" } else { "policies" });
    Ok(ExitCode::SUCCESS)
}
