//! Reads the events while the daemon runs: logs them, keeps the last ones, counts those of groups, and passes them on to all listeners. The ring
//! buffer has only one reader.
//!
//! **Invariant:** a listener that is too slow loses events and receives their number; it delays no other listener, and neither the log.

use std::{collections::VecDeque, convert::Infallible, future::pending, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc, oneshot,
    },
    time::{Instant, sleep, sleep_until},
};

use super::Problem;
use crate::{
    kernel::Pins,
    observe::events::{Event, Events, Journal, Tally},
};

/// How many events a listener may lag behind.
const BEHIND: usize = 256;
/// How many events are kept for those who ask later.
const KEPT: usize = 1024;
/// How many questions may wait.
const QUESTIONS: usize = 16;
/// When to try again to read the events, which another process reads.
const RETRY: Duration = Duration::from_mins(1);

/// The way to the reader.
#[derive(Clone, Debug)]
pub(super) struct Feed(mpsc::Sender<Question>);

#[derive(Debug)]
enum Question {
    /// The events that no listener has got, and all from now on.
    Listen(oneshot::Sender<Result<Listening, Problem>>),
    /// The events that are kept.
    Kept(oneshot::Sender<Result<Vec<Event>, Problem>>),
    /// The counts.
    Tally(oneshot::Sender<Tally>),
}

/// What a listener gets: the events before, and those from now on.
type Listening = (Vec<Event>, broadcast::Receiver<Event>);

/// Sent in place of lost events.
#[derive(Serialize)]
struct Missed {
    missed: u64,
}

impl Feed {
    /// Starts the reader, which ends with the last copy of this.
    pub(super) fn start(pins: Pins) -> Self {
        let (sender, questions) = mpsc::channel(QUESTIONS);
        tokio::spawn(Reader::new().run(pins, questions));
        Self(sender)
    }

    /// The events from now on, one JSON object a line. The first listener also gets those before.
    pub(super) async fn listen(&self) -> Result<Body, Problem> {
        let (earlier, receiver) = self.ask(Question::Listen).await??;
        let later = stream::unfold(receiver, |mut receiver| async move {
            let line = match receiver.recv().await {
                Ok(event) => line(&event),
                Err(RecvError::Lagged(missed)) => line(&Missed { missed }),
                Err(RecvError::Closed) => return None,
            };
            Some((line, receiver))
        });
        let lines = stream::iter(earlier).map(|event| line(&event)).chain(later);
        Ok(Body::from_stream(lines.map(Ok::<_, Infallible>)))
    }

    /// The last events until now, one JSON object a line.
    pub(super) async fn kept(&self) -> Result<Body, Problem> {
        let kept = self.known().await?;
        Ok(Body::from_stream(stream::iter(kept).map(|event| Ok::<_, Infallible>(line(&event)))))
    }

    /// The last events until now.
    pub(super) async fn known(&self) -> Result<Vec<Event>, Problem> {
        self.ask(Question::Kept).await?
    }

    /// What the events tell of groups of uplinks.
    pub(super) async fn tally(&self) -> Result<Tally, Problem> {
        self.ask(Question::Tally).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Problem> {
        let gone = || Problem::internal(&"the events are no longer read");
        let (reply, answer) = oneshot::channel();
        self.0.send(question(reply)).await.map_err(|_ended| gone())?;
        answer.await.map_err(|_ended| gone())
    }
}

/// The one reader.
struct Reader {
    events: Option<Events>,
    /// The last events, the oldest first.
    kept: VecDeque<Event>,
    /// How many of these no listener has got.
    unread: usize,
    listeners: broadcast::Sender<Event>,
    journal: Journal,
    tally: Tally,
}

impl Reader {
    fn new() -> Self {
        Self {
            events: None,
            kept: VecDeque::new(),
            unread: 0,
            listeners: broadcast::channel(BEHIND).0,
            journal: Journal::default(),
            tally: Tally::default(),
        }
    }

    async fn run(mut self, pins: Pins, mut questions: mpsc::Receiver<Question>) {
        if let Err(problem) = self.open(&pins) {
            log::warn!("stopped traffic is not logged: {}", problem.detail);
        }
        loop {
            let due = self.journal.due();
            let next = async {
                if let Some(events) = &mut self.events {
                    return events.next().await;
                }
                sleep(RETRY).await;
                Ok(None)
            };
            tokio::select! {
                biased;
                question = questions.recv() => match question {
                    Some(question) => self.answer(&pins, question),
                    None => return,
                },
                next = next => match next {
                    Ok(Some(event)) => self.take_in(event),
                    Ok(None) if self.events.is_none() => drop(self.open(&pins)),
                    Ok(None) => self.events = None,
                    Err(error) => {
                        log::error!("the events can no longer be read: {error}");
                        self.events = None;
                    }
                },
                () = until(due) => self.journal.lines(Instant::now()).iter().for_each(|line| log::info!("{line}")),
            }
        }
    }

    /// Opens the events, unless they are open.
    fn open(&mut self, pins: &Pins) -> Result<(), Problem> {
        if self.events.is_none() {
            self.events = Events::open(pins).map_err(|error| Problem::internal(&error))?;
        }
        Ok(())
    }

    fn take_in(&mut self, event: Event) {
        self.tally.add(&event);
        if let Some(line) = self.journal.add(&event, Instant::now()) {
            log::info!("{line}");
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(event.clone());
        // An error is no listener.
        let is_read = self.listeners.send(event).is_ok();
        self.unread = if is_read { 0 } else { (self.unread + 1).min(KEPT) };
    }

    /// Takes in all events until now.
    fn catch_up(&mut self, pins: &Pins) -> Result<(), Problem> {
        self.open(pins)?;
        let gone = || Problem::internal(&"the pins are gone: steer was switched off");
        let backlog = self.events.as_mut().ok_or_else(gone)?.backlog().map_err(|error| Problem::internal(&error))?;
        for event in backlog {
            self.take_in(event);
        }
        Ok(())
    }

    /// A client that has disconnected gets no answer.
    fn answer(&mut self, pins: &Pins, question: Question) {
        let caught_up = self.catch_up(pins);
        match question {
            Question::Listen(reply) => {
                let read = self.kept.len().saturating_sub(self.unread);
                let answer =
                    caught_up.map(|()| (self.kept.range(read..).cloned().collect(), self.listeners.subscribe()));
                self.unread = if answer.is_ok() { 0 } else { self.unread };
                drop(reply.send(answer));
            }
            Question::Kept(reply) => {
                self.unread = if caught_up.is_ok() { 0 } else { self.unread };
                drop(reply.send(caught_up.map(|()| self.kept.iter().cloned().collect())));
            }
            Question::Tally(reply) => drop(reply.send(self.tally.clone())),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

fn line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
