//! `steer interfaces`: the links, and the policies that use them as uplinks.

use std::{path::PathBuf, process::ExitCode};

use super::{
    block_on,
    output::{say, table},
};
use crate::{
    host::link,
    model::quote::shown,
    run::{
        api::{InterfaceDocument, client::Client},
        instance::{CONFIG, Instance},
    },
};

/// Arguments of `steer interfaces`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file, used if no daemon runs
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    let links: Vec<InterfaceDocument> = block_on(async {
        if let Some(daemon) = Client::find(&instance.socket).await {
            return anyhow::Ok(daemon.get("/v1/interfaces").await?);
        }
        // Without a configuration, show the links alone.
        let config = instance.store(&args.config).read().unwrap_or_default();
        Ok(InterfaceDocument::all(&link::read().await?, &config.policies, &config.uplinks))
    })??;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&links)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = links.iter().map(|link| {
        vec![
            link.ifindex.to_string(),
            shown(&link.name).to_string(),
            shown(&link.alternative_names.join(", ")).to_string(),
            shown(&link.policies.join(", ")).to_string(),
        ]
    });
    say!("{}", table(&["INDEX", "NAME", "ALSO", "UPLINK OF"], &rows.collect::<Vec<_>>()))?;
    Ok(ExitCode::SUCCESS)
}
