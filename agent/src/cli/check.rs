//! `steer check`: validate a configuration: the main file, and the files of single policies.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{output::say, target::links};
use crate::{
    host::{
        link::Table,
        policy_files::{self, Store},
    },
    model::{
        config::{Config, Problem},
        quote::shown,
        spec::{NOTHING, PolicySpec},
    },
    observe::doubts::{self, Doubt},
    run::instance::{CONFIG, Instance},
};

/// Arguments of `steer check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A name that this host does not know, such as that of a unit or of an interface, is a warning. Exit status: 0 if there are no mistakes, 1 if a file cannot be read, 2 if there are mistakes."
)]
pub(super) struct Args {
    /// The configuration file [default: /etc/steer/steer.toml]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same, as with other commands
    #[arg(long, short, value_name = "FILE", default_value = CONFIG, hide_default_value = true)]
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
    /// Names that this host does not know.
    warnings: Vec<Doubt>,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let store = instance.store(args.file.as_ref().unwrap_or(&args.config));
    let read = store.read();
    if args.json {
        let (config, problems) = match read {
            Ok(config) => (Some(config), Vec::new()),
            Err(policy_files::Error::Invalid(found)) => (None, found.problems),
            Err(error) => return Err(error.into()),
        };
        let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
        let policies = config.as_ref().map(|config| config.policies.len());
        let warnings = config.as_ref().map(|config| doubts(config, links().ok().as_ref())).unwrap_or_default();
        let defaults = config.map(|config| config.defaults);
        let output = Output { files: store.files()?, policies, defaults, problems, warnings };
        say!("{}", serde_json::to_string_pretty(&output)?)?;
        return Ok(code);
    }
    report(&store, &read?, links().ok().as_ref())?;
    Ok(ExitCode::SUCCESS)
}

/// The names that this host does not know. `links`: those that there are, if they are known.
fn doubts(config: &Config, links: Option<&Table>) -> Vec<Doubt> {
    let about_links = links.map(|links| doubts::about_links(config, links));
    doubts::doubts(config).into_iter().chain(about_links.into_iter().flatten()).collect()
}

/// Prints what is in the files, which have no mistakes.
pub(super) fn report(store: &Store, config: &Config, links: Option<&Table>) -> anyhow::Result<()> {
    let count = config.policies.len();
    for file in store.files()? {
        say!("{}: no mistakes", file.display())?;
    }
    say!("{count} {}", if count == 1 { "policy" } else { "policies" })?;
    for (key, texts) in config.defaults.entries() {
        let texts = if texts.is_empty() { NOTHING.to_owned() } else { texts.join(", ") };
        say!("default {}: {texts}", key.name)?;
    }
    for doubt in doubts(config, links) {
        say!("warning: {}", shown(&doubt.to_string()))?;
    }
    Ok(())
}
