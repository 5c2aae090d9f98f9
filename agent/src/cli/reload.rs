//! `steer reload`: make the daemon read its files again, and print what `steer check` prints; `systemctl reload steer` runs it.

use std::{path::Path, process::ExitCode};

use super::{block_on, check};
use crate::run::{
    api::{Health, client::Client},
    instance::Instance,
};

pub(super) fn run(instance: &Instance) -> anyhow::Result<ExitCode> {
    let health = block_on(async {
        let Some(daemon) = Client::find(&instance.socket).await else {
            anyhow::bail!("no daemon answers at {}; is one running?", instance.socket.display());
        };
        daemon.post("/v1/reload").await?;
        Ok(daemon.get::<Health>("/v1/health").await?)
    })??;
    let store = instance.store(Path::new(&health.config));
    // A file that was changed since then has mistakes of its own.
    if let Ok(config) = store.read() {
        check::report(&store, &config)?;
    }
    Ok(ExitCode::SUCCESS)
}
