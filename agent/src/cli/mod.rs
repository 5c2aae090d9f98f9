//! The command line: one file per command, each an `Args` and a `run`.

mod attach;
mod check;
mod completions;
mod daemon;
mod demo;
mod detach;
mod exec;
mod keep;
mod off;
mod reload;
mod status;
mod target;
mod unit;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    config::Problems,
    daemon::Emptied,
    datapath::{self, Pins},
    log_lines,
};

/// Where pins go unless told otherwise.
const PIN_DIRECTORY: &str = "/sys/fs/bpf/steer";

/// Makes Linux send a program's traffic through the interface you chose, and nowhere else.
#[derive(Debug, Parser)]
#[command(name = "steer", version, propagate_version = true)]
pub struct Cli {
    /// Directory for pins, on a bpffs (mounted if it is missing); each is an instance of its own
    #[arg(long, global = true, value_name = "DIR", env = "STEER_BPFFS", default_value = PIN_DIRECTORY)]
    bpffs: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command whose sockets all leave by one interface
    Exec(exec::Args),
    /// Steer the cgroups of a configuration, and follow interfaces and cgroups
    Daemon(daemon::Args),
    /// Check a configuration; needs no privilege
    Check(check::Args),
    /// Steer a cgroup
    Attach(attach::Args),
    /// Stop steering a cgroup
    Detach(detach::Args),
    /// Let systemd steer a service from its first socket on, or not start it
    Unit(unit::Args),
    /// Stop steering everything and remove every trace, with or without a daemon
    Off(off::Args),
    /// Show policies, steered cgroups and counters, with or without a daemon
    Status(status::Args),
    /// Print the completions for a shell
    Completions(completions::Args),
    /// Show steering at work between network namespaces made for it
    Demo(demo::Args),
    /// The client program of `demo`
    #[command(hide = true)]
    Probe(steer_lab::cli::ProbeArgs),
    /// What `exec` leaves behind to clean up after its command
    #[command(hide = true)]
    Keep(keep::Args),
    /// What `systemctl reload` does
    #[command(hide = true)]
    Reload(reload::Args),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let default_level = match &self.command {
            Command::Daemon(args) => args.log_level(),
            _ => "warn",
        };
        log_lines::init(default_level);
        if !matches!(self.command, Command::Exec(_) | Command::Daemon(_) | Command::Keep(_)) {
            end_with_the_reader();
        }
        let pins = PinDirectory(self.bpffs);
        match self.command {
            Command::Exec(args) => exec::run(args, &pins),
            Command::Daemon(args) => daemon::run(args, &pins),
            Command::Check(args) => check::run(&args),
            Command::Attach(args) => attach::run(&args, &pins),
            Command::Detach(args) => detach::run(&args, &pins),
            Command::Unit(args) => unit::run(&args, &pins),
            Command::Off(args) => off::run(&args, &pins),
            Command::Status(args) => status::run(&args, &pins),
            Command::Completions(args) => Ok(completions::run(&args)),
            Command::Demo(args) => demo::run(&args),
            Command::Probe(args) => {
                let answered = steer_lab::cli::run(&args, &mut std::io::stdout().lock())?;
                Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Command::Keep(args) => keep::run(&args, &pins),
            Command::Reload(args) => reload::run(&args),
        }
    }
}

/// The pin directory as the user named it.
#[derive(Debug)]
struct PinDirectory(PathBuf);

impl PinDirectory {
    /// For changing: the bpffs is mounted if it is missing.
    fn to_change(&self) -> Result<Pins, datapath::Error> {
        Ok(Pins::new(datapath::bpffs::locate_or_mount(&self.0)?))
    }

    /// For looking: `None` when there is no bpffs, so nothing can be pinned.
    fn to_look(&self) -> Option<Pins> {
        datapath::bpffs::locate(&self.0).map(Pins::new)
    }
}

/// An error and its causes on one line. A cause that the text before already tells is not told again.
pub fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.is_empty() {
        true => cause,
        false if told.contains(&cause) => told,
        false => format!("{told}: {cause}"),
    })
}

/// 2 for a wrong configuration, as for a wrong command line; 1 for everything else.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Problems>() || error.is::<Emptied>() {
        return ExitCode::from(2);
    }
    match error.downcast_ref::<exec::Failed>() {
        Some(failed) => ExitCode::from(failed.code()),
        None => ExitCode::FAILURE,
    }
}

/// A command that prints ends quietly when nobody reads on, as under `| head`.
fn end_with_the_reader() {
    // SAFETY: the default action is no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A runtime for commands that speak netlink.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
