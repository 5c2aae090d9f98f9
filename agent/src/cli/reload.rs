//! `steer reload`: make the daemon read its files again; `systemctl reload steer` runs it.

use std::process::ExitCode;

use super::block_on;
use crate::run::{api::client::Client, instance::Instance};

pub(super) fn run(instance: &Instance) -> anyhow::Result<ExitCode> {
    block_on(async {
        let Some(daemon) = Client::find(&instance.socket).await else {
            anyhow::bail!("no daemon answers at {}; is one running?", instance.socket.display());
        };
        Ok(daemon.post("/v1/reload").await?)
    })??;
    Ok(ExitCode::SUCCESS)
}
