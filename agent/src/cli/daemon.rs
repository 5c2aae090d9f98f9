//! `steer daemon`: steer by configuration.

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use thiserror::Error;

use super::log_lines;
use crate::{
    host::{capability::require_privilege, cgroup::namespace, policy_files},
    kernel::LogLevel,
    model::{config::DaemonConfig, spec::Word as _},
    run::{
        api,
        daemon::{self, Options},
        instance::{CONFIG, Instance},
    },
};

/// Arguments of `steer daemon`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGHUP and a change of the file reload the configuration; a bad one is reported, and the previous one \
                        stays in force. SIGTERM and SIGINT end the daemon and leave enforcement in place: `steer off` ends it."
)]
pub(super) struct Args {
    /// The configuration file; policies with files of their own are in `policies.d` beside it
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Group that may read through the API; only root may make changes [default: `socket_group` in the file]
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Loopback address and port where the metrics are also served, such as 127.0.0.1:9464 [default: `metrics` in the file]
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    metrics: Option<SocketAddr>,
    /// Log every decision of the kernel programs; for debugging
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    kernel_log: LogLevel,
    /// Enter the cgroup namespace of process 1; for a container that has the host's processes and is not privileged
    #[arg(long)]
    host_cgroups: bool,
}

/// There is no configuration file. To start again does not help.
#[derive(Debug, Error)]
#[error("there is no configuration file {}; write one, as steer.toml(5) describes, or name another by --config", .0.display())]
pub(super) struct NoFile(PathBuf);

/// Ends with a message and status 2 if there is no such group.
fn require_group(name: &str) {
    if let Err(error) = api::group_id(name) {
        clap::Error::raw(
            clap::error::ErrorKind::ValueValidation,
            format!("invalid value for '--socket-group': {error}\n"),
        )
        .exit();
    }
}

/// A loopback address with a port.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_invalid| "expected ADDRESS:PORT, as 127.0.0.1:9464".to_owned())?;
    api::require_loopback(address).map(|()| address).map_err(|error| error.to_string())
}

impl Args {
    /// The most that is logged, unless STEER_LOG sets it. The kernel programs log at trace.
    pub(super) fn log_level(&self) -> &'static str {
        match self.kernel_log {
            LogLevel::Off => "info,steer=debug",
            LogLevel::Trace => "info,steer=trace",
        }
    }
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    if args.kernel_log == LogLevel::Off {
        log_lines::set_level("info");
    }
    if let Some(group) = &args.socket_group {
        require_group(group);
    }
    let store = instance.store(&args.config);
    let config = store.read().map_err(|error| match error {
        policy_files::Error::File { source, path, .. }
            if source.kind() == ErrorKind::NotFound && path == store.file() =>
        {
            NoFile(path).into()
        }
        error => anyhow::Error::from(error),
    })?;
    require_privilege("daemon")?;
    if args.host_cgroups {
        namespace::enter_that_of_the_host().context("enter the cgroup namespace of process 1")?;
    }
    let pins = instance.pins.to_change()?;
    let (socket, users_socket) = (instance.socket.clone(), instance.users_socket.clone());
    let DaemonConfig { socket_group, metrics, log } = config.daemon.clone();
    if args.kernel_log == LogLevel::Off {
        log_lines::set_level(log.text());
    }
    let options = Options {
        store,
        socket,
        users_socket,
        socket_group: args.socket_group.or(socket_group),
        metrics: args.metrics.or(metrics),
        kernel_log: args.kernel_log,
    };
    super::block_on(daemon::run(options, config, pins))??;
    Ok(ExitCode::SUCCESS)
}
