//! `steer events`: what is stopped, and the changes of groups of uplinks, as it happens.

use std::{process::ExitCode, str::FromStr as _, time::Duration};

use anyhow::bail;
use jiff::tz::TimeZone;
use nix::sys::signal::{SigHandler, Signal, raise};
use tokio::{
    signal::{self, unix::SignalKind},
    time::{Instant, sleep},
};

use super::output::{self, note, paragraph, say};
use crate::{
    apply::routes::{self, Leftovers},
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel::Pins,
    model::{quote::shown, similar},
    observe::events::{Event, Events, Reason},
    run::{
        api::client::{self, Client, Following},
        instance::Instance,
    },
};

/// In what time a daemon starts again.
const RESTART: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `steer events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows first the unread events. What is marked as observed was not stopped: its policy has enforce = \"observe\", and strict would stop it. Of each kind (cgroup, policy, reason) ten a second are reported on each CPU, and the others are \
                  counted. A daemon reads the events, keeps the last 1024 for --once, and sends new ones to all who follow. Without a \
                  daemon about a thousand are kept, each is shown once, and a second `steer events` is refused. It waits if nothing \
                  is steered yet. While it runs, the events of a `steer exec` that has ended are kept for it. Exit status: 0 after --once, \
                  --explain and `steer off`, 1 if nothing is steered and --once is given, or if there is no such reason."
)]
pub(super) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Show the events until now, and end
    #[arg(long)]
    once: bool,
    /// Show times in UTC, as JSON has them
    #[arg(long)]
    utc: bool,
    /// Say what a reason means and what to change, or list all reasons
    #[arg(long, value_name = "REASON", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["json", "once", "utc"])]
    explain: Option<String>,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    if let Some(reason) = &args.explain {
        explain(reason)?;
        return Ok(ExitCode::SUCCESS);
    }
    let form = match (args.json, args.utc) {
        (true, _) => Form::Json,
        (false, true) => Form::Text(None),
        (false, false) => Form::Text(Some(TimeZone::system())),
    };
    super::block_on(async {
        // The daemon reads the events for any number of listeners.
        if let Some(daemon) = Client::find(&instance.socket).await {
            if args.once {
                return Ok(daemon.follow("/v1/events?once=true", |line| form.print_line(line)).await?);
            }
            return follow_daemons(&form, instance, daemon).await;
        }
        require_privilege("events")?;
        if args.once { show_unread(&form, instance) } else { follow(&form, instance).await }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// How events are printed.
enum Form {
    Json,
    /// With the time of a zone; absent: in UTC.
    Text(Option<TimeZone>),
}

impl Form {
    fn print(&self, event: &Event) -> anyhow::Result<()> {
        match self {
            Self::Json => say!("{}", serde_json::to_string(event)?)?,
            Self::Text(Some(zone)) => say!("{}", event.line(zone))?,
            Self::Text(None) => say!("{event}")?,
        }
        Ok(())
    }

    /// Prints a line of the daemon: an event, or the number of events that this reader missed.
    fn print_line(&self, line: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice(line) {
            Ok(event) => self.print(&event),
            Err(_not_an_event) => Ok(output::write(line)?),
        }
    }
}

/// Prints what a reason means; all of them if the name is empty.
fn explain(name: &str) -> anyhow::Result<()> {
    if name.is_empty() {
        for reason in Reason::all() {
            paragraph(&format!("{}: {}", reason.name(), reason.meaning()), 4)?;
        }
        return Ok(());
    }
    let Ok(reason) = Reason::from_str(name) else {
        let names = || Reason::all().map(|reason| reason.name().to_owned());
        let meant = similar::nearest(name, names()).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        bail!(
            "no reason of an event is named {}{meant}\nthe reasons are {}",
            shown(name),
            names().collect::<Vec<_>>().join(", ")
        );
    };
    paragraph(&format!("{}: {}", reason.name(), reason.meaning()), 0)?;
    paragraph(&format!("What to change: {}", reason.cure()), 0)?;
    Ok(())
}

fn show_unread(form: &Form, instance: &Instance) -> anyhow::Result<()> {
    let events = instance.pins.to_look()?.map(|pins| Events::open(&pins)).transpose()?.flatten();
    let Some(mut events) = events else { bail!("nothing is steered, so there are no unread events") };
    events.backlog()?.iter().try_for_each(|event| form.print(event))
}

/// Follows the daemon, and the next one after a restart.
async fn follow_daemons(form: &Form, instance: &Instance, mut daemon: Client<'_>) -> anyhow::Result<()> {
    // Until when the next daemon is to answer.
    let mut deadline: Option<Instant> = None;
    loop {
        let began = Instant::now();
        match daemon.follow("/v1/events", |line| form.print_line(line)).await {
            Ok(()) | Err(Following::Ended) => {}
            // It was about to end.
            Err(Following::Failed(error))
                if deadline.is_some_and(|until| Instant::now() < until) && error.is::<client::Error>() => {}
            Err(Following::Failed(error)) => return Err(error),
        }
        // `off` ends the daemon before it removes the last directory. Without privilege, that cannot be seen.
        sleep(LOOK).await;
        let is_there = || matches!(instance.pins.to_look(), Ok(Some(pins)) if pins.root().exists());
        let is_off = || require_privilege("events").is_ok() && !is_there();
        if is_off() {
            note("no more events: steer was switched off");
            return Ok(());
        }
        let until = deadline.filter(|_| began.elapsed() < RESTART).unwrap_or_else(|| {
            note("the daemon has ended; waiting for the next one");
            Instant::now() + RESTART
        });
        deadline = Some(until);
        daemon = loop {
            if is_off() {
                note("no more events: steer was switched off");
                return Ok(());
            }
            sleep(LOOK).await;
            if let Some(next) = Client::find(&instance.socket).await {
                break next;
            }
            anyhow::ensure!(
                Instant::now() < until,
                "no daemon has started within {} s; `steer events` shows events without one, too",
                RESTART.as_secs()
            );
        };
    }
}

/// Follows until `steer off` or a signal. Then the pins may be unused.
async fn follow(form: &Form, instance: &Instance) -> anyhow::Result<()> {
    let pins = instance.pins.to_change()?;
    let (mut interrupt, mut terminate) =
        (signal::unix::signal(SignalKind::interrupt())?, signal::unix::signal(SignalKind::terminate())?);
    let stopped_by = tokio::select! {
        shown = show(form, &pins) => return shown,
        _ = interrupt.recv() => Signal::SIGINT,
        _ = terminate.recv() => Signal::SIGTERM,
    };
    if let Some(lock) = pins.lock()? {
        routes::tidy(&pins, lock, &Hierarchy::find()?, Leftovers::Stay)?;
    }
    // The caller sees by which signal it ended.
    // SAFETY: the default action is no handler.
    unsafe { nix::sys::signal::signal(stopped_by, SigHandler::SigDfl) }?;
    raise(stopped_by)?;
    Ok(())
}

async fn show(form: &Form, pins: &Pins) -> anyhow::Result<()> {
    if let Some(mut events) = Events::wait(pins).await? {
        while let Some(event) = events.next().await? {
            form.print(&event)?;
        }
    }
    note("no more events: steer was switched off, or another version of steer has taken over");
    Ok(())
}
