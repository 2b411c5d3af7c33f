//! Extractors for a body, a query string and an id in the path. Each rejects with a [`Problem`].

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use garde::Validate;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::problem::{FieldError, Problem};
use crate::resources::smtp;

/// A JSON body that satisfies its type's validation rules.
///
/// Rejects with 400 if the body is not JSON, 415 if the content type is another one, and 422 with one entry for each
/// field that breaks a rule.
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // Compressed bodies are refused: a small one could expand into a large one.
        if !is_json(request.headers()) || request.headers().contains_key(header::CONTENT_ENCODING) {
            return Err(Problem::from_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let body = Bytes::from_request(request, state).await.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE),
            _ => Problem::malformed("The body ended early."),
        })?;
        // Parses to the end first, so that invalid JSON is 400 even if its beginning breaks a rule.
        let body = std::str::from_utf8(&body).map_err(|_| Problem::malformed("The body is not UTF-8."))?;
        serde_json::from_str::<IgnoredAny>(body).map_err(|e| Problem::malformed(format!("The body is not JSON: {e}")))?;
        // Serde would also accept an array and read it as the fields in their order.
        if !body.trim_start().starts_with('{') {
            return Err(Problem::invalid_field("", "must be an object"));
        }
        let mut json = serde_json::Deserializer::from_str(body);
        valid(serde_path_to_error::deserialize(&mut json).map_err(|e| refused(&e))?).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(';').next());
    // RFC 7396's content type, for a PATCH.
    let known = ["application/json", "application/merge-patch+json"];
    essence.is_some_and(|essence| known.iter().any(|known| essence.trim().eq_ignore_ascii_case(known)))
}

fn refused(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    if error.inner().is_data() {
        // The field's path already says where the error is, so the line and column are cut off.
        let words = error.inner().to_string();
        Problem::invalid_field(&error.path().to_string(), words.split(" at line ").next().unwrap_or_default())
    } else {
        Problem::malformed(format!("The body is not JSON: {}", error.inner()))
    }
}

fn valid<T: Validate<Context = ()>>(value: T) -> Result<T, Problem> {
    value.validate().map_err(|report| {
        Problem::invalid(report.iter().map(|(path, e)| FieldError { field: path.to_string(), detail: e.message().to_string() }).collect())
    })?;
    Ok(value)
}

/// A query string that satisfies its type's validation rules. Rejects with 422.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let axum::extract::Query(value) =
            axum::extract::Query::try_from_uri(&parts.uri).map_err(|e| Problem::invalid_field("query", &e.body_text()))?;
        valid(value).map(Self)
    }
}

/// The id in a path, a UUID or another type. Rejects with 404 if it is not one, because nothing can have that id.
pub struct Id<T = Uuid>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::from_request_parts(parts, state).await.map_err(|_| Problem::not_found())?;
        Ok(Self(id))
    }
}

/// Deserializes a member of a merge patch (RFC 7396) that cannot be removed. It may be absent but not null.
///
/// # Errors
/// The value is null or of another type.
pub fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Deserializes a whole number, which JSON may write as `3` or `3.0` (JSON Schema 2020-12, 6.1.1).
///
/// # Errors
/// The number has a fraction or is too large.
pub fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let number = f64::deserialize(deserializer)?;
    format!("{number}").parse().map_err(|_| D::Error::custom("must be a whole number"))
}

/// Validates an email address by the same rule as the mailer.
///
/// # Errors
/// Mail cannot be sent to the address.
pub fn mail_address<C>(text: &str, _: &C) -> garde::Result {
    if smtp::is_address(text) { Ok(()) } else { Err(garde::Error::new("must be an email address such as ada@example.com")) }
}

/// Validates text for Postgres, which cannot store the character NUL.
///
/// # Errors
/// The text contains NUL.
pub fn no_nul<C>(text: &str, _: &C) -> garde::Result {
    if text.contains('\0') { Err(garde::Error::new("must not contain the character NUL")) } else { Ok(()) }
}
