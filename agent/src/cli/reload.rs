//! `steer reload`: make the daemon read its files again, and print what `steer check` prints; `systemctl reload steer` runs it.

use std::{path::Path, process::ExitCode};

use super::{block_on, check, plan};
use crate::{
    host::capability::require_privilege,
    run::{
        api::{Health, InterfaceDocument, client::Client},
        instance::Instance,
        plan::Running,
    },
};

/// Arguments of `steer reload`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 if the files are in force, 1 if they are not, with the reason.")]
pub(super) struct Args {
    /// Change nothing, and show what would change: see `steer plan`
    #[arg(long)]
    dry_run: bool,
    /// Print the plan as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let missing = || anyhow::anyhow!("no daemon answers at {}; is one running?", instance.socket.display());
    if args.dry_run {
        require_privilege("reload")?;
        let daemon = block_on(Running::find(instance))??.ok_or_else(missing)?;
        return plan::show(instance, Some(&daemon), None, args.json);
    }
    let (health, links) = block_on(async {
        let daemon = Client::reach(&instance.socket).await?.ok_or_else(missing)?;
        daemon.post("/v1/reload").await?;
        let links: Vec<InterfaceDocument> = daemon.get("/v1/interfaces").await?;
        anyhow::Ok((daemon.get::<Health>("/v1/health").await?, links))
    })??;
    let store = instance.store(Path::new(&health.config));
    // A file that was changed since then has mistakes of its own.
    if let Ok(config) = store.read() {
        check::report(&store, &config, Some(&InterfaceDocument::table(&links)))?;
    }
    Ok(ExitCode::SUCCESS)
}
