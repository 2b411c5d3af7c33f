//! The tokens in mailed links. A token is only in its mail, can be used once, and expires.
//!
//! A client with the token has shown that it can read the address's mail.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use crate::auth::secret;
use crate::resources::postgres::purge;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use uuid::Uuid;

/// The purpose of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Purpose {
    /// Verifies an address. Valid for 24 hours.
    Verify,
    /// Sets a new password. Valid for one hour, or for three days in an invitation.
    Reset,
    /// Restores the previous address after a change. Valid for three days.
    Undo,
}

/// Creates a token for an account that is valid for `hours`. The job that sends the mail creates it, so that no queue
/// ever stores it.
///
/// If the token shall undo a change of address, `asked_in` is the epoch in which the change was requested. None if the
/// account is deleted, or if such a change has been undone since.
///
/// # Errors
/// Postgres is unavailable, or the system has no randomness.
#[instrument(name = "postgres mailed_tokens mint", level = "debug", skip_all)]
pub async fn mint(
    executor: impl PgExecutor<'_>,
    purpose: Purpose,
    hours: i32,
    account_id: Uuid,
    email: &str,
    asked_in: Option<i32>,
) -> anyhow::Result<Option<SecretString>> {
    let token = SecretString::from(secret::mint()?);
    // The lock waits for a transaction that undoes a change and is about to commit.
    let minted = sqlx::query!(
        r#"INSERT INTO mailed_tokens (token_hash, account_id, purpose, email, expires_at)
           SELECT $1, id, $3, $4, now() + make_interval(hours => $5) FROM accounts
           WHERE id = $2 AND ($6::integer IS NULL OR undone_epoch <= $6) FOR SHARE"#,
        hash(&token),
        account_id,
        purpose as Purpose,
        email,
        hours,
        asked_in
    );
    Ok((minted.execute(executor).await?.rows_affected() == 1).then_some(token))
}

/// A valid token.
pub struct Good {
    pub account_id: Uuid,
    /// The address that it was mailed to.
    pub email: String,
}

/// Looks a token up without using it. None if it is unknown, used or expired.
#[instrument(name = "postgres mailed_tokens look_up", level = "debug", skip_all)]
pub async fn look_up(executor: impl PgExecutor<'_>, purpose: Purpose, token: &SecretString) -> sqlx::Result<Option<Good>> {
    let found = sqlx::query_as!(
        Good,
        "SELECT account_id, email FROM mailed_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > now()",
        hash(token),
        purpose as Purpose
    );
    found.fetch_optional(executor).await
}

/// Uses a token. This deletes the account's other tokens too, except those that undo a change of address. None as in
/// [`look_up`].
#[instrument(name = "postgres mailed_tokens redeem", level = "debug", skip_all)]
pub async fn redeem(connection: &mut PgConnection, purpose: Purpose, token: &SecretString) -> sqlx::Result<Option<Good>> {
    let found = sqlx::query_as!(
        Good,
        "DELETE FROM mailed_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > now() RETURNING account_id, email",
        hash(token),
        purpose as Purpose
    );
    let Some(found) = found.fetch_optional(&mut *connection).await? else { return Ok(None) };
    delete_all_but_undo(connection, found.account_id).await?;
    Ok(Some(found))
}

#[instrument(name = "postgres mailed_tokens delete_all_but_undo", level = "debug", skip_all)]
pub async fn delete_all_but_undo(connection: &mut PgConnection, account_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM mailed_tokens WHERE account_id = $1 AND purpose <> 'undo'", account_id).execute(connection).await?;
    Ok(())
}

#[instrument(name = "postgres mailed_tokens delete_all", level = "debug", skip_all)]
pub async fn delete_all(connection: &mut PgConnection, account_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM mailed_tokens WHERE account_id = $1", account_id).execute(connection).await?;
    Ok(())
}

fn hash(token: &SecretString) -> Vec<u8> {
    secret::hash(token.expose_secret())
}

purge!(purge, "mailed_tokens", "expires_at");
