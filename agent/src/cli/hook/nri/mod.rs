//! `steer hook nri`: a plugin that containerd and CRI-O ask before a container starts.
//!
//! **Invariant:** as long as it runs, it is registered or trying to be: a runtime that is not there, or goes, or
//! refuses, is asked again soon, for it starts containers meanwhile without asking.

use std::{
    convert::Infallible,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
};

use super::FilesArgs;
use crate::{
    host::capability::require_privilege,
    run::{
        container::{
            nri::{self, End, Identity},
            plugin::{Steering, Tools},
        },
        instance::Instance,
    },
};

/// How soon the runtime is asked again, and how rarely at the most.
const SOON: Duration = Duration::from_millis(20);
const AT_THE_LATEST: Duration = Duration::from_millis(250);

/// Arguments of `steer hook nri`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A container starts steered as its annotations or those of its pod ask, or does not start. While no \
                  plugin is registered, the runtime starts containers without asking; `parent` in [containers] holds \
                  them closed. SIGTERM and SIGINT end it and leave in force what is."
)]
pub(super) struct Args {
    #[command(flatten)]
    files: FilesArgs,
    /// Where the runtime waits for plugins
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/nri/nri.sock")]
    nri_socket: PathBuf,
    /// Name of the plugin
    #[arg(long, default_value = "steer")]
    name: String,
    /// Two digits; plugins are asked in this order
    #[arg(long, default_value = "10", value_parser = index)]
    index: String,
}

fn index(text: &str) -> Result<String, String> {
    let is_index = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_index.then(|| text.to_owned()).ok_or_else(|| "expected two digits, as 10".to_owned())
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    // What is wrong from the beginning is told at once.
    let files = args.files.files();
    files.read(instance)?;
    require_privilege("hook nri")?;
    instance.pins.to_change()?;
    let identity = Identity { name: args.name, index: args.index };
    let tools = Arc::new(Tools { instance: instance.clone(), files });
    let mut steering = Steering { tools, is_synchronized: false };
    crate::cli::block_on(async {
        let on = |kind| signal(kind).context("install a signal handler");
        let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        tokio::select! {
            never = follow(&args.nri_socket, &identity, &mut steering) => match never {},
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!(
            "ending; what is steered stays steered, and containers that start now are not (`steer off` ends steering)"
        );
        anyhow::Ok(())
    })??;
    Ok(ExitCode::SUCCESS)
}

/// One connection after the other. What is in the way is logged once, until it is out of the way.
async fn follow(socket: &Path, identity: &Identity, steering: &mut Steering) -> Infallible {
    let mut wait = SOON;
    let mut is_told = false;
    loop {
        steering.is_synchronized = false;
        let obstacle = match UnixStream::connect(socket).await {
            Ok(stream) => match nri::serve(stream, identity, steering).await {
                Ok(End::Closed) => "the runtime closed the connection".to_owned(),
                Ok(End::Shutdown) => "the runtime is ending".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => {
                let hint = match error.kind() {
                    ErrorKind::NotFound => " (containerd 1.7 needs `disable = false` for NRI in its configuration)",
                    _ => "",
                };
                format!("connect to {}: {error}{hint}", socket.display())
            }
        };
        if steering.is_synchronized {
            (wait, is_told) = (SOON, false);
        }
        if !is_told {
            log::warn!("{obstacle}; until the runtime is there again, containers start without steer being asked");
            is_told = true;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AT_THE_LATEST);
    }
}
