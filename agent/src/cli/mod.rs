//! The command line: one file per command, each an `Args` and a `run`.

mod attach;
mod cautions;
mod changes;
mod check;
mod completions;
mod daemon;
mod detach;
mod doctor;
mod events;
mod exec;
mod explain;
mod hook;
mod identity;
mod interfaces;
mod keep;
pub mod log_lines;
mod off;
mod only;
mod output;
mod plan;
mod policy;
mod reload;
mod status;
mod status_text;
mod target;
mod top;
mod unit;
mod uplink;
mod uplinks;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use nix::sys::stat::{Mode, umask};

use crate::{
    host::policy_files,
    run::{
        api::{Health, client},
        daemon::Emptied,
        instance::{CONFIG, Instance, PIN_DIRECTORY},
    },
};

/// Makes Linux send a program's traffic through the interface you chose, and nowhere else.
#[derive(Debug, Parser)]
#[command(name = "steer", version, propagate_version = true)]
pub struct Cli {
    /// Directory for pins, on a bpffs (mounted if it is missing); each is a separate instance of steer
    #[arg(long, global = true, value_name = "DIR", env = "STEER_BPFFS", default_value = PIN_DIRECTORY)]
    bpffs: PathBuf,
    /// Socket of the daemon's API [default: /run/steer/steer.sock; for another pin directory /run/steer/-PATH.sock, with - for each slash in its path]
    #[arg(long, global = true, value_name = "SOCKET", env = "STEER_SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command whose sockets all use one interface
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
    /// Stop steering everything and remove all pins, with or without a daemon
    Off(off::Args),
    /// Show policies, steered cgroups and counters, with or without a daemon
    Status(status::Args),
    /// Show, keep and remove policies
    Policy(policy::Args),
    /// Show what a reload, or the start of the daemon, would change
    Plan(plan::Args),
    /// Make the daemon read its files again, and wait until they are in force
    Reload(reload::Args),
    /// Show the network interfaces, and the policies that use them as uplinks
    Interfaces(interfaces::Args),
    /// Show the groups of uplinks in force, and the health of their members
    Uplinks(uplinks::Args),
    /// Take a member of a group of uplinks out of use, or back
    Uplink(uplink::Args),
    /// Show what is stopped, as it happens, with or without a daemon
    Events(events::Args),
    /// Show live what steered cgroups create and send, and by which link
    Top(top::Args),
    /// Print the completions for a shell
    Completions(completions::Args),
    /// Show which policy holds a process or a cgroup, and why
    Explain(explain::Args),
    /// Find problems on this host and with every policy, and print the commands that repair them
    Doctor(doctor::Args),
    /// Steer containers; called by container runtimes
    Hook(hook::Args),
    /// The keeper that `exec` starts to clean up after its command
    #[command(hide = true)]
    Keep(keep::Args),
    /// What `exec` starts to say at its end what was stopped
    #[command(hide = true)]
    Tell(keep::TellArgs),
    /// What the completions of a shell ask for
    #[command(hide = true)]
    CompleteValues(completions::ValuesArgs),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let default_level = match &self.command {
            Command::Daemon(args) => args.log_level(),
            Command::Hook(args) => args.log_level(),
            // It says itself what it has done.
            Command::Uplink(_) => "warn,steer::apply::uplinks::telling=error",
            _ => "warn",
        };
        match &self.command {
            Command::Keep(_) | Command::Tell(_) => log_lines::init_system_log(),
            Command::Daemon(_) | Command::Hook(_) => log_lines::init(default_level),
            _ => log_lines::init_command(default_level),
        }
        if !matches!(self.command, Command::Exec(_) | Command::Daemon(_) | Command::Keep(_) | Command::Hook(_)) {
            end_with_the_reader();
        }
        let callers_umask = restrict_umask();
        if matches!(&self.command, Command::Hook(args) if args.wraps()) {
            umask(callers_umask);
        }
        let instance = Instance::new(self.bpffs, self.socket);
        let pins = &instance.pins;
        match self.command {
            Command::Exec(args) => exec::run(args, &instance, callers_umask),
            Command::Daemon(args) => daemon::run(args, &instance),
            Command::Check(args) => check::run(&args, &instance),
            Command::Attach(args) => attach::run(&args, pins),
            Command::Detach(args) => detach::run(&args, &instance),
            Command::Unit(args) => unit::run(&args, &instance),
            Command::Completions(args) => completions::run(&args),
            Command::Plan(args) => plan::run(&args, &instance),
            Command::Reload(args) => reload::run(&args, &instance),
            Command::Off(args) => off::run(&args, &instance),
            Command::Status(args) => status::run(&args, &instance),
            Command::Events(args) => events::run(&args, &instance),
            Command::Top(args) => top::run(&args, &instance),
            Command::Policy(args) => policy::run(args, &instance),
            Command::Interfaces(args) => interfaces::run(&args, &instance),
            Command::Uplinks(args) => uplinks::run(&args, &instance),
            Command::Uplink(args) => uplink::run(&args, &instance),
            Command::Explain(args) => explain::run(args, &instance),
            Command::Doctor(args) => doctor::run(&args, &instance),
            Command::Hook(args) => hook::run(args, &instance),
            Command::Keep(args) => keep::run(&args, &instance),
            Command::Tell(args) => keep::tell(&args, &instance),
            Command::CompleteValues(args) => completions::values(&args, &instance),
        }
    }
}

