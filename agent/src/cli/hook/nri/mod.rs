//! `steer hook nri`: a plugin that containerd and CRI-O call before a container starts.
//!
//! **Invariant:** while it runs, it is registered or tries to register. If the runtime is missing, ends or refuses, it retries
//! soon, because the runtime meanwhile starts containers without it.

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
    host::{capability::require_privilege, cgroup::namespace},
    run::{
        container::{
            nri::{self, End, Identity},
            plugin::{Steering, Tools},
        },
        instance::Instance,
    },
};

/// The shortest and the longest delay between attempts.
const SOON: Duration = Duration::from_millis(20);
const AT_THE_LATEST: Duration = Duration::from_millis(250);

/// Arguments of `steer hook nri`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A container starts steered by its annotations or those of its pod, or does not start. While no \
                  plugin is registered, the runtime starts containers without it; `parent` in [containers] holds \
                  them closed. SIGTERM and SIGINT end the plugin and leave enforcement in place."
)]
pub(super) struct Args {
    #[command(flatten)]
    files: FilesArgs,
    /// The runtime's socket for plugins
    #[arg(long, value_name = "SOCKET", default_value = "/var/run/nri/nri.sock")]
    nri_socket: PathBuf,
    /// Name of the plugin
    #[arg(long, default_value = "steer")]
    name: String,
    /// Two digits, which order the plugins
    #[arg(long, default_value = "10", value_parser = index)]
    index: String,
    /// Enter the cgroup namespace of process 1; for a container that has the host's processes and is not privileged
    #[arg(long)]
    host_cgroups: bool,
}

fn index(text: &str) -> Result<String, String> {
    let is_index = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_index.then(|| text.to_owned()).ok_or_else(|| "expected two digits, such as 10".to_owned())
}

pub(super) fn run(args: Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    // Report permanent errors immediately.
    let files = args.files.files();
    files.read(instance)?;
    require_privilege("hook nri")?;
    if args.host_cgroups {
        namespace::enter_that_of_the_host().context("enter the cgroup namespace of process 1")?;
    }
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
            "ending; steered containers stay steered, containers that start now are not steered (`steer off` ends steering)"
        );
        anyhow::Ok(())
    })??;
    Ok(ExitCode::SUCCESS)
}

/// Keeps a connection to the runtime. Logs an obstacle once, until it is gone.
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
            log::warn!("{obstacle}; until the runtime is there again, containers start without steer");
            is_told = true;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AT_THE_LATEST);
    }
}
