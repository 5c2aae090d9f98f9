//! The readable resources. They contain the same as the output of the commands.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Extension, Json,
    extract::{Query, State as Extracted},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Health, InterfaceDocument, Lasting, Problem, State};
use crate::{
    host::cgroup::Hierarchy,
    kernel,
    model::{
        config::{Config, Policy},
        policy::Policies,
        uplink::group,
    },
    observe::{
        events::Event,
        metrics,
        status::{self, CgroupStatus, Status},
        uplinks,
    },
};

/// A steered cgroup, with its policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AttachmentDocument {
    /// The policy's name; for a manual policy, its interface.
    policy: String,
    /// The cgroup.
    #[serde(flatten)]
    cgroup: CgroupStatus,
}

/// The counters of one policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CountersDocument {
    /// The policy's name; for a manual policy, its interface.
    policy: String,
    /// The counters, by name.
    counters: BTreeMap<String, u64>,
}

/// Reads on a blocking thread, when one of the readers is free.
pub(super) async fn on_a_reader<T: Send + 'static>(
    state: &State,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let ending = |_closed| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    let reader = Arc::clone(&state.readers).acquire_owned().await.map_err(ending)?;
    let read = move || {
        let read = read();
        drop(reader);
        read
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| Problem::internal(&error))
}

async fn read(state: &State) -> Result<Status, Problem> {
    let (pins, store) = (state.pins.clone(), state.store.clone());
    let read = move || {
        let hierarchy = Hierarchy::find().map_err(|error| error.to_string())?;
        let mut status = status::read(&pins, &hierarchy).map_err(|error| error.to_string())?;
        status::add_unsteered(&mut status, Some(&pins), &hierarchy, &store).map_err(|error| error.to_string())?;
        Ok::<_, String>(status)
    };
    let status = on_a_reader(state, read).await?.map_err(|error| Problem::internal(&error))?;
    let mut status = Status { blind_spots: state.control.view().blind_spots.to_vec(), ..status };
    let cookie = kernel::netns_cookie().map_err(|error| Problem::internal(&error))?;
    status::judge(&mut status, cookie).await;
    Ok(status)
}

