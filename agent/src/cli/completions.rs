//! `steer completions`: completions of command lines for a shell.

use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output::write};

/// Arguments of `steer completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // It panics if its writer fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut shown(), "steer", &mut text);
    write(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The command line without hidden commands.
fn shown() -> Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("steer")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(whole.get_arguments().cloned())
        .subcommands(commands)
}
