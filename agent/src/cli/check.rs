//! `steer check`: validate a configuration: the main file, and the files of single policies.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::output::say;
use crate::{
    host::policy_files,
    model::{
        config::Problem,
        spec::{NOTHING, PolicySpec},
    },
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
    /// `[defaults]`; absent if there are mistakes.
    defaults: Option<PolicySpec>,
    /// The mistakes.
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let store = instance.store(&args.config);
    let read = store.read();
    if args.json {
        let (config, problems) = match read {
            Ok(config) => (Some(config), Vec::new()),
            Err(policy_files::Error::Invalid(found)) => (None, found.problems),
            Err(error) => return Err(error.into()),
        };
        let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
        let policies = config.as_ref().map(|config| config.policies.len());
        let defaults = config.map(|config| config.defaults);
        say!("{}", serde_json::to_string_pretty(&Output { files: store.files()?, policies, defaults, problems })?)?;
        return Ok(code);
    }
    let config = read?;
    let count = config.policies.len();
    for file in store.files()? {
        say!("{}: no mistakes", file.display())?;
    }
    say!("{count} {}", if count == 1 { "policy" } else { "policies" })?;
    for (key, texts) in config.defaults.entries() {
        let texts = if texts.is_empty() { NOTHING.to_owned() } else { texts.join(", ") };
        say!("default {}: {texts}", key.name)?;
    }
    Ok(ExitCode::SUCCESS)
}
