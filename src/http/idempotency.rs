//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): who did not hear the answer to a creation may ask
//! again, and gets the same answer instead of a second one of what it created.
//!
//! Never for an answer that holds a secret: it is kept for a day, in the transaction of what was created.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::problem::{Problem, Result};
use crate::resources::postgres::purge;

/// How long an answer is kept, and a key is taken.
pub const KEPT: Duration = Duration::from_hours(24);

static HEADER: &str = "idempotency-key";

/// The header of a request, if it has one: 1 to 255 visible ASCII characters.
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

impl IdempotencyKey {
    /// Looks for an earlier answer; without one the request is to be worked on, and its answer to be [saved](Self::save).
    /// Until the transaction's end no other request has the key.
    ///
    /// # Errors
    /// 409 while another request with the key runs, 422 when it came with another body.
    pub async fn earlier<T: DeserializeOwned>(
        &mut self,
        transaction: &mut PgConnection,
        account_id: Uuid,
        route: &str,
        body: &impl Serialize,
    ) -> Result<Option<T>> {
        let Some(key) = &self.key else { return Ok(None) };
        self.body_hash = Sha256::digest(serde_json::to_vec(body).map_err(Problem::internal)?).to_vec();
        let name = format!("{account_id} {route} {key}");
        // Without waiting: a transaction that waits for another would hold its connection for as long.
        let locked = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS "locked!""#, name);
        if !locked.fetch_one(&mut *transaction).await? {
            let detail = "another request with this Idempotency-Key is still running; ask again in a moment";
            return Err(Problem::new(StatusCode::CONFLICT, "idempotency-key-in-use", detail));
        }
        let earlier = sqlx::query!(
            r#"SELECT body_hash, answer FROM idempotency_keys
               WHERE account_id = $1 AND route = $2 AND key = $3 AND created_at > now() - make_interval(secs => $4)"#,
            account_id,
            route,
            key,
            KEPT.as_secs_f64()
        );
        match earlier.fetch_optional(transaction).await? {
            None => Ok(None),
            Some(row) if row.body_hash == self.body_hash => serde_json::from_value(row.answer).map(Some).map_err(Problem::internal),
            Some(_) => {
                let detail = "this Idempotency-Key came with another body before; take a new key for a new request";
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail))
            }
        }
    }

    /// Keeps the answer, in the transaction of what it tells of.
    pub async fn save(self, transaction: &mut PgConnection, account_id: Uuid, route: &str, answer: &impl Serialize) -> Result<()> {
        let Some(key) = self.key else { return Ok(()) };
        sqlx::query!(
            r#"INSERT INTO idempotency_keys (account_id, route, key, body_hash, answer) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (account_id, route, key) DO UPDATE SET body_hash = $4, answer = $5, created_at = now()"#,
            account_id,
            route,
            key,
            self.body_hash,
            serde_json::to_value(answer).map_err(Problem::internal)?
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}

purge!(purge, "idempotency_keys", "created_at");
