//! The command line: one file per command, each an `Args` and a `run`.

mod attach;
mod check;
mod completions;
mod daemon;
mod demo;
mod detach;
mod doctor;
mod events;
mod exec;
mod explain;
mod hook;
mod interfaces;
mod keep;
mod off;
mod policy;
mod reload;
mod status;
mod target;
mod top;
mod unit;

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    daemon::Emptied,
    datapath::{self, Pins},
    doctor::quoted,
    log_lines,
    store::{self, Store},
};

/// Where pins go unless told otherwise.
const PIN_DIRECTORY: &str = "/sys/fs/bpf/steer";
/// Where sockets are, and what is to be gone after a boot.
const RUN_DIRECTORY: &str = "/run/steer";

/// Makes Linux send a program's traffic through the interface you chose, and nowhere else.
#[derive(Debug, Parser)]
#[command(name = "steer", version, propagate_version = true)]
pub struct Cli {
    /// Directory for pins, on a bpffs (mounted if it is missing); each is an instance of its own
    #[arg(long, global = true, value_name = "DIR", env = "STEER_BPFFS", default_value = PIN_DIRECTORY)]
    bpffs: PathBuf,
    /// Socket of the daemon's API [default: /run/steer/NAME.sock, NAME being the last part of the pin directory]
    #[arg(long, global = true, value_name = "SOCKET", env = "STEER_SOCKET")]
    socket: Option<PathBuf>,
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
    /// Show, keep and forget policies
    Policy(policy::Args),
    /// Let the daemon read its files again, and wait until what they say is in force
    Reload,
    /// Show the network interfaces, and whose uplinks they are
    Interfaces(interfaces::Args),
    /// Show who is stopped, as it happens, with or without a daemon
    Events(events::Args),
    /// Show live what steered cgroups make and send, and by which link
    Top(top::Args),
    /// Print the completions for a shell
    Completions(completions::Args),
    /// Say which policy holds a process or a cgroup, and why
    Explain(explain::Args),
    /// Find what is wrong on this host and with every policy, and say what mends it
    Doctor(doctor::Args),
    /// Steer containers, called by their runtimes
    Hook(hook::Args),
    /// Show steering at work between network namespaces made for it
    Demo(demo::Args),
    /// The client program of `demo`
    #[command(hide = true)]
    Probe(steer_lab::cli::ProbeArgs),
    /// The client program of `demo` that tries to escape
    #[command(hide = true)]
    Escape(steer_lab::escape::EscapeArgs),
    /// What `exec` leaves behind to clean up after its command
    #[command(hide = true)]
    Keep(keep::Args),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let default_level = match &self.command {
            Command::Daemon(args) => args.log_level(),
            Command::Hook(args) => args.log_level(),
            _ => "warn",
        };
        log_lines::init(default_level);
        if !matches!(self.command, Command::Exec(_) | Command::Daemon(_) | Command::Keep(_) | Command::Hook(_)) {
            end_with_the_reader();
        }
        let instance = Instance::new(self.bpffs, self.socket);
        let pins = &instance.pins;
        match self.command {
            Command::Exec(args) => exec::run(args, pins),
            Command::Daemon(args) => daemon::run(args, &instance),
            Command::Check(args) => check::run(&args, &instance),
            Command::Attach(args) => attach::run(&args, pins),
            Command::Detach(args) => detach::run(&args, pins),
            Command::Unit(args) => unit::run(&args, pins),
            Command::Completions(args) => Ok(completions::run(&args)),
            Command::Reload => reload::run(&instance),
            Command::Off(args) => off::run(&args, &instance),
            Command::Status(args) => status::run(&args, &instance),
            Command::Events(args) => events::run(&args, &instance),
            Command::Top(args) => top::run(&args, &instance),
            Command::Policy(args) => policy::run(args, &instance),
            Command::Interfaces(args) => interfaces::run(&args, &instance),
            Command::Explain(args) => explain::run(args, &instance),
            Command::Doctor(args) => doctor::run(args, &instance),
            Command::Hook(args) => hook::run(args, &instance),
            Command::Demo(args) => demo::run(&args),
            Command::Probe(args) => {
                let answered = steer_lab::cli::run(&args, &mut std::io::stdout().lock())?;
                Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Command::Escape(args) => {
                steer_lab::escape::run(&args, &mut std::io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Keep(args) => keep::run(&args, pins),
        }
    }
}

/// What belongs to one instance of steer: all of it follows from the name of the pin directory.
#[derive(Clone, Debug)]
struct Instance {
    pins: PinDirectory,
    socket: PathBuf,
    /// Policies that are gone after a boot.
    runtime: PathBuf,
}

impl Instance {
    fn new(bpffs: PathBuf, socket: Option<PathBuf>) -> Self {
        let name = bpffs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let run = Path::new(RUN_DIRECTORY);
        Self {
            pins: PinDirectory(bpffs),
            socket: socket.unwrap_or_else(|| run.join(format!("{name}.sock"))),
            runtime: run.join(format!("{name}.policies.d")),
        }
    }

    /// Removes what is not a pin: the socket of a daemon that was killed, and the policies that a boot would remove.
    fn remove_files(&self, errors: &mut Vec<String>) {
        let mut check = |path: &Path, removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("remove {}: {error}", path.display()));
            }
            _ => {}
        };
        if fs::symlink_metadata(&self.socket).is_ok_and(|found| found.file_type().is_socket()) {
            check(&self.socket, fs::remove_file(&self.socket));
        }
        check(&self.runtime, fs::remove_dir_all(&self.runtime));
        // Not empty while there is another instance.
        let _ = fs::remove_dir(RUN_DIRECTORY);
    }

    /// How a shell calls this instance.
    fn command(&self) -> String {
        let usual = Self::new(self.pins.0.clone(), None);
        let bpffs = (self.pins.0 != Path::new(PIN_DIRECTORY)).then_some(("--bpffs", &self.pins.0));
        let socket = (self.socket != usual.socket).then_some(("--socket", &self.socket));
        let options = bpffs.into_iter().chain(socket);
        let words = options.map(|(option, path)| format!(" {option} {}", quoted(&path.display().to_string())));
        format!("steer{}", words.collect::<String>())
    }

    /// Where policies are kept, given the configuration file.
    fn store(&self, config: &Path) -> Store {
        Store::new(config, &self.runtime)
    }
}

/// The pin directory as the user named it.
#[derive(Clone, Debug)]
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
    if matches!(error.downcast_ref(), Some(store::Error::Invalid(_))) || error.is::<Emptied>() {
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
