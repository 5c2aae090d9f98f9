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
    if policy.named_uplink().is_none() {
        return Err(Problem::field("", "missing field `interface` or `uplink`".to_owned()));
    }
    if !policy.names_cgroups() {
        return Err(Problem::field("", "missing field `cgroups`, `units`, `user_units` or `users`".to_owned()));
    }
    if policy.interface.is_some() && policy.uplink.is_some() {
        return Err(Problem::field("uplink", "expected interface or uplink, not both".to_owned()));
    }
    Ok(PolicyRequest { policy, runtime })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::{
        host::policy_files::Kept,
        model::config::{Source, parse_all},
        run::api::PolicyDocument,
    };

    #[test]
    fn wrong_bodies_name_the_field() {
        let cases = [
            ("", "", "EOF"),
            ("[]", "", "invalid"),
            (r#"{"interface": 1, "cgroups": []}"#, "interface", "expected a string"),
            (r#"{"interface": "wg0"}"#, "", "missing field `cgroups`"),
            (r#"{"cgroups": []}"#, "", "missing field `interface` or `uplink`"),
            (r#"{"interface": "wg0", "uplink": "lines", "cgroups": []}"#, "uplink", "not both"),
            (r#"{"interface": "wg0", "cgroups": ["/a", 7]}"#, "cgroups[1]", "expected a string"),
            (
                r#"{"interface": "wg0", "cgroups": [], "enforce": "lax"}"#,
                "enforce",
                "expected \"steer\", \"observe\" or \"strict\"",
            ),
            (r#"{"interface": "wg0", "cgroups": [], "colour": "red"}"#, "colour", "unknown field"),
            (r#"{"interface": "wg0", "cgroups": [], "local": "host"}"#, "local", "expected a list of strings"),
            (r#"{"interface": "wg0", "cgroups": [], "local": ["host", "wan"]}"#, "local[1]", "expected \"host\""),
            (r#"{"interface": "wg0", "cgroups": [], "except": {}}"#, "except", "expected a list of tables"),
            (r#"{"interface": "wg0", "cgroups": [], "except": [1]}"#, "except[0]", "expected a table of to and by"),
            (r#"{"interface": "wg0", "cgroups": [], "except": ["10.0.0.1"]}"#, "except[0]", "expected TO=BY"),
            (
                r#"{"interface": "wg0", "cgroups": [], "except": [{"to": "10.0.1.0/24", "by": "a"}, {"by": "a b", "to": "10.0.2.0/24"}]}"#,
                "except[1].by",
                "expected the name of a network interface",
            ),
            (
                r#"{"interface": "wg0", "cgroups": [], "except": ["10.0.1.0/24=a", {"to": "10.0.1.0/24", "by": "b"}]}"#,
                "except[1].to",
                "10.0.1.0/24 has an exception already",
            ),
            (
                r#"{"interface": "wg0", "cgroups": [], "except": [{"to": "::/0", "by": "b"}]}"#,
                "except[0].to",
                "whole uplink",
            ),
            (
                r#"{"interface": "wg0", "cgroups": [], "except": [{"to": "10.0.1.0/24"}]}"#,
                "except[0]",
                "missing field `by`",
            ),
            (
                r#"{"interface": "wg0", "cgroups": [], "except": [{"to": "10.0.1.0/24", "by": "a", "via": "b"}]}"#,
                "except[0].via",
                "unknown field `via`, expected one of to, by",
            ),
            (r#"{"interface": "wg0", "cgroups": []} x"#, "", "trailing"),
        ];
        for (body, field, detail) in cases {
            let problem = parse(body.as_bytes()).expect_err(body);
            assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, field), "{body}: {problem:?}");
            assert!(problem.errors[0].detail.contains(detail), "{body}: {problem:?}");
        }
        assert!(parse(br#"{"interface": "wg0", "cgroups": ["/a"], "dns": ["10.64.0.1"]}"#).is_ok());
        assert!(parse(br#"{"uplink": "lines", "cgroups": ["/a"]}"#).is_ok());
    }

    #[test]
    fn a_policy_is_kept_as_it_was_written() {
        let body = br#"{"interface": "wg0", "cgroups": ["/a"], "local": [], "dns": ["10.64.0.1"],
                        "except": [{"to": "192.168.3.0/24", "by": "eth0"}, "10.0.1.0/24=main", "2001:db8::/32=a=b"]}"#;
        let request = parse(body).expect("right");
        let text = request.to_toml("vpn").expect("TOML");
        assert!(text.contains("local = []") && text.contains("by = \"eth0\"") && !text.contains("enforce"), "{text}");
        let defaults = Source { file: "f".to_owned(), text: "[defaults]\nlocal = [\"host\"]\n".to_owned() };
        let config = parse_all(&[defaults, Source { file: "g".to_owned(), text }]).expect("valid");
        let target = &config.policies[0].target;
        assert!(target.reach.local.is_empty(), "an empty list wins over the default");
        let document = serde_json::to_value(PolicyDocument::new(&config.policies[0], Kept::Stored)).expect("JSON");
        assert_eq!(document["except"][2], serde_json::json!({"to": "2001:db8::/32", "by": "a=b"}));
        assert_eq!(target.reach.except, request.policy.except.expect("written"));
    }
}
