//! Distributes events to all listeners. The ring buffer has only one reader, which runs while there is a listener.
//!
//! **Invariant:** a listener that is too slow loses events and receives their number; it delays no other listener.

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

/// How many events a listener may lag behind.
const BEHIND: usize = 256;

/// The sender to which listeners subscribe.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed(Arc<Mutex<Weak<Reading>>>);

/// The reading task, which ends with the last listener.
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

/// Sent in place of lost events.
#[derive(Serialize)]
struct Missed {
    missed: u64,
}

impl Feed {
    /// The events from now on, one JSON object a line. The first listener also gets the unread events of the ring buffer.
    pub(super) fn listen(&self, pins: &Pins) -> Result<Body, Problem> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (reading, receiver) = match current.upgrade() {
            // A task that has ended, as after `steer off`, cannot be used again.
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
            // It is no error if no one listens: the last listener has just left.
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
