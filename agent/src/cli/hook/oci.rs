//! `steer hook oci`: reads the container's state on standard input, and answers by exit status.

use std::{io::stdin, process::ExitCode};

use super::FilesArgs;
use crate::{
    apply::permit::Asker,
    run::{
        container::{
            hook::{forget, steer},
            oci::{self, Stage},
        },
        instance::Instance,
    },
};

/// Arguments of `steer hook oci`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if the container is steered or asks for nothing; otherwise it must not start, and the reason is on \
                        standard error, where the runtime shows it."
)]
pub(super) struct Args {
    #[command(flatten)]
    files: FilesArgs,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    match oci::stage(stdin().lock())? {
        Stage::Created(created) => {
            let asked = oci::asked_by(&created)?;
            steer(&args.files.files(), instance, &created, asked.as_ref().map(|asked| (asked, Asker::Container)))?;
        }
        Stage::Stopped => forget(instance)?,
    }
    Ok(ExitCode::SUCCESS)
}
