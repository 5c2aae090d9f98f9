//! The socket for all users, on which `steer exec --policy` asks to be let into a steered cgroup.
//!
//! **Invariant:** it answers two kinds of request, which concern the process that connected, or a command of its user, and no other.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Extension, Json, Router, body::Bytes, extract::State as Extracted, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use steer_common::record::NAME_BYTES;

use super::{Problem, State};
use crate::{
    host::peer::Peer,
    observe::events::stopped::{self, Stopped},
    run::admission::{self, Admitted},
};

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The policy.
    pub policy: String,
}

/// A request for what was stopped of a command of the same user that was let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskStopped {
    /// The id of its cgroup.
    pub cgroup_id: u64,
}

/// The commands that were let in last: the id of the cgroup, and the user.
#[derive(Debug, Default)]
pub(super) struct Commands(Mutex<VecDeque<(u64, u32)>>);

impl Commands {
    /// How many are kept.
    const KEPT: usize = 4096;

    fn add(&self, cgroup_id: u64, uid: u32) {
        let mut commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.len() == Self::KEPT {
            commands.pop_front();
        }
        commands.push_back((cgroup_id, uid));
    }

    fn has(&self, cgroup_id: u64, uid: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(cgroup_id, uid))
    }
}

/// When a refusal of each user was logged last.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<u32, Instant>>);

impl Refusals {
    /// How often refusals of one user are logged.
    const PERIOD: Duration = Duration::from_mins(1);
    /// How many users are logged in that time. A user may have many ids, by a user namespace.
    const USERS: usize = 64;

    fn is_logged(&self, uid: u32) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|_, at| at.elapsed() < Self::PERIOD);
        let is_new = logged.len() < Self::USERS && !logged.contains_key(&uid);
        if is_new {
            logged.insert(uid, Instant::now());
        }
        is_new
    }
}

/// The path of the request.
pub const PATH: &str = "/v1/exec";

/// The path of the question what was stopped.
pub const STOPPED_PATH: &str = "/v1/exec/stopped";

/// The only routes.
pub(super) fn router(state: State) -> Router {
    Router::new()
        .route(PATH, post(exec))
        .route(STOPPED_PATH, post(stopped))
        .fallback(|| async {
            Problem::new(StatusCode::NOT_FOUND, "this socket answers POST /v1/exec and /v1/exec/stopped only")
        })
        .with_state(state)
}

async fn exec(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Arc<Peer>>,
    body: Bytes,
) -> Result<Json<Admitted>, Problem> {
    let Ask { policy } = serde_json::from_slice(&body).map_err(|error| Problem::field("", error.to_string()))?;
    if policy.len() >= NAME_BYTES {
        return Err(Problem::field(
            "policy",
            format!("expected the name of a policy, at most {} bytes", NAME_BYTES - 1),
        ));
    }
    let (view, refusals, commands) = (state.control.view(), Arc::clone(&state.refusals), Arc::clone(&state.commands));
    let (store, pins) = (state.store.clone(), state.pins.clone());
    let _turn = state.admissions.acquire().await.map_err(|error| Problem::internal(&error))?;
    let admit = move || {
        let config = store.read().map_err(|problems| Problem::internal(&problems))?;
        let known = (&*view.policies, &config, &*view.links);
        let admitted = admission::admit(&pins, &peer, &policy, known).map_err(|error| {
            if refusals.is_logged(peer.uid) {
                log::warn!("user {}, process {}: not let into policy {policy:?}: {error}", peer.uid, peer.pid);
            }
            if error.is_refusal() {
                Problem::new(StatusCode::FORBIDDEN, error.to_string())
            } else {
                Problem::internal(&error)
            }
        })?;
        commands.add(admitted.cgroup_id, peer.uid);
        Ok(admitted)
    };
    let admitted = tokio::task::spawn_blocking(admit).await;
    admitted.map_err(|error| Problem::internal(&error))?.map(Json)
}

async fn stopped(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Arc<Peer>>,
    body: Bytes,
) -> Result<Json<Vec<Stopped>>, Problem> {
    let AskStopped { cgroup_id } =
        serde_json::from_slice(&body).map_err(|error| Problem::field("", error.to_string()))?;
    if !state.commands.has(cgroup_id, peer.uid) {
        let detail = format!("no command of user {} was let into a cgroup with the id {cgroup_id}", peer.uid);
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let (events, pins) = (state.feed.known().await?, state.pins.clone());
    let stopped = super::reading::on_a_reader(&state, move || stopped::in_cgroup(&pins, cgroup_id, &events)).await?;
    Ok(Json(stopped.map_err(|error| Problem::internal(&error))?))
}
