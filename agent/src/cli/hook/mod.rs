//! `steer hook`: the commands for container runtimes.

mod nri;
mod oci;
mod wrap;

use std::{path::PathBuf, process::ExitCode};

use crate::run::{
    container::hook::Files,
    instance::{CONFIG, Instance},
};

/// Arguments of `steer hook`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    hook: Hook,
}

#[derive(Debug, clap::Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one for each command line")]
enum Hook {
    /// Steer a container by its annotations, as an OCI hook at createRuntime and poststop
    Oci(oci::Args),
    /// Act as an OCI runtime that steers each container before its program is executed
    Wrap(wrap::Args),
    /// Steer the containers of containerd or CRI-O by their annotations, as an NRI plugin
    Nri(nri::Args),
}

impl Args {
    /// The log level unless STEER_LOG sets one.
    pub(super) fn log_level(&self) -> &'static str {
        match self.hook {
            Hook::Nri(_) => "info",
            Hook::Oci(_) | Hook::Wrap(_) => "warn",
        }
    }
}

impl Args {
    /// Whether it starts a container runtime.
    pub(super) fn wraps(&self) -> bool {
        matches!(self.hook, Hook::Wrap(_))
    }
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    match args.hook {
        Hook::Oci(args) => oci::run(&args, instance),
        Hook::Wrap(args) => wrap::run(&args, instance),
        Hook::Nri(args) => nri::run(args, instance),
    }
}

/// The configuration, which lists what containers may ask for.
#[derive(Clone, Debug, clap::Args)]
struct FilesArgs {
    /// The configuration file; policies with files of their own are in `policies.d` beside it
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

impl FilesArgs {
    fn files(&self) -> Files {
        Files { config: self.config.clone() }
    }
}
