//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a client that did not receive the response to a
//! creation may send the request again. It gets the same response, and nothing is created twice.
//!
//! The response is stored for a day, in the transaction that creates the resource. Never use it for a response with a
//! secret.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::problem::{Problem, Result};
use crate::resources::postgres::purge;

/// How long a response is stored, and its key is taken.
pub const KEY_LIFETIME: Duration = Duration::from_hours(24);

static HEADER: &str = "idempotency-key";

/// The request's header, if it has one. It must have 1 to 255 visible ASCII characters.
pub struct IdempotencyKey {
    key: Option<String>,
    body_hash: Vec<u8>,
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(value) = parts.headers.get(HEADER) else { return Ok(Self { key: None, body_hash: Vec::new() }) };
        let key = value.to_str().ok().filter(|key| (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
        let key = key.ok_or_else(|| Problem::invalid_field("Idempotency-Key", "must be 1 to 255 visible ASCII characters"))?;
        Ok(Self { key: Some(key.to_owned()), body_hash: Vec::new() })
    }
}

/// A stored response. Sent again, it is the same byte by byte.
pub struct Answer {
    status: StatusCode,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Answer {
    /// # Errors
    /// The body cannot be read.
    pub async fn of(response: Response) -> Result<Self> {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.map_err(Problem::internal)?;
        let headers = parts.headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        Ok(Self { status: parts.status, headers: headers.collect(), body })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], self.body).into_response();
        let headers = self.headers.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
        response.headers_mut().extend::<HeaderMap>(headers.collect());
        response
    }
}

impl IdempotencyKey {
    /// Looks up an earlier response. If there is none, the caller handles the request and [saves](Self::save) its
    /// response. No other request can use the key until the transaction ends.
    ///
    /// # Errors
    /// 409 while another request with the key runs, 422 if the key was used with another body.
    pub async fn earlier(
        &mut self,
        transaction: &mut PgConnection,
        account_id: Uuid,
        route: &str,
        body: &impl Serialize,
    ) -> Result<Option<Answer>> {
        let Some(key) = &self.key else { return Ok(None) };
        self.body_hash = Sha256::digest(serde_json::to_vec(body).map_err(Problem::internal)?).to_vec();
        let name = format!("{account_id} {route} {key}");
        // Does not wait, because a waiting transaction would occupy a connection.
        let locked = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS "locked!""#, name);
        if !locked.fetch_one(&mut *transaction).await? {
            let detail = "Another request with this Idempotency-Key is still running. Please retry shortly.";
            return Err(Problem::new(StatusCode::CONFLICT, "idempotency-key-in-use", detail));
        }
        let earlier = sqlx::query!(
            r#"SELECT body_hash, answer, status, headers AS "headers: sqlx::types::Json<Vec<(String, String)>>", body FROM idempotency_keys
               WHERE account_id = $1 AND route = $2 AND key = $3 AND created_at > now() - make_interval(secs => $4)"#,
            account_id,
            route,
            key,
            KEY_LIFETIME.as_secs_f64()
        );
        match earlier.fetch_optional(transaction).await? {
            None => Ok(None),
            Some(row) if row.body_hash == self.body_hash => {
                let status = row.status.and_then(|status| StatusCode::from_u16(status.try_into().ok()?).ok());
                let headers = row.headers.map(|headers| headers.0).unwrap_or_default();
                let body = row.body.unwrap_or_else(|| row.answer.to_string().into_bytes());
                // Rows of version 0.1.0 have only the body.
                Ok(Some(Answer { status: status.unwrap_or(StatusCode::CREATED), headers, body: body.into() }))
            }
            Some(_) => {
                let detail = "This Idempotency-Key was used with a different body. Use a new key for a new request.";
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail))
            }
        }
    }

    /// Stores the response, in the transaction that creates the resource.
    pub async fn save(self, transaction: &mut PgConnection, account_id: Uuid, route: &str, answer: &Answer) -> Result<()> {
        let Some(key) = self.key else { return Ok(()) };
        sqlx::query!(
            r#"INSERT INTO idempotency_keys (account_id, route, key, body_hash, answer, status, headers, body)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
               ON CONFLICT (account_id, route, key)
               DO UPDATE SET body_hash = $4, answer = $5, status = $6, headers = $7, body = $8, created_at = now()"#,
            account_id,
            route,
            key,
            self.body_hash,
            // For version 0.1.0, which reads this column.
            serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
            i16::try_from(answer.status.as_u16()).map_err(Problem::internal)?,
            serde_json::to_value(&answer.headers).map_err(Problem::internal)?,
            &*answer.body
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}

purge!(purge, "idempotency_keys", "created_at");
