//! What the API asks of the daemon, and what the daemon shows it without being asked.
//!
//! **Invariant:** nothing is changed by anybody but the daemon's worker, so requests are in line with events, and with each
//! other. Each is answered within [`ANSWER`].

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{PolicyDocument, PolicyRequest, Problem};
use crate::{host::link::Table, kernel::Pins, model::config};

/// How many requests may be on their way to the daemon's loop, which takes them at once.
const WAITING: usize = 16;
/// How long until an answer. Longer than the daemon waits for the lock, and shorter than a connection lasts.
const ANSWER: Duration = Duration::from_secs(8);

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// What is asked.
#[derive(Debug)]
pub enum Request {
    /// Keep a policy, and carry it out. The answer: the policy, and whether it is new.
    Put(String, Box<PolicyRequest>, Reply<(PolicyDocument, bool)>),
    /// Forget a policy, and carry that out.
    Remove(String, Reply<()>),
    /// Read the files again.
    Reload(Reply<()>),
}

impl Request {
    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Put(_, _, reply) => reply.is_closed(),
            Self::Remove(_, reply) | Self::Reload(reply) => reply.is_closed(),
        }
    }

    /// Answers that too many requests wait.
    pub fn refuse(self) {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait; try again later");
        match self {
            Self::Put(_, _, reply) => drop(reply.send(Err(problem))),
            Self::Remove(_, reply) | Self::Reload(reply) => drop(reply.send(Err(problem))),
        }
    }
}

/// What the daemon shows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The policies as read last.
    pub policies: Arc<[config::Policy]>,
    /// The links as seen.
    pub links: Arc<Table>,
    /// Whether something failed and will be tried again.
    pub behind: bool,
}

/// The way to the daemon.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    pins: Pins,
}

impl Control {
    /// The way, and its ends: requests come out of the one, and what is shown goes into the other.
    pub fn new(pins: Pins) -> (Self, mpsc::Receiver<Request>, watch::Sender<View>) {
        let (requests, receiver) = mpsc::channel(WAITING);
        let (sender, view) = watch::channel(View::default());
        (Self { requests, view, pins }, receiver, sender)
    }

    /// What the daemon shows now.
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    pub(super) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Problem> {
        let gone = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
        let ask = async {
            let (reply, answer) = oneshot::channel();
            self.requests.send(request(reply)).await.map_err(|_ending| gone())?;
            answer.await.map_err(|_ending| gone())?
        };
        timeout(ANSWER, ask).await.unwrap_or_else(|_elapsed| Err(self.late()))
    }

    fn late(&self) -> Problem {
        let holder = self.pins.lock_holder();
        let why = holder.map_or_else(String::new, |pid| {
            format!(": process {pid} holds the lock of {}", self.pins.root().display())
        });
        let seconds = ANSWER.as_secs();
        let detail =
            format!("the daemon did not finish within {seconds} s{why}; what was asked may still be carried out");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }
}
