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
    /// Setting another password; for one hour, or three days where it invites.
    Reset,
    /// Putting back the address that another took the place of; for three days.
    Undo,
}

/// Makes a token for an account, good for so many hours. It is minted as the mail is written, so that no queue ever holds it.
///
/// `asked_in` is the epoch in which a change of address was asked for, where the token shall undo that. None if the account is
/// gone, or if such a change was undone since.
///
/// # Errors
/// Postgres does not answer, or the system has no randomness.
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
    // The lock waits for an undoing that is about to commit.
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

/// A token that is good, and for what.
pub struct Good {
    pub account_id: Uuid,
    /// The address that it was mailed to.
    pub email: String,
}

/// Looks at a token, which stays good. None for one that is unknown, used or too old.
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

/// Takes a token, and with it every other of its account but what undoes a change of address: what they were good for is
/// done. None as of [`look_up`].
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
