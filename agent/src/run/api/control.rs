//! The requests of the API to the daemon, and the state that the daemon publishes for the API.
//!
//! **Invariant:** only the daemon's worker changes anything, so requests and events are carried out one after another. Each
//! request is answered within [`ANSWER`].

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{PolicyDocument, PolicyRequest, Problem};
use crate::{
    apply::{blind_spots::BlindSpot, uplinks::Probed},
    host::link::Table,
    kernel::Pins,
    model::{
        config,
        uplink::{group::Group, health::Hand},
    },
};

/// Queued requests to the daemon's loop, which takes them immediately.
const WAITING: usize = 16;
/// Timeout of an answer. It is longer than the daemon waits for the lock, and shorter than the lifetime of a connection.
const ANSWER: Duration = Duration::from_secs(8);

/// The channel for an answer.
pub type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// A request.
#[derive(Debug)]
pub enum Request {
    /// Keep a policy, and apply it. The answer: the policy, and whether it is new.
    Put(String, Box<PolicyRequest>, Reply<(PolicyDocument, bool)>),
    /// Remove a policy, and apply the change.
    Remove(String, Reply<()>),
    /// Carry out what an administrator has decided about a member of a group. The answer: the sockets that stay on it.
    Hand(Decided, Reply<Vec<String>>),
    /// Read the files again.
    Reload(Reply<()>),
}

/// What an administrator has decided about a member of a group.
#[derive(Debug)]
pub struct Decided {
    /// The name of the group.
    pub group: String,
    /// The interface of the member.
    pub member: String,
    /// The decision.
    pub hand: Hand,
}

impl Request {
    /// Whether the client no longer waits for the answer.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Put(_, _, reply) => reply.is_closed(),
            Self::Hand(_, reply) => reply.is_closed(),
            Self::Remove(_, reply) | Self::Reload(reply) => reply.is_closed(),
        }
    }

    /// Answers that too many requests are queued.
    pub fn refuse(self) {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait; try again later");
        match self {
            Self::Put(_, _, reply) => drop(reply.send(Err(problem))),
            Self::Hand(_, reply) => drop(reply.send(Err(problem))),
            Self::Remove(_, reply) | Self::Reload(reply) => drop(reply.send(Err(problem))),
        }
    }
}

/// The state that the daemon publishes.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The policies as last read.
    pub policies: Arc<[config::Policy]>,
    /// The groups of uplinks as last read.
    pub uplinks: Arc<[Group]>,
    /// The current links.
    pub links: Arc<Table>,
    /// Where the daemon does not see new cgroups.
    pub blind_spots: Arc<[BlindSpot]>,
    /// The last results of probes.
    pub probed: Arc<[Probed]>,
    /// Whether an operation failed and will be retried.
    pub behind: bool,
}

/// The API's connection to the daemon.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    pins: Pins,
}

impl Control {
    /// A connection, the receiver of its requests, and the sender of the published state.
    pub fn new(pins: Pins) -> (Self, mpsc::Receiver<Request>, watch::Sender<View>) {
        let (requests, receiver) = mpsc::channel(WAITING);
        let (sender, view) = watch::channel(View::default());
        (Self { requests, view, pins }, receiver, sender)
    }

    /// The state that the daemon published last.
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
            format!(": process {pid} holds the lock of {}", self.pins.name().display())
        });
        let seconds = ANSWER.as_secs();
        let detail =
            format!("the daemon did not finish within {seconds} s{why}; what was asked may still be carried out");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }
}
