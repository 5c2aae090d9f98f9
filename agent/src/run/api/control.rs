//! What the API asks of the daemon's one loop, which answers between two events.
//!
//! **Invariant:** nothing is changed by anybody but the loop, so requests are in line with events, and with each other.

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::{Health, InterfaceDocument, PolicyDocument, PolicyRequest, Problem};

/// How many requests may wait.
const WAITING: usize = 16;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// What is asked.
#[derive(Debug)]
pub enum Request {
    /// The policies as read last.
    Policies(Reply<Vec<PolicyDocument>>),
    /// The links as seen.
    Interfaces(Reply<Vec<InterfaceDocument>>),
    /// How it does.
    Health(Reply<Health>),
    /// Keep a policy, and carry it out. The answer: the policy, and whether it is new.
    Put(String, Box<PolicyRequest>, Reply<(PolicyDocument, bool)>),
    /// Forget a policy, and carry that out.
    Remove(String, Reply<()>),
    /// Read the files again.
    Reload(Reply<()>),
}

/// The way to the loop.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Request>);

impl Control {
    /// The way, and its end.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    pub(super) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let gone = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
        self.0.send(request(reply)).await.map_err(|_ending| gone())?;
        answer.await.map_err(|_ending| gone())?
    }
}
