//! Extractors whose refusals are problems: a body, a query, an id in the path.

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

/// A JSON body that keeps its type's rules.
///
/// 400 for what is no JSON, 415 for another content type, 422 with one entry a field for what breaks a rule.
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // Nothing here is unpacked: a small body could become a large one.
        if !is_json(request.headers()) || request.headers().contains_key(header::CONTENT_ENCODING) {
            return Err(Problem::from_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let body = Bytes::from_request(request, state).await.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE),
            _ => Problem::malformed("the body ended early"),
        })?;
        // To its end first: what is no JSON is 400, even where its beginning breaks a rule.
        let body = std::str::from_utf8(&body).map_err(|_| Problem::malformed("not UTF-8"))?;
        serde_json::from_str::<IgnoredAny>(body).map_err(|e| Problem::malformed(format!("not JSON: {e}")))?;
        // Serde would take an array for its fields in their order.
        if !body.trim_start().starts_with('{') {
            return Err(Problem::invalid_field("", "must be an object"));
        }
        let mut json = serde_json::Deserializer::from_str(body);
        valid(serde_path_to_error::deserialize(&mut json).map_err(|e| refused(&e))?).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(';').next());
    // A PATCH may say what RFC 7396 calls it.
    let known = ["application/json", "application/merge-patch+json"];
    essence.is_some_and(|essence| known.iter().any(|known| essence.trim().eq_ignore_ascii_case(known)))
}

fn refused(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    if error.inner().is_data() {
        // Where in the text it stands is the path's to say.
        let words = error.inner().to_string();
        Problem::invalid_field(&error.path().to_string(), words.split(" at line ").next().unwrap_or_default())
    } else {
        Problem::malformed(format!("not JSON: {}", error.inner()))
    }
}

fn valid<T: Validate<Context = ()>>(value: T) -> Result<T, Problem> {
    value.validate().map_err(|report| {
        Problem::invalid(report.iter().map(|(path, e)| FieldError { field: path.to_string(), detail: e.message().to_string() }).collect())
    })?;
    Ok(value)
}

/// A query string that keeps its type's rules; 422 for one that breaks them.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let axum::extract::Query(value) =
            axum::extract::Query::try_from_uri(&parts.uri).map_err(|e| Problem::invalid_field("query", &e.body_text()))?;
        valid(value).map(Self)
    }
}

/// The id at the end of a path; one that is no id names nothing, so it is 404.
pub struct Id(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::from_request_parts(parts, state).await.map_err(|_| Problem::not_found())?;
        Ok(Self(id))
    }
}

/// For a member of a merge patch (RFC 7396) that cannot be removed: it may be absent, and it may not be null.
///
/// # Errors
/// It is null, or of another type.
pub fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A whole number, which JSON may write as `3` or `3.0` (JSON Schema 2020-12, 6.1.1).
///
/// # Errors
/// It has a fraction, or is too large.
pub fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let number = f64::deserialize(deserializer)?;
    format!("{number}").parse().map_err(|_| D::Error::custom("must be a whole number"))
}

/// A rule for mail addresses: what cannot be mailed to is none.
///
/// # Errors
/// It is none.
pub fn mail_address<C>(text: &str, _: &C) -> garde::Result {
    if smtp::is_address(text) { Ok(()) } else { Err(garde::Error::new("must be a mail address such as ada@example.com")) }
}

/// A rule for text that Postgres keeps: it cannot hold the character NUL.
///
/// # Errors
/// The text holds one.
pub fn no_nul<C>(text: &str, _: &C) -> garde::Result {
    if text.contains('\0') { Err(garde::Error::new("must not hold the character NUL")) } else { Ok(()) }
}
