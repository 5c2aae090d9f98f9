//! `steer events`: what is stopped, as it happens.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use super::PinDirectory;
use crate::{
    datapath::Pins,
    events::{Event, Events},
    preflight::require_privilege,
};

/// Arguments of `steer events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows first what nobody has read yet: about a thousand events are kept, later ones counted. Of each kind \
                  (cgroup, policy, reason) ten a second are told on each CPU, the others counted, too. Each event is shown \
                  once, so a second `steer events` is refused. Exit status: 0 after --once and `steer off`, 1 if nothing is \
                  steered."
)]
pub(super) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Show what has happened until now, and end
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &Args, pins: &PinDirectory) -> anyhow::Result<ExitCode> {
    require_privilege("events")?;
    let Some(pins) = pins.to_look() else { bail!(NOTHING) };
    super::block_on(show(args, &pins))??;
    Ok(ExitCode::SUCCESS)
}

const NOTHING: &str = "nothing is steered, so there are no events; try again once something is";

async fn show(args: &Args, pins: &Pins) -> anyhow::Result<()> {
    let Some(mut events) = Events::open(pins)? else { bail!(NOTHING) };
    if args.once {
        return events.backlog()?.iter().try_for_each(|event| print(event, args.json));
    }
    while let Some(event) = events.next().await? {
        print(&event, args.json)?;
    }
    eprintln!("steer: the events end: steer was switched off, or another version of it has taken over");
    Ok(())
}

fn print(event: &Event, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json { writeln!(out, "{}", serde_json::to_string(event)?) } else { writeln!(out, "{event}") }
        .context("print an event")
}
