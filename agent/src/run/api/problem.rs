//! Errors of the API, as problem documents (RFC 9457) that name the field.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{host::policy_files, model::config::Problems};

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What happened and what to do.
    pub detail: String,
    /// The invalid fields of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// An error of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Its name, with the index where it is a list; empty for the body as a whole.
    pub field: String,
    /// What is wrong and what was expected; for a mistake in a file, with its place.
    pub detail: String,
    /// Where the mistake is, if it is in a file and not in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or_default().to_owned();
        Self { status: status.as_u16(), title, detail: detail.into(), errors: Vec::new() }
    }

    /// An error of one field.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let errors = vec![FieldError { field: field.into(), detail: detail.into(), place: None }];
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the policy has mistakes") }
    }

    /// The files have mistakes, whatever was requested; or they cannot be read.
    pub(crate) fn in_files(error: policy_files::Error) -> Self {
        let policy_files::Error::Invalid(Problems { problems }) = error else { return error.into() };
        let errors = problems.into_iter().map(|problem| FieldError {
            detail: problem.to_string(),
            field: problem.key,
            place: Some(Place { file: problem.file, line: problem.line, column: problem.column }),
        });
        let detail = "the files of the configuration have mistakes, so nothing was changed";
        Self { errors: errors.collect(), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// Whether what was asked for, or a file, has mistakes.
    pub fn is_of_mistakes(&self) -> bool {
        self.status == StatusCode::UNPROCESSABLE_ENTITY
    }

    /// Whether what was asked for does not exist.
    pub fn is_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// An internal error.
    pub(crate) fn internal(error: &impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<Problems> for Problem {
    fn from(problems: Problems) -> Self {
        let errors = problems.problems.into_iter().map(|problem| {
            // A policy of the API is parsed as a file with one policy.
            let field = problem.key.strip_prefix("policy[0].").unwrap_or(&problem.key).to_owned();
            let value = if problem.value.is_empty() { String::new() } else { format!("{}: ", problem.value) };
            FieldError { field, detail: format!("{value}{}", problem.message), place: None }
        });
        Self { errors: errors.collect(), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the policy has mistakes") }
    }
}

impl From<policy_files::Error> for Problem {
    fn from(error: policy_files::Error) -> Self {
        match error {
            policy_files::Error::Invalid(problems) => problems.into(),
            policy_files::Error::InFile { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            policy_files::Error::Missing { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            policy_files::Error::Locked { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            policy_files::Error::File { .. } => Self::internal(&error),
        }
    }
}
