//! `steer check`: validate a configuration: the main file, and the files of single policies.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::output::say;
use crate::{
    host::policy_files,
    model::config::Problem,
    run::instance::{CONFIG, Instance},
};

/// Arguments of `steer check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 if there are no mistakes, 1 if a file cannot be read, 2 if there are mistakes.")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON, including the mistakes
    #[arg(long)]
    json: bool,
}

/// The output of `--json`. The field names are stable.
#[derive(Serialize)]
struct Output {
    /// The files that were read.
    files: Vec<PathBuf>,
    /// The number of policies; absent if there are mistakes.
    policies: Option<usize>,
    /// The mistakes.
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let store = instance.store(&args.config);
    let read = store.read();
    if args.json {
        let (policies, problems) = match read {
            Ok(config) => (Some(config.policies.len()), Vec::new()),
            Err(policy_files::Error::Invalid(found)) => (None, found.problems),
            Err(error) => return Err(error.into()),
        };
        let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
        say!("{}", serde_json::to_string_pretty(&Output { files: store.files()?, policies, problems })?)?;
        return Ok(code);
    }
    let count = read?.policies.len();
    for file in store.files()? {
        say!("{}: no mistakes", file.display())?;
    }
    say!("{count} {}", if count == 1 { "policy" } else { "policies" })?;
    Ok(ExitCode::SUCCESS)
}
