//! `steer check`: validate a configuration: the file, and those of single policies.

use std::{path::PathBuf, process::ExitCode};

use super::Instance;

/// Arguments of `steer check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = super::daemon::CONFIG)]
    config: PathBuf,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let store = instance.store(&args.config);
    let count = store.read()?.policies.len();
    for file in store.files()? {
        println!("{}: no mistakes", file.display());
    }
    println!("{count} {}", if count == 1 { "policy" } else { "policies" });
    Ok(ExitCode::SUCCESS)
}
