//! `steer events`: what is stopped, as it happens.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use crate::{
    host::capability::require_privilege,
    kernel::Pins,
    observe::events::{Event, Events},
    run::{api::client::Client, instance::Instance},
};

/// Arguments of `steer events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows first what nobody has read yet: about a thousand events are kept, later ones counted. Of each kind \
                  (cgroup, policy, reason) ten a second are told on each CPU, the others counted, too. Each event is shown \
                  once, so without a daemon a second `steer events` is refused; a daemon tells all who listen. Exit status: \
                  0 after --once and `steer off`, 1 if nothing is steered."
)]
pub(super) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Show what has happened until now, and end
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        // A daemon reads them for any number of listeners.
        if let (false, Some(daemon)) = (args.once, Client::find(&instance.socket).await) {
            return daemon.follow("/v1/events", |line| print_line(line, args.json)).await;
        }
        require_privilege("events")?;
        let Some(pins) = instance.pins.to_look() else { bail!(NOTHING) };
        show(args, &pins).await
    })??;
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

/// What the daemon sends: an event, or how many this reader was too slow for.
fn print_line(line: &[u8], json: bool) -> anyhow::Result<()> {
    match serde_json::from_slice(line) {
        Ok(event) => print(&event, json),
        Err(_not_an_event) => io::stdout().lock().write_all(line).context("print an event"),
    }
}

fn print(event: &Event, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json { writeln!(out, "{}", serde_json::to_string(event)?) } else { writeln!(out, "{event}") }
        .context("print an event")
}
