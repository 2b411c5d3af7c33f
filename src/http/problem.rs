//! Errors as clients see them: `application/problem+json` (RFC 9457) with a stable `type`.
//!
//! What the client reads and what the log reads are two texts: `source` never leaves the process.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sqlx::error::DatabaseError;
use utoipa::ToSchema;

use crate::jobs::EnqueueError;
use crate::resources::{postgres, redis, storage};

/// What a handler returns.
pub type Result<T> = std::result::Result<T, Problem>;

const TIMED_OUT: &str = "timed-out";

/// An error on its way to the client.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    /// Last part of the `type`; clients may rely on it.
    pub slug: &'static str,
    /// What was wrong this time, for the client.
    pub detail: Option<String>,
    /// What was wrong with each field of the input.
    pub errors: Vec<FieldError>,
    /// Headers of the answer besides those that every problem has.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What was wrong inside, for the log alone.
    pub source: Option<anyhow::Error>,
}

/// What is wrong with one field of the input.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// Path of the field in the body: `message`, `due_at`.
    pub field: String,
    pub detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, detail: Some(detail.into()), errors: Vec::new(), headers: Vec::new(), source: None }
    }

    /// 400: what cannot be parsed.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// 401: no session, or one that has ended.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "log in first")
    }

    /// 403: known, and not allowed.
    pub fn forbidden(slug: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, slug, detail)
    }

    /// 403: what goes out in the account's name must wait for a verified address.
    pub fn not_verified() -> Self {
        Self::forbidden("email-not-verified", "show first that the address is yours: open the link that was mailed to it")
    }

    /// 404, for what does not exist and for what is another's, alike.
    pub fn not_found() -> Self {
        Self::from_status(StatusCode::NOT_FOUND)
    }

    /// 422: what parses and is not allowed.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "the input breaks a rule") }
    }

    /// 422 for a single field.
    pub fn invalid_field(field: &str, detail: &str) -> Self {
        Self::invalid(vec![FieldError { field: field.to_owned(), detail: detail.to_owned() }])
    }

    /// 429, with the seconds after which to try again.
    pub fn too_many(detail: impl Into<String>, wait_s: u64) -> Self {
        let headers = vec![(header::RETRY_AFTER, wait_s.into())];
        Self { headers, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail) }
    }

    /// 503 for a change that took too long, and may have been made all the same.
    pub fn timed_out() -> Self {
        let detail = "this took too long, and may have been done all the same; look before you ask for it again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, TIMED_OUT, detail)
    }

    /// 503: a resource is away; trying again later can help.
    pub fn unavailable(source: impl Into<anyhow::Error>) -> Self {
        Self { source: Some(source.into()), ..Self::from_status(StatusCode::SERVICE_UNAVAILABLE) }
    }

    /// 500: our own fault.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self { source: Some(source.into()), ..Self::from_status(StatusCode::INTERNAL_SERVER_ERROR) }
    }

    /// The problem that a bare status stands for.
    pub fn from_status(status: StatusCode) -> Self {
        let (slug, detail) = match status {
            StatusCode::BAD_REQUEST => ("malformed", "the request cannot be read"),
            StatusCode::NOT_FOUND => ("not-found", "there is nothing here, or it is another's"),
            StatusCode::METHOD_NOT_ALLOWED => ("method-not-allowed", "the methods that can be used here are in the `Allow` header"),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ("head-too-large", "the head of a request may have 32 KiB at most"),
            StatusCode::REQUEST_TIMEOUT => ("slow-body", "the rest of the body did not come; send the whole request again"),
            StatusCode::PAYLOAD_TOO_LARGE => ("body-too-large", "the body may have a mebibyte at most"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported-media-type", "the body must be JSON: `Content-Type: application/json`"),
            StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "something that this needs is away or too slow; try again in a moment"),
            _ if status.is_server_error() => ("internal", "our own fault; the request's id finds it in our log"),
            _ => ("refused", "the request was refused"),
        };
        Self { status, slug, detail: Some(detail.to_owned()), errors: Vec::new(), headers: Vec::new(), source: None }
    }

    /// The whole response; `request_id` is what a person quotes to support.
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
            // RFC 9110, 15.5.2: a 401 names a way in.
            StatusCode::UNAUTHORIZED => headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
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
    /// What was wrong this time
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

/// The status now, and the problem itself as an extension for `observe`, which knows the request's id.
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
            // A time that Postgres does not know, as only a cursor may bring that no page has given.
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
