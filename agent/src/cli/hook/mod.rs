//! `steer hook`: what container runtimes call.

mod nri;
mod oci;
mod wrap;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use super::{Instance, daemon::CONFIG};
use crate::{
    config::{Config, Containers},
    container::{self, Asked, Asker, Container, Fate},
    oci::Created,
    preflight::require_privilege,
};

/// Arguments of `steer hook`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    hook: Hook,
}

#[derive(Debug, clap::Subcommand)]
enum Hook {
    /// Steer a container as its annotations ask, as an OCI hook at createRuntime and poststop
    Oci(oci::Args),
    /// Be an OCI runtime that steers each container before its program is executed
    Wrap(wrap::Args),
    /// Steer the containers of containerd or CRI-O as their annotations ask, as an NRI plugin
    Nri(nri::Args),
}

impl Args {
    /// What is logged unless STEER_LOG says otherwise.
    pub(super) fn log_level(&self) -> &'static str {
        match self.hook {
            Hook::Nri(_) => "info",
            Hook::Oci(_) | Hook::Wrap(_) => "warn",
        }
    }
}

/// The configuration, which says what containers may ask for.
#[derive(Clone, Debug, clap::Args)]
struct Files {
    /// The configuration; policies with files of their own are in `policies.d` beside it
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

impl Files {
    fn read(&self, instance: &Instance) -> anyhow::Result<Config> {
        instance.store(&self.config).read().context("what containers may ask for cannot be read")
    }
}

/// Gives a container that is about to start what is asked for it, or else lets it out of what holds it.
fn steer(files: &Files, instance: &Instance, created: &Created, asked: Option<(&Asked, Asker)>) -> anyhow::Result<()> {
    let config = match files.read(instance) {
        // One that is held stays so; another does not depend on what cannot be read.
        Err(error) if asked.is_none() => {
            log::debug!("{error:#}");
            return Ok(());
        }
        config => config?,
    };
    let container = Container { pid: created.pid, id: &created.id, runs: false };
    if let Some(fate) = Fate::of(&config, container, asked)? {
        require_privilege("hook")?;
        container::steer(&instance.pins.to_change()?, &config, container, &fate)?;
    }
    Ok(())
}

/// Forgets the containers that are gone.
fn forget(instance: &Instance) -> Result<(), container::Error> {
    let Some(pins) = instance.pins.to_look() else { return Ok(()) };
    container::forget(&pins, Containers::default().timeout)
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    match args.hook {
        Hook::Oci(args) => oci::run(&args, instance),
        Hook::Wrap(args) => wrap::run(&args, instance),
        Hook::Nri(args) => nri::run(args, instance),
    }
}
