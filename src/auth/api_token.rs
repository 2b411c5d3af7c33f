//! API tokens, which authenticate programs. A token is shown once, stored as a hash, and looked up in Postgres at each
//! use.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use super::caller::Caller;
use super::secret;
use crate::resources::postgres::{Timestamp, purge};

/// The prefix of every token, by which scanners recognize leaked ones.
pub const PREFIX: &str = "pat_";

/// A token's description. It does not contain the token itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    pub id: Uuid,
    pub name: String,
    pub scopes: Vec<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// To the minute. Null if it was never used.
    pub last_used_at: Option<Timestamp>,
}

/// A valid token.
pub struct Found {
    pub id: Uuid,
    pub account_id: Uuid,
    pub scopes: Vec<String>,
    /// The account's epoch.
    pub epoch: i32,
}

/// How many tokens an account may have.
const MAX_TOKENS: i64 = 50;

/// Whether a text has the form of a token. Other texts are refused without a query.
pub fn has_form(token: &str) -> bool {
    let secret = token.strip_prefix(PREFIX).unwrap_or_default();
    secret.len() == 43 && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Finds a token that has not expired, of an account that is not suspended. Records that it was used.
#[instrument(name = "postgres tokens find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, token: &str) -> sqlx::Result<Option<Found>> {
    sqlx::query_as!(
        Found,
        r#"WITH found AS (
               SELECT api_tokens.id, account_id, scopes, session_epoch AS epoch, last_used_at
               FROM api_tokens JOIN accounts ON accounts.id = account_id
               WHERE token_hash = $1 AND expires_at > now() AND suspended_at IS NULL
           ), used AS (
               UPDATE api_tokens SET last_used_at = now() FROM found
               WHERE api_tokens.id = found.id AND (found.last_used_at IS NULL OR found.last_used_at < now() - interval '1 minute')
           )
           SELECT id, account_id, scopes, epoch FROM found"#,
        secret::hash(token)
    )
    .fetch_optional(executor)
    .await
}

/// Stores a token that is valid for `days`. Returns None if the caller's session has ended, the address is not
/// verified, or the account has too many tokens.
#[instrument(name = "postgres tokens create", level = "debug", skip_all)]
pub async fn create(
    connection: &mut PgConnection,
    caller: &Caller,
    token: &str,
    name: &str,
    scopes: &[String],
    days: i32,
) -> sqlx::Result<Option<Token>> {
    // A separate statement, so that the next one sees what other transactions have committed meanwhile. Transactions
    // that delete tokens wait for this lock and then see the new token too.
    let held = sqlx::query!(
        r#"SELECT FROM accounts WHERE id = $1 AND session_epoch = $2 AND suspended_at IS NULL AND verified_at IS NOT NULL
           FOR NO KEY UPDATE"#,
        caller.account_id,
        caller.epoch
    );
    if held.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(None);
    }
    sqlx::query_as!(
        Token,
        r#"INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
           SELECT $1, $2, $3, $4, $5, now() + make_interval(days => $6)
           WHERE (SELECT count(*) FROM api_tokens WHERE account_id = $3 AND expires_at > now()) < $7
           RETURNING id, name, scopes, created_at, expires_at, last_used_at"#,
        Uuid::now_v7(),
        secret::hash(token),
        caller.account_id,
        name,
        scopes,
        days,
        MAX_TOKENS
    )
    .fetch_optional(connection)
    .await
}

/// One page of an account's tokens after `after`, the oldest first.
#[instrument(name = "postgres tokens list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, account_id: Uuid, after: Uuid, limit: i64) -> sqlx::Result<Vec<Token>> {
    sqlx::query_as!(
        Token,
        r#"SELECT id, name, scopes, created_at, expires_at, last_used_at FROM api_tokens
           WHERE account_id = $1 AND id > $2 AND expires_at > now() ORDER BY id LIMIT $3"#,
        account_id,
        after,
        limit
    )
    .fetch_all(executor)
    .await
}

/// Deletes a token of the caller, if the caller's session still holds. Returns whether there was one.
#[instrument(name = "postgres tokens delete", level = "debug", skip_all)]
pub async fn delete(executor: impl PgExecutor<'_>, caller: &Caller, id: Uuid) -> sqlx::Result<bool> {
    let deleted = sqlx::query!(
        r#"DELETE FROM api_tokens USING accounts WHERE account_id = accounts.id AND accounts.id = $1 AND api_tokens.id = $2
               AND session_epoch = $3 AND suspended_at IS NULL"#,
        caller.account_id,
        id,
        caller.epoch
    );
    Ok(deleted.execute(executor).await?.rows_affected() == 1)
}

/// Deletes every token of an account.
#[instrument(name = "postgres tokens delete_all", level = "debug", skip_all)]
pub async fn delete_all(executor: impl PgExecutor<'_>, account_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM api_tokens WHERE account_id = $1", account_id).execute(executor).await?;
    Ok(())
}

purge!(purge, "api_tokens", "expires_at");
