//! The events for all who want them: the ring has one reader, and this is it, for as long as somebody listens.
//!
//! **Invariant:** a listener that does not keep up loses events, and is told how many; it delays nobody.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::Serialize;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

use super::Problem;
use crate::{
    kernel::Pins,
    observe::events::{Event, Events},
};

/// How many events a listener may be behind.
const BEHIND: usize = 256;

/// Where listeners come.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed(Arc<Mutex<Weak<Reading>>>);

/// The reading itself, which ends with the last listener.
#[derive(Debug)]
struct Reading {
    events: broadcast::Sender<Event>,
    task: JoinHandle<()>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Told in the place of events that were lost.
#[derive(Serialize)]
struct Missed {
    missed: u64,
}

impl Feed {
    /// The events from now on, and before them what nobody has read yet if nobody else listens: one JSON object a line.
    pub(super) fn listen(&self, pins: &Pins) -> Result<Body, Problem> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (reading, receiver) = match current.upgrade() {
            // One that has ended, as after `steer off` and on again, is of no use.
            Some(reading) if !reading.task.is_finished() => {
                let receiver = reading.events.subscribe();
                (reading, receiver)
            }
            _ => {
                let events = Events::open(pins).map_err(|error| Problem::internal(&error))?;
                let events = events.ok_or_else(|| Problem::internal(&"the pins are gone: steer was switched off"))?;
                let (sender, receiver) = broadcast::channel(BEHIND);
                let reading = Reading { task: tokio::spawn(read(events, sender.clone())), events: sender };
                (Arc::new(reading), receiver)
            }
        };
        *current = Arc::downgrade(&reading);
        drop(current);
        let lines = stream::unfold((reading, receiver), |(reading, mut receiver)| async move {
            let line = match receiver.recv().await {
                Ok(event) => line(&event),
                Err(RecvError::Lagged(missed)) => line(&Missed { missed }),
                Err(RecvError::Closed) => return None,
            };
            Some((Ok::<_, Infallible>(line), (reading, receiver)))
        });
        Ok(Body::from_stream(lines))
    }
}

async fn read(mut events: Events, listeners: broadcast::Sender<Event>) {
    loop {
        match events.next().await {
            // Nobody listening is no error: the last one has just gone.
            Ok(Some(event)) => drop(listeners.send(event)),
            Ok(None) => return,
            Err(error) => return log::error!("the events can no longer be read: {error}"),
        }
    }
}

fn line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
