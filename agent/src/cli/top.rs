//! `steer top`: what steered cgroups create and send, live.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::output::{columns, say};
use crate::{
    host::capability::require_privilege,
    observe::top::{Frame, Sample, Screen, Sort, Watcher, text},
    run::instance::Instance,
};

/// Arguments of `steer top`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It counts with its own programs, which are attached to the steered cgroups while it runs; nothing is counted \
                  without it. Packets are counted before a guard stops them: stopped packets are marked. Links of another \
                  network namespace have no name, except for the policy's uplink, or for links of this namespace if the policy belongs \
                  to it. Bytes are those of the IP layer. On a terminal: q quits, s changes the order, arrows scroll, p pauses. \
                  Elsewhere, each reading is printed as a table."
)]
pub(super) struct Args {
    /// Seconds between two readings
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// End after this number of readings, and leave the last one on the terminal
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = at_least_one)]
    count: Option<u64>,
    /// The order of the rows
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Parses a number of readings.
fn at_least_one(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a number of readings, at least 1".to_owned())
}

/// Parses a period: a tenth of a second to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("not a number of seconds: {error}"))?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected 0.1 to 3600 seconds".to_owned())
    }
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("top")?;
    let pins = instance.pins.to_look()?.filter(|pins| pins.root().exists());
    let Some(pins) = pins else { bail!("nothing is steered, so there is nothing to show") };
    let mut readings = Readings { watcher: Watcher::new(pins)?, before: None };
    readings.take()?;
    super::block_on(async {
        let interval = ticks(args.interval);
        if io::stdout().is_terminal() && !args.json {
            on_terminal(args, interval, &mut readings).await
        } else {
            print(args, interval, &mut readings).await
        }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// Reads the counters, and compares each reading with the one before.
struct Readings {
    watcher: Watcher,
    before: Option<Sample>,
}

impl Readings {
    fn take(&mut self) -> anyhow::Result<Option<Frame>> {
        let after = self.watcher.look()?;
        let frame = self.before.as_ref().map(|before| Frame::between(before, &after));
        self.before = Some(after);
        Ok(frame)
    }
}

fn ticks(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn print(args: &Args, mut interval: Interval, readings: &mut Readings) -> anyhow::Result<()> {
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        interval.tick().await;
        let Some(frame) = readings.take()? else { continue };
        if args.json {
            say!("{}", serde_json::to_string(&frame)?)?;
        } else {
            say!("{}", text(frame, args.sort, None))?;
        }
        left -= 1;
    }
    Ok(())
}

async fn on_terminal(args: &Args, mut interval: Interval, readings: &mut Readings) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("take over the terminal")?;
    let mut screen = Screen::new(args.sort);
    let shown = show(args, &mut interval, readings, &mut terminal, &mut screen).await;
    ratatui::try_restore().context("restore the terminal")?;
    shown?;
    // What was asked for by number stays.
    if let Some((frame, sort)) = screen.into_frame().filter(|_| args.count.is_some()) {
        say!("{}", text(frame, sort, columns()))?;
    }
    Ok(())
}

async fn show(
    args: &Args,
    interval: &mut Interval,
    readings: &mut Readings,
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let mut keys = EventStream::new();
    let (mut terminated, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            _ = interval.tick() => {
                if let Some(frame) = readings.take()? {
                    screen.show(frame);
                    left -= 1;
                }
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if !screen.obey(key) {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("read the terminal"),
                None => return Ok(()),
            },
            _ = terminated.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
    }
    Ok(())
}