async fn read_health(state: &State) -> Result<Health, Problem> {
    let (store, policies) = (state.store.clone(), state.control.view().policies);
    let refused = move || match store.read() {
        Err(error) => Some(error.to_string()),
        Ok(config) if config.policies.is_empty() && !policies.is_empty() => {
            Some("there is no policy in the files; the previous policies stay in force".to_owned())
        }
        Ok(config) => {
            let in_force = Policies::new(Config { policies: policies.to_vec(), ..Config::default() });
            let emptied = in_force.emptied_by(&config);
            emptied.map(|file| format!("{file} has lost all its policies; the previous policies stay in force"))
        }
    };
    let config_error = on_a_reader(state, refused).await?;
    Ok(Health {
        ok: !state.control.view().behind && config_error.is_none(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pins: state.pins.root().display().to_string(),
        config: state.store.file().display().to_string(),
        config_error,
    })
}

/// The state in force, as `steer status --json` prints it.
#[utoipa::path(get, path = "/v1/status", tag = "state", responses((status = OK, body = Status)))]
pub(super) async fn status(Extracted(state): Extracted<State>) -> Result<Json<Status>, Problem> {
    read(&state).await.map(Json)
}

/// Every steered cgroup.
#[utoipa::path(get, path = "/v1/attachments", tag = "state", responses((status = OK, body = [AttachmentDocument])))]
pub(super) async fn attachments(Extracted(state): Extracted<State>) -> Result<Json<Vec<AttachmentDocument>>, Problem> {
    let policies = read(&state).await?.policies.into_iter();
    let attachments = policies.flat_map(|policy| {
        policy.cgroups.into_iter().map(move |cgroup| AttachmentDocument { policy: policy.name.clone(), cgroup })
    });
    Ok(Json(attachments.collect()))
}

/// The counters of every policy.
#[utoipa::path(get, path = "/v1/counters", tag = "state", responses((status = OK, body = [CountersDocument])))]
pub(super) async fn counters(Extracted(state): Extracted<State>) -> Result<Json<Vec<CountersDocument>>, Problem> {
    let policies = read(&state).await?.policies.into_iter();
    let counters = policies.map(|policy| CountersDocument { policy: policy.name, counters: policy.counters });
    Ok(Json(counters.collect()))
}

/// The links that the daemon has read.
#[utoipa::path(get, path = "/v1/interfaces", tag = "state", responses((status = OK, body = [InterfaceDocument])))]
pub(super) async fn interfaces(Extracted(state): Extracted<State>) -> Result<Json<Vec<InterfaceDocument>>, Problem> {
    let view = state.control.view();
    let mut links = InterfaceDocument::all(&view.links, &view.policies, &view.uplinks);
    // Only the lines that `auto` has chosen are in no file.
    let is_auto = |policy: &Policy| {
        let group = policy.target.uplink.group().and_then(|name| group::named(&view.uplinks, name));
        group.is_some_and(|group| group.auto.is_some())
    };
    let chooses: Vec<_> =
        view.policies.iter().filter(|policy| is_auto(policy)).map(|policy| policy.name.clone()).collect();
    if chooses.is_empty() {
        return Ok(Json(links));
    }
    let pins = state.pins.clone();
    let groups = on_a_reader(&state, move || uplinks::read(&pins, &[])).await?;
    for group in groups.map_err(|error| Problem::internal(&error))? {
        for link in &mut links {
            let is_it = |ifindex: i32| u32::try_from(ifindex) == Ok(link.ifindex);
            if group.members.iter().any(|member| member.ifindex.is_some_and(is_it)) {
                link.policies.extend(group.policies.iter().filter(|name| chooses.contains(name)).cloned());
                link.policies.sort();
                link.policies.dedup();
            }
        }
    }
    Ok(Json(links))
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct Which {
    /// The last events until now, at most 1024, instead of those from now on.
    #[serde(default)]
    once: bool,
}

/// What is stopped, and the changes of groups of uplinks, as it happens, until the client disconnects: one event a line, as `steer events --json`
/// prints them, and `{"missed": N}` where the client was too slow. First the events that nobody has read.
#[utoipa::path(get, path = "/v1/events", tag = "state", params(Which),
    responses((status = OK, body = Event, content_type = "application/x-ndjson")))]
pub(super) async fn events(
    Extracted(state): Extracted<State>,
    Extension(lasting): Extension<Lasting>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Problem> {
    let events = if which.once { state.feed.kept().await? } else { state.feed.listen().await? };
    lasting.0.store(true, Ordering::Relaxed);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], events))
}

/// The daemon's health: 503 while a failed operation is retried, or while its files have mistakes.
#[utoipa::path(get, path = "/v1/health", tag = "daemon",
    responses((status = OK, body = Health), (status = SERVICE_UNAVAILABLE, body = Health)))]
pub(super) async fn health(Extracted(state): Extracted<State>) -> Result<(StatusCode, Json<Health>), Problem> {
    let health = read_health(&state).await?;
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)))
}

/// The metrics, in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "state",
    responses((status = OK, body = String, content_type = "text/plain; version=0.0.4")))]
pub(super) async fn metrics(Extracted(state): Extracted<State>) -> Result<impl IntoResponse, Problem> {
    let health = read_health(&state).await?;
    let (pins, probed) = (state.pins.clone(), state.control.view().probed);
    let uplinks = on_a_reader(&state, move || uplinks::read(&pins, &probed)).await?;
    let uplinks = uplinks.map_err(|error| Problem::internal(&error))?;
    let tally = state.feed.tally().await?;
    let text = metrics::render(&read(&state).await?, &uplinks, &tally, health.ok)
        .map_err(|error| Problem::internal(&error))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}
