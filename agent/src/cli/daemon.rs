//! `steer daemon`: steer by configuration.

use std::{path::PathBuf, process::ExitCode};

use super::PinDirectory;
use crate::{
    daemon::{self, Options},
    datapath::LogLevel,
    preflight::require_privilege,
};

/// Where the configuration is unless told otherwise.
pub(super) const CONFIG: &str = "/etc/steer/steer.toml";

/// Arguments of `steer daemon`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIGHUP and a change of the file reload the configuration; a bad one is reported and what is in force \
                        stays. SIGTERM and SIGINT end the daemon and leave enforcement in place: `steer off` takes it away."
)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Log every decision of the kernel programs; for debugging
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    kernel_log: LogLevel,
}

impl Args {
    /// What is logged unless STEER_LOG says otherwise. The kernel programs log at trace.
    pub(super) fn log_level(&self) -> &'static str {
        match self.kernel_log {
            LogLevel::Off => "info",
            LogLevel::Trace => "info,steer=trace",
        }
    }
}

pub(super) fn run(args: Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    let config = daemon::read_config(&args.config)?;
    require_privilege("daemon")?;
    let pins = pins.to_change()?;
    let options = Options { config_file: args.config, kernel_log: args.kernel_log };
    super::block_on(daemon::run(options, config, pins))??;
    Ok(ExitCode::SUCCESS)
}
