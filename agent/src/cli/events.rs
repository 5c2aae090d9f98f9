//! `steer events`: what is stopped, as it happens.

use std::process::ExitCode;

use anyhow::bail;
use nix::sys::signal::{SigHandler, Signal, raise};
use tokio::signal::{self, unix::SignalKind};

use super::output::{self, note, say};
use crate::{
    apply::routes,
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel::Pins,
    observe::events::{Event, Events},
    run::{api::client::Client, instance::Instance},
};

/// Arguments of `steer events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows first the unread events: about a thousand are kept, later ones are counted. Of each kind \
                  (cgroup, policy, reason) ten a second are reported on each CPU, and the others are counted. Each event is shown \
                  once, so without a daemon a second `steer events` is refused; a daemon sends each to all of them. It waits if nothing \
                  is steered yet. While it runs, the events of a `steer exec` that has ended are kept for it. Exit status: 0 after --once and \
                  `steer off`, 1 if nothing is steered and --once is given."
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
        if args.once { show_unread(args.json, instance) } else { follow(args.json, instance).await }
    })??;
    Ok(ExitCode::SUCCESS)
}

fn show_unread(json: bool, instance: &Instance) -> anyhow::Result<()> {
    let events = instance.pins.to_look()?.map(|pins| Events::open(&pins)).transpose()?.flatten();
    let Some(events) = events else { bail!("nothing is steered, so there are no unread events") };
    events.backlog()?.iter().try_for_each(|event| print(event, json))
}

/// Follows until `steer off` or a signal. Then the pins may be unused.
async fn follow(json: bool, instance: &Instance) -> anyhow::Result<()> {
    let pins = instance.pins.to_change()?;
    let (mut interrupt, mut terminate) =
        (signal::unix::signal(SignalKind::interrupt())?, signal::unix::signal(SignalKind::terminate())?);
    let stopped_by = tokio::select! {
        shown = show(json, &pins) => return shown,
        _ = interrupt.recv() => Signal::SIGINT,
        _ = terminate.recv() => Signal::SIGTERM,
    };
    if let Some(lock) = pins.lock()? {
        routes::tidy(&pins, lock, &Hierarchy::find()?)?;
    }
    // The caller sees by which signal it ended.
    // SAFETY: the default action is no handler.
    unsafe { nix::sys::signal::signal(stopped_by, SigHandler::SigDfl) }?;
    raise(stopped_by)?;
    Ok(())
}

async fn show(json: bool, pins: &Pins) -> anyhow::Result<()> {
    if let Some(mut events) = Events::wait(pins).await? {
        while let Some(event) = events.next().await? {
            print(&event, json)?;
        }
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
