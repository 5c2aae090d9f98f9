//! `steer events`: what is stopped, as it happens.

use std::process::ExitCode;

use anyhow::bail;

use super::output::{self, note, say};
use crate::{
    host::capability::require_privilege,
    kernel::Pins,
    observe::events::{Event, Events},
    run::{api::client::Client, instance::Instance},
};

/// Arguments of `steer events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows first the unread events: about a thousand are kept, later ones are counted. Of each kind \
                  (cgroup, policy, reason) ten a second are reported on each CPU, and the others are counted. Each event is shown \
                  once, so without a daemon a second `steer events` is refused; a daemon sends each to all of them. Exit status: \
                  0 after --once and `steer off`, 1 if nothing is steered."
)]
pub(super) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Show the events until now, and end
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        // The daemon reads the events for any number of listeners.
        if let (false, Some(daemon)) = (args.once, Client::find(&instance.socket).await) {
            return daemon.follow("/v1/events", |line| print_line(line, args.json)).await;
        }
        require_privilege("events")?;
        let Some(pins) = instance.pins.to_look()? else { bail!(NOTHING) };
        show(args, &pins).await
    })??;
    Ok(ExitCode::SUCCESS)
}

const NOTHING: &str = "nothing is steered, so there are no events; try again when a cgroup is steered";

async fn show(args: &Args, pins: &Pins) -> anyhow::Result<()> {
    let Some(mut events) = Events::open(pins)? else { bail!(NOTHING) };
    if args.once {
        return events.backlog()?.iter().try_for_each(|event| print(event, args.json));
    }
    while let Some(event) = events.next().await? {
        print(&event, args.json)?;
    }
    note("no more events: steer was switched off, or another version of steer has taken over");
    Ok(())
}

/// Prints a line of the daemon: an event, or the number of events that this reader missed.
fn print_line(line: &[u8], json: bool) -> anyhow::Result<()> {
    match serde_json::from_slice(line) {
        Ok(event) => print(&event, json),
        Err(_not_an_event) => Ok(output::write(line)?),
    }
}

fn print(event: &Event, json: bool) -> anyhow::Result<()> {
    if json {
        say!("{}", serde_json::to_string(event)?)?;
    } else {
        say!("{event}")?;
    }
    Ok(())
}