/// The width of help that goes to no terminal.
const HELP_WIDTH: usize = 80;

/// Parses the command line, or ends with what is wrong with it, and the usage of the command that it is for.
pub fn parse() -> Cli {
    let mut command = Cli::command().term_width(output::columns().unwrap_or(HELP_WIDTH));
    command.build();
    let mut command = with_whole_usage(command);
    let matches = command.get_matches_mut();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(innermost(&mut command, &matches)).exit())
}

/// Usage lines that do not depend on what was given: otherwise they name the options that the environment sets, as if they were required.
fn with_whole_usage(mut command: clap::Command) -> clap::Command {
    let usage = command.render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    command.override_usage(usage).mut_subcommands(with_whole_usage)
}

fn innermost<'c>(command: &'c mut clap::Command, matches: &ArgMatches) -> &'c mut clap::Command {
    match matches.subcommand() {
        Some((name, matches)) if command.find_subcommand(name).is_some() => {
            innermost(command.find_subcommand_mut(name).expect("it was found"), matches)
        }
        _ => command,
    }
}

/// 2 for a wrong configuration or command line; 1 for all other errors.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_refused = matches!(error.downcast_ref(), Some(client::Error::Refused(problem)) if problem.is_of_mistakes());
    let is_invalid = matches!(error.downcast_ref(), Some(policy_files::Error::Invalid(_)));
    if is_refused || is_invalid || error.is::<Emptied>() || error.is::<Mistake>() || error.is::<daemon::NoFile>() {
        return ExitCode::from(2);
    }
    match error.downcast_ref::<exec::Failed>() {
        Some(failed) => ExitCode::from(failed.code()),
        None => ExitCode::FAILURE,
    }
}

/// Lets a command end without an error when its reader closes the pipe, as `| head` does.
fn end_with_the_reader() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// The configuration file: the one that is named, or that of the daemon that runs, or the default.
fn config_file(named: Option<&Path>, instance: &Instance) -> PathBuf {
    let of_daemon = async {
        let daemon = client::Client::find(&instance.socket).await?;
        daemon.get::<Health>("/v1/health").await.ok().map(|health| PathBuf::from(health.config))
    };
    let named = named.map(Path::to_owned);
    named.or_else(|| block_on(of_daemon).ok().flatten()).unwrap_or_else(|| CONFIG.into())
}

/// The command line has a mistake that shows only when it is compared with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Mistake(String);

/// A runtime for commands that use netlink.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    // Without a free descriptor, the runtime would panic instead of failing: it makes a pair of sockets for signals.
    let descriptors: [_; 4] = std::array::from_fn(|_| UnixStream::pair());
    descriptors.into_iter().collect::<Result<Vec<_>, _>>().context("open the descriptors of the runtime")?;
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

/// Makes what steer creates writable by its owner only, whatever the caller's umask. Returns that: a command of `exec`, and a runtime that
/// `hook wrap` starts, get it back.
fn restrict_umask() -> Mode {
    let others = Mode::S_IWGRP | Mode::S_IWOTH;
    let callers = umask(others);
    umask(callers | others);
    callers
}
