//! Errors as clients see them: `application/problem+json` (RFC 9457) with a stable `type`.
//!
//! The client and the log get different texts: `source` never leaves the process.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sqlx::error::DatabaseError;
use utoipa::ToSchema;

use crate::jobs::EnqueueError;
use crate::resources::{postgres, redis, storage};

/// The result of a handler.
pub type Result<T> = std::result::Result<T, Problem>;

const TIMED_OUT: &str = "timed-out";

/// An error that a client gets.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    /// The last part of the `type`. Clients may rely on it.
    pub slug: &'static str,
    /// What was wrong with this request, in words for the client.
    pub detail: Option<String>,
    /// What was wrong with each field of the input.
    pub errors: Vec<FieldError>,
    /// Headers that this problem adds to those that every problem has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The underlying error. It goes to the log and never to the client.
    pub source: Option<anyhow::Error>,
}

/// What is wrong with one field of the input.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field in the body, such as `message` or `due_at`.
    pub field: String,
    pub detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, detail: Some(detail.into()), errors: Vec::new(), headers: Vec::new(), source: None }
    }

    /// 400: the request cannot be parsed.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 401: the request has no session, or its session has ended.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Log in first.")
    }

    /// 403: the caller is known and not allowed to do this.
    pub fn forbidden(slug: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, slug, detail)
    }

    /// 403: the account's address must be verified before anything is sent in its name.
    pub fn not_verified() -> Self {
        Self::forbidden("email-not-verified", "Verify your email address first: open the link we sent you.")
    }

    /// 404: the thing does not exist or belongs to another account. Both look the same, so that nobody learns which.
    pub fn not_found() -> Self {
        Self::from_status(StatusCode::NOT_FOUND)
    }

    /// 422: the input parses and breaks a rule.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "The input is invalid.") }
    }

    /// 422 with one wrong field.
    pub fn invalid_field(field: &str, detail: &str) -> Self {
        Self::invalid(vec![FieldError { field: field.to_owned(), detail: detail.to_owned() }])
    }

    /// 429 with `Retry-After` in seconds.
    pub fn too_many(detail: impl Into<String>, wait_s: u64) -> Self {
        let headers = vec![(header::RETRY_AFTER, wait_s.into())];
        Self { headers, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail) }
    }

    /// 503: a change took too long and may still have been made. No `Retry-After`, so that clients do not repeat it
    /// blindly.
    pub fn timed_out() -> Self {
        let detail = "The request took too long. It may still have taken effect, so check before you send it again.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, TIMED_OUT, detail)
    }

    /// 503: a resource is unavailable. A retry can help.
    pub fn unavailable(source: impl Into<anyhow::Error>) -> Self {
        Self { source: Some(source.into()), ..Self::from_status(StatusCode::SERVICE_UNAVAILABLE) }
    }

    /// 500: an error of this service.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self { source: Some(source.into()), ..Self::from_status(StatusCode::INTERNAL_SERVER_ERROR) }
    }

    /// The problem for a status that has no other details.
    pub fn from_status(status: StatusCode) -> Self {
        let (slug, detail) = match status {
            StatusCode::BAD_REQUEST => ("malformed", "The request could not be parsed."),
            StatusCode::NOT_FOUND => ("not-found", "Not found, or you don't have access to it."),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method-not-allowed", "This method is not allowed here. The `Allow` header lists those that are.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ("head-too-large", "The head of the request is larger than 32 KiB."),
            StatusCode::REQUEST_TIMEOUT => ("slow-body", "The rest of the body did not arrive in time. Send the whole request again."),
            StatusCode::PAYLOAD_TOO_LARGE => ("body-too-large", "The body is larger than 1 MiB."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("unsupported-media-type", "The body must be JSON, sent with `Content-Type: application/json`.")
            }
            StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "A dependency is unavailable or timed out. Please retry shortly."),
            _ if status.is_server_error() => ("internal", "An error on our side. Quote the `request_id` when you report it."),
            _ => ("refused", "The request was refused."),
        };
        Self { status, slug, detail: Some(detail.to_owned()), errors: Vec::new(), headers: Vec::new(), source: None }
    }

    /// Renders the whole response. A person quotes `request_id` to support.
    pub fn render(&self, request_id: &str) -> Response {
        let body = axum::Json(Body {
            kind: format!("/problems/{}", self.slug),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail.as_deref(),
            errors: &self.errors,
            request_id,
        });
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE if self.slug != TIMED_OUT => headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1")),
            // RFC 9110, 15.5.2: a 401 names an authentication scheme.
            StatusCode::UNAUTHORIZED if self.headers.iter().all(|(name, _)| name != header::WWW_AUTHENTICATE) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            _ => None,
        };
        headers.extend(self.headers.iter().cloned());
        response
    }
}

/// What went wrong (RFC 9457). Clients may rely on `type`.
#[derive(Serialize, ToSchema)]
pub struct Body<'a> {
    #[serde(rename = "type")]
    #[schema(format = "uri-reference")]
    kind: String,
    title: &'a str,
    status: u16,
    /// What was wrong with this request
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    detail: Option<&'a str>,
    /// What was wrong with each field of the input
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(inline, required = false)]
    errors: &'a [FieldError],
    /// What to quote when asking for help
    request_id: &'a str,
}

/// Sets the status and leaves the problem as an extension. `observe` renders it, because it knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(DatabaseError::code) {
            // A time outside Postgres's range. Only a forged cursor can bring one.
            Some(code) if code == "22008" => Self::invalid(Vec::new()),
            _ if postgres::is_unavailable(&error) => Self::unavailable(error),
            _ => Self::internal(error),
        }
    }
}

impl From<EnqueueError> for Problem {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Database(e) => e.into(),
            e => Self::internal(e),
        }
    }
}

impl From<storage::Error> for Problem {
    fn from(error: storage::Error) -> Self {
        Self::unavailable(error)
    }
}

impl From<redis::Error> for Problem {
    fn from(error: redis::Error) -> Self {
        if error.is_unavailable() { Self::unavailable(error) } else { Self::internal(error) }
    }
}
