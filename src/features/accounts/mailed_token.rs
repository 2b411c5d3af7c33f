//! What a mailed link carries: a token that only its mail holds, good once and for a while.
//!
//! Who has it has shown that the address is theirs.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use crate::auth::secret;
use crate::resources::postgres::purge;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use uuid::Uuid;

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Purpose {
    /// Showing that the address is one's own; for 24 hours.
    Verify,
    /// Setting another password; for one hour.
    Reset,
}

/// Makes a token for an account. It is minted as the mail is written, so that no queue ever holds it.
///
/// # Errors
/// Postgres does not answer, or the system has no randomness.
#[instrument(name = "postgres mailed_tokens mint", level = "debug", skip_all)]
pub async fn mint(executor: impl PgExecutor<'_>, purpose: Purpose, account_id: Uuid, email: &str) -> anyhow::Result<SecretString> {
    let token = SecretString::from(secret::mint()?);
    let hours = match purpose {
        Purpose::Verify => 24,
        Purpose::Reset => 1,
    };
    sqlx::query!(
        r#"INSERT INTO mailed_tokens (token_hash, account_id, purpose, email, expires_at)
           VALUES ($1, $2, $3, $4, now() + make_interval(hours => $5))"#,
        hash(&token),
        account_id,
        purpose as Purpose,
        email,
        hours
    )
    .execute(executor)
    .await?;
    Ok(token)
}

/// Takes a token, and with it every other of its account: what they were good for is done. None for a token that is
/// unknown, used or too old; else the account and the address that it was mailed to.
#[instrument(name = "postgres mailed_tokens redeem", level = "debug", skip_all)]
pub async fn redeem(connection: &mut PgConnection, purpose: Purpose, token: &SecretString) -> sqlx::Result<Option<(Uuid, String)>> {
    let found = sqlx::query!(
        "DELETE FROM mailed_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > now() RETURNING account_id, email",
        hash(token),
        purpose as Purpose
    );
    let Some(found) = found.fetch_optional(&mut *connection).await? else { return Ok(None) };
    sqlx::query!("DELETE FROM mailed_tokens WHERE account_id = $1", found.account_id).execute(connection).await?;
    Ok(Some((found.account_id, found.email)))
}

fn hash(token: &SecretString) -> Vec<u8> {
    secret::hash(token.expose_secret())
}

purge!(purge, "mailed_tokens", "expires_at");
