//! `/v1/policies`: reading, keeping and removing policies.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State as Extracted},
    http::StatusCode,
};

use serde_json::{Map, Value};

use super::{Peer, PolicyDocument, PolicyRequest, Problem, Request, State};
use crate::model::spec::PolicySpec;

/// The policies as the daemon last read them.
fn all(state: &State) -> Vec<PolicyDocument> {
    let policies = state.control.view().policies;
    policies.iter().map(|policy| PolicyDocument::new(policy, state.store.kept(policy))).collect()
}

/// Every policy, in order of precedence.
#[utoipa::path(get, path = "/v1/policies", tag = "policies",
    responses((status = OK, body = [PolicyDocument]), (status = "4XX", body = Problem)))]
pub(super) async fn list(Extracted(state): Extracted<State>) -> Result<Json<Vec<PolicyDocument>>, Problem> {
    Ok(Json(all(&state)))
}

/// One policy.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    responses((status = OK, body = PolicyDocument), (status = NOT_FOUND, body = Problem)))]
pub(super) async fn show(
    Extracted(state): Extracted<State>,
    Path(name): Path<String>,
) -> Result<Json<PolicyDocument>, Problem> {
    let found = all(&state).into_iter().find(|policy| policy.name == name);
    found.map(Json).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no policy {name:?}")))
}

/// Keeps a policy, which may replace one of this name, and applies it. Only for root.
#[utoipa::path(put, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    request_body = PolicyRequest,
    responses((status = OK, description = "Changed", body = PolicyDocument),
              (status = CREATED, description = "New", body = PolicyDocument),
              (status = FORBIDDEN, body = Problem),
              (status = CONFLICT, description = "It is in the configuration file", body = Problem),
              (status = UNPROCESSABLE_ENTITY, description = "It has mistakes", body = Problem)))]
pub(super) async fn put(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<PolicyDocument>), Problem> {
    peer.may_change()?;
    let policy = parse(&body)?;
    let (policy, is_new) = state.control.ask(|reply| Request::Put(name, Box::new(policy), reply)).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(policy)))
}

/// Removes a policy; its cgroups are no longer steered by it. Only for root.
#[utoipa::path(delete, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    responses((status = NO_CONTENT), (status = FORBIDDEN, body = Problem), (status = NOT_FOUND, body = Problem),
              (status = CONFLICT, description = "It is in the configuration file", body = Problem)))]
pub(super) async fn remove(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    peer.may_change()?;
    state.control.ask(|reply| Request::Remove(name, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads all files again, and applies them. Only for root.
#[utoipa::path(post, path = "/v1/reload", tag = "daemon",
    responses((status = NO_CONTENT), (status = FORBIDDEN, body = Problem),
              (status = UNPROCESSABLE_ENTITY, description = "The files have mistakes; nothing has changed", body = Problem)))]
pub(super) async fn reload(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Peer>,
) -> Result<StatusCode, Problem> {
    peer.may_change()?;
    state.control.ask(Request::Reload).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Parses the body. The error names the invalid field.
pub fn parse(body: &[u8]) -> Result<PolicyRequest, Problem> {
    let mut members: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| Problem::field("", error.to_string()))?;
    let runtime = match members.remove("runtime") {
        None => false,
        Some(Value::Bool(runtime)) => runtime,
        Some(_) => return Err(Problem::field("runtime", "expected true or false".to_owned())),
    };
    let policy: PolicySpec = serde_path_to_error::deserialize(Value::Object(members))
        .map_err(|error| Problem::field(error.path().to_string(), error.into_inner().to_string()))?;
    for (key, is_missing) in [("interface", policy.interface.is_none()), ("cgroups", policy.cgroups.is_none())] {
        if is_missing {
            return Err(Problem::field("", format!("missing field `{key}`")));
        }
    }
    Ok(PolicyRequest { policy, runtime })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn wrong_bodies_name_the_field() {
        let cases = [
            ("", "", "EOF"),
            ("[]", "", "invalid"),
            (r#"{"interface": 1, "cgroups": []}"#, "interface", "expected a string"),
            (r#"{"interface": "wg0"}"#, "", "missing field `cgroups`"),
            (r#"{"interface": "wg0", "cgroups": ["/a", 7]}"#, "cgroups[1]", "expected a string"),
            (r#"{"interface": "wg0", "cgroups": [], "enforce": "lax"}"#, "enforce", "expected \"steer\" or \"strict\""),
            (r#"{"interface": "wg0", "cgroups": [], "colour": "red"}"#, "colour", "unknown field"),
            (r#"{"interface": "wg0", "cgroups": []} x"#, "", "trailing"),
        ];
        for (body, field, detail) in cases {
            let problem = parse(body.as_bytes()).expect_err(body);
            assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, field), "{body}: {problem:?}");
            assert!(problem.errors[0].detail.contains(detail), "{body}: {problem:?}");
        }
        assert!(parse(br#"{"interface": "wg0", "cgroups": ["/a"], "dns": ["10.64.0.1"]}"#).is_ok());
    }
}
