//! The daemon's local API: HTTP with JSON on a unix socket, below `/v1`, described by an OpenAPI document that it serves itself.
//!
//! Any user who may open the socket may read; only root may make changes.
//!
//! **Invariant:** no client can keep the daemon from steering. A separate thread serves requests. The daemon's worker makes their
//! changes, one request at a time and in turn with its other work. Requests that only read do not wait for the worker. See
//! `serve` for the limits of a client.

pub mod client;
mod control;
mod document;
pub mod exec;
mod feed;
mod policies;
mod problem;
mod reading;
mod serve;
mod uplinks;

use std::sync::{Arc, atomic::AtomicBool};

use axum::{Json, http::StatusCode, routing::get};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use control::{Control, Decided, Reply, Request, View};
pub use document::{Health, InterfaceDocument, PolicyDocument, PolicyRequest};
pub use policies::parse as parse_policy;
pub use problem::{FieldError, Place, Problem};
pub use serve::{Serving, Socket, bind_metrics, group_id, require_loopback};

use crate::{host::policy_files::Store, kernel::Pins};

/// How many requests may read the pinned maps or files at once. Others wait.
const READERS: usize = 2;

/// The state that the handlers share.
#[derive(Clone, Debug)]
struct State {
    control: Control,
    store: Store,
    pins: Pins,
    readers: Arc<Semaphore>,
    /// One process is let in at a time.
    admissions: Arc<Semaphore>,
    refusals: Arc<exec::Refusals>,
    commands: Arc<exec::Commands>,
    feed: feed::Feed,
}

/// Whether a connection may exceed its lifetime.
#[derive(Clone, Debug, Default)]
struct Lasting(Arc<AtomicBool>);

/// The user of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: u32,
}

impl Peer {
    /// Refuses all users but root.
    fn may_change(self) -> Result<(), Problem> {
        if self.uid == 0 {
            return Ok(());
        }
        Err(Problem::new(StatusCode::FORBIDDEN, format!("user {} may read; only root may change anything", self.uid)))
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "steer",
    description = "The local API of the steer daemon. Errors are problem documents (RFC 9457)."
))]
struct Document;

impl State {
    /// Needs a tokio runtime.
    fn start(control: Control, store: Store, pins: Pins) -> Self {
        let feed = feed::Feed::start(pins.clone());
        Self {
            control,
            store,
            pins,
            readers: Arc::new(Semaphore::new(READERS)),
            admissions: Arc::new(Semaphore::new(1)),
            refusals: Arc::default(),
            commands: Arc::default(),
            feed,
        }
    }
}

/// The routes that are served over TCP, to any user of this host.
fn public_router(state: State) -> axum::Router {
    axum::Router::new().route("/metrics", get(reading::metrics)).with_state(state)
}

/// All routes, and their OpenAPI description.
fn router(state: State) -> axum::Router {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(policies::list))
        .routes(routes!(policies::show, policies::put, policies::remove))
        .routes(routes!(policies::reload))
        .routes(routes!(reading::status))
        .routes(routes!(reading::attachments))
        .routes(routes!(reading::counters))
        .routes(routes!(reading::interfaces))
        .routes(routes!(uplinks::list))
        .routes(routes!(uplinks::put_hand))
        .routes(routes!(reading::events))
        .routes(routes!(reading::health))
        .routes(routes!(reading::metrics))
        .split_for_parts();
    router
        .route("/v1/openapi.json", get(|| async move { Json(document.clone()) }))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such resource; see /v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this resource has no such method; see /v1/openapi.json")
        })
        .with_state(state)
}
