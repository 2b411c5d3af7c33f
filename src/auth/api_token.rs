//! API tokens: what programs come in with. Shown once, kept as a hash, looked up in Postgres at each use.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use super::secret;
use crate::resources::postgres::{Timestamp, purge};

/// What every token begins with, so that scanners of leaked secrets know it.
pub const PREFIX: &str = "pat_";

/// A token as its owner sees it later: not the token itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub name: String,
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A token that is good.
pub struct Found {
    pub id: Uuid,
    pub account_id: Uuid,
    pub scopes: Vec<String>,
}

/// Finds a token that has not expired, of an account that is not suspended.
#[instrument(name = "postgres tokens find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, token: &str) -> sqlx::Result<Option<Found>> {
    sqlx::query_as!(
        Found,
        r#"SELECT api_tokens.id, account_id, scopes FROM api_tokens JOIN accounts ON accounts.id = account_id
           WHERE token_hash = $1 AND expires_at > now() AND suspended_at IS NULL"#,
        secret::hash(token)
    )
    .fetch_optional(executor)
    .await
}

/// Keeps a token that is good for so many days, of an account whose address is verified; none of another.
#[instrument(name = "postgres tokens create", level = "debug", skip_all)]
pub async fn create(
    connection: &mut PgConnection,
    account_id: Uuid,
    token: &str,
    name: &str,
    scopes: &[String],
    days: i32,
) -> sqlx::Result<Option<Token>> {
    sqlx::query_as!(
        Token,
        r#"INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
           SELECT $1, $2, id, $4, $5, now() + make_interval(days => $6) FROM accounts WHERE id = $3 AND verified_at IS NOT NULL
           RETURNING id, name, scopes, created_at, expires_at"#,
        Uuid::now_v7(),
        secret::hash(token),
        account_id,
        name,
        scopes,
        days
    )
    .fetch_optional(connection)
    .await
}

/// One page of an account's tokens, the oldest first, from behind `after`.
#[instrument(name = "postgres tokens list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, account_id: Uuid, after: Uuid, limit: i64) -> sqlx::Result<Vec<Token>> {
    sqlx::query_as!(
        Token,
        r#"SELECT id, name, scopes, created_at, expires_at FROM api_tokens
           WHERE account_id = $1 AND id > $2 AND expires_at > now() ORDER BY id LIMIT $3"#,
        account_id,
        after,
        limit
    )
    .fetch_all(executor)
    .await
}

/// Ends a token; says whether the account had it.
#[instrument(name = "postgres tokens delete", level = "debug", skip_all)]
pub async fn delete(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("DELETE FROM api_tokens WHERE account_id = $1 AND id = $2", account_id, id);
    Ok(deleted.execute(executor).await?.rows_affected() == 1)
}

purge!(purge, "api_tokens", "expires_at");
