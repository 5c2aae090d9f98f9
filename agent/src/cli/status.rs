//! `steer status`: the state in force.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{block_on, config_file, output::say, status_text, target::links};
use crate::{
    apply::{blind_spots::BlindSpot, resolve::Namespace},
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel,
    model::config::RouteConfig,
    observe::status::{self, Status},
    run::{
        api::client::{self, Client},
        instance::Instance,
    },
};

/// Arguments of `steer status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "STATE is that of the uplink: up, no route (it has no default route), no member works (of a group; sockets get one of them \
                  nonetheless), no carrier, down, missing, or unknown, in another network namespace. SOCKETS counts those that were bound or marked since the policy is in force, also before it was changed; `steer uplinks` shows how many are open. STOPPED counts sockets, calls and packets that were closed, refused or \
                  stopped, not what a policy with enforce = \"observe\" let pass; `--json` has each counter, and `steer events` shows them as they happen."
)]
pub(super) struct Args {
    /// The configuration file, to find cgroups that it names and nothing steers [default: that of the daemon, or /etc/steer/steer.toml, if it exists]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let status = read(args, instance)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        status_text::print(&status)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the pinned maps, the processes and the files. Without the privilege for that, asks the daemon.
fn read(args: &Args, instance: &Instance) -> anyhow::Result<Status> {
    if let Err(unprivileged) = require_privilege("status") {
        return block_on(async {
            let daemon = Client::find(&instance.socket).await.ok_or(unprivileged)?;
            anyhow::Ok(daemon.get("/v1/status").await?)
        })?;
    }
    let (pins, hierarchy) = (instance.pins.to_look()?, Hierarchy::find()?);
    let mut status = match &pins {
        Some(pins) => {
            let status = status::read(pins, &hierarchy)?;
            status.compared(Namespace::own(&links()?, kernel::netns_cookie()?, RouteConfig::default().marks(), &[]))
        }
        None => Status::default(),
    };
    if status.daemon {
        (status.blind_spots, status.silent) = block_on(told(&instance.socket))?;
    }
    let store = instance.store(&config_file(args.config.as_deref(), instance));
    status::add_unsteered(&mut status, pins.as_ref(), &hierarchy, &store)?;
    block_on(status::judge(&mut status, kernel::netns_cookie()?))?;
    Ok(status)
}

/// What only the daemon knows: its blind spots. Or what to do if it does not answer.
pub(super) async fn told(socket: &Path) -> (Vec<BlindSpot>, Option<String>) {
    let Some(daemon) = Client::find(socket).await else { return (Vec::new(), None) };
    match daemon.get::<Status>("/v1/status").await {
        Ok(status) => (status.blind_spots, None),
        Err(error @ client::Error::Silent { .. }) => (Vec::new(), Some(error.to_string())),
        Err(_other) => (Vec::new(), None),
    }
}
