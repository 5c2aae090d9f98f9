//! `steer interfaces`: the links, and the policies that use them as uplinks.

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{Table, presets};

use super::{block_on, output::say};
use crate::{
    host::link,
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
        Ok(InterfaceDocument::all(&link::read().await?, &config.policies))
    })??;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&links)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["INDEX", "NAME", "ALSO", "UPLINK OF"]);
    for link in links {
        table.add_row([
            link.ifindex.to_string(),
            link.name,
            link.alternative_names.join(", "),
            link.policies.join(", "),
        ]);
    }
    say!("{table}")?;
    Ok(ExitCode::SUCCESS)
}
