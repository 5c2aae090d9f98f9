//! `steer hook oci`: the container's state on standard input, the answer by exit status.

use std::{io::stdin, process::ExitCode};

use super::{Files, Instance, pins};
use crate::{
    config::Containers,
    container::{self, Asker, Container, Fate, decide},
    oci::{self, Stage},
};

/// Arguments of `steer hook oci`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if the container is steered or asks for nothing; else it must not start, and the reason is on \
                        standard error, where the runtime shows it."
)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    match oci::stage(stdin().lock())? {
        Stage::Created(pid, annotations) => {
            if let Some(asked) = oci::asked(&annotations)? {
                let config = args.files.read(instance)?;
                let decision = decide(&config, &asked, Asker::Container)?;
                let container = Container { pid, runtime: None, runs: false };
                container::steer(&pins(instance)?, &config, container, &Fate::By(decision))?;
            }
        }
        Stage::Stopped => {
            if let Some(pins) = instance.pins.to_look() {
                container::forget(&pins, Containers::default().timeout)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
