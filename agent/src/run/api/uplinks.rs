//! `/v1/uplinks`: groups of uplinks, and what an administrator decides about their members.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State as Extracted},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Decided, Peer, Problem, Request, State, reading::on_a_reader};
use crate::{
    model::uplink::health::Hand,
    observe::uplinks::{self, MemberStatus, UplinkStatus},
};

/// What an administrator decides about a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HandRequest {
    /// `down`: out of use, for maintenance. `up`: in use as long as its link is there, whatever probes say. `auto`: neither.
    hand: Hand,
}

/// A member after a decision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HandDocument {
    /// The member.
    #[serde(flatten)]
    member: MemberStatus,
    /// Sockets that should have left it and did not, each with the reason.
    remaining: Vec<String>,
}

async fn read(state: &State) -> Result<Vec<UplinkStatus>, Problem> {
    let (pins, probed) = (state.pins.clone(), state.control.view().probed);
    let read = on_a_reader(state, move || uplinks::read_with_use(&pins, &probed)).await?;
    read.map_err(|error| Problem::internal(&error))
}

/// The groups of uplinks in force, with the health of their members and what they hold, as `steer uplinks --json` prints them.
#[utoipa::path(get, path = "/v1/uplinks", tag = "state", responses((status = OK, body = [UplinkStatus])))]
pub(super) async fn list(Extracted(state): Extracted<State>) -> Result<Json<Vec<UplinkStatus>>, Problem> {
    read(&state).await.map(Json)
}

/// Takes a member out of use, uses it whatever probes say, or ends both, as `steer uplink` does. Sockets were moved when the answer
/// arrives. Only for root.
#[utoipa::path(put, path = "/v1/uplinks/{name}/members/{member}", tag = "uplinks",
    params(("name" = String, Path, description = "The name of the group"),
           ("member" = String, Path, description = "The interface of the member")),
    request_body = HandRequest,
    responses((status = OK, body = HandDocument), (status = FORBIDDEN, body = Problem),
              (status = NOT_FOUND, description = "No policy in force uses such a group, or it has no such member", body = Problem),
              (status = UNPROCESSABLE_ENTITY, description = "The body has mistakes", body = Problem)))]
pub(super) async fn put_hand(
    Extracted(state): Extracted<State>,
    Extension(peer): Extension<Peer>,
    Path((group, member)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<HandDocument>, Problem> {
    peer.may_change()?;
    let hand = parse(&body)?;
    let decided = Decided { group: group.clone(), member: member.clone(), hand };
    let remaining = state.control.ask(|reply| Request::Hand(decided, reply)).await?;
    let groups = read(&state).await?.into_iter().filter(|known| known.name == group);
    let found = groups.flat_map(|group| group.members).find(|known| known.interface == member);
    let gone = || Problem::new(StatusCode::CONFLICT, format!("uplink {group:?} was changed at the same time"));
    Ok(Json(HandDocument { member: found.ok_or_else(gone)?, remaining }))
}

fn parse(body: &[u8]) -> Result<Hand, Problem> {
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    let request: HandRequest = serde_path_to_error::deserialize(deserializer).map_err(|error| Problem {
        detail: "expected {\"hand\": \"down\"}, or \"up\" or \"auto\"".to_owned(),
        ..Problem::field(error.path().to_string().trim_start_matches('.'), error.into_inner().to_string())
    })?;
    Ok(request.hand)
}

#[cfg(test)]
mod tests {
    use super::{Hand, parse};

    #[test]
    fn bodies() {
        assert_eq!(parse(br#"{"hand": "down"}"#), Ok(Hand::Down));
        for (body, field, detail) in [
            ("", "", "EOF"),
            ("{}", "", "missing field `hand`"),
            (r#"{"hand": "off"}"#, "hand", "unknown variant `off`, expected one of `auto`, `down`, `up`"),
            (r#"{"hand": "up", "why": "x"}"#, "why", "unknown field `why`"),
        ] {
            let problem = parse(body.as_bytes()).expect_err(body);
            assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, field), "{body}: {problem:?}");
            assert!(problem.errors[0].detail.contains(detail), "{body}: {problem:?}");
        }
    }
}
