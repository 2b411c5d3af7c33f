//! The identities of people at the provider, and the accounts that they log in to.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::password::has_password;
use crate::auth::{Caller, Role};
use crate::resources::postgres::Timestamp;

/// An account, as a log-in needs it.
#[derive(Debug)]
pub struct Owner {
    pub id: Uuid,
    pub email: String,
    pub role: Role,
    pub epoch: i32,
    pub verified: bool,
    pub suspended: bool,
}

/// An identity that logs in to an account, as the API shows it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Identity {
    pub id: Uuid,
    /// The identity provider.
    #[schema(example = "https://login.example.com")]
    pub issuer: String,
    /// The provider's name for the person.
    pub subject: String,
    pub linked_at: Timestamp,
}

/// The account that an identity logs in to.
#[instrument(name = "postgres identities find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, issuer: &str, subject: &str) -> sqlx::Result<Option<Owner>> {
    let found = sqlx::query_as!(
        Owner,
        r#"SELECT accounts.id, email, role AS "role: Role", session_epoch AS epoch, verified_at IS NOT NULL AS "verified!",
               suspended_at IS NOT NULL AS "suspended!"
           FROM identities JOIN accounts ON accounts.id = account_id WHERE issuer = $1 AND subject = $2"#,
        issuer,
        subject
    );
    found.fetch_optional(executor).await
}

/// The account with an address, locked until the end of the transaction. A change of its password waits for the lock, and
/// then ends the identity that was linked meanwhile.
#[instrument(name = "postgres identities find_by_email", level = "debug", skip_all)]
pub async fn find_by_email(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Owner>> {
    let found = sqlx::query_as!(
        Owner,
        r#"SELECT id, email, role AS "role: Role", session_epoch AS epoch, verified_at IS NOT NULL AS "verified!",
               suspended_at IS NOT NULL AS "suspended!"
           FROM accounts WHERE lower(email) = lower($1) FOR NO KEY UPDATE"#,
        email
    );
    found.fetch_optional(executor).await
}

/// Links an identity to an account. Returns false if it is linked already.
#[instrument(name = "postgres identities link", level = "debug", skip_all)]
pub async fn link(connection: &mut PgConnection, issuer: &str, subject: &str, account_id: Uuid) -> sqlx::Result<bool> {
    let linked = sqlx::query!(
        "INSERT INTO identities (id, account_id, issuer, subject) VALUES ($1, $2, $3, $4) ON CONFLICT (issuer, subject) DO NOTHING",
        Uuid::now_v7(),
        account_id,
        issuer,
        subject
    );
    Ok(linked.execute(connection).await?.rows_affected() == 1)
}

/// One page of an account's identities after `after`, the oldest first.
#[instrument(name = "postgres identities list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, account_id: Uuid, after: Uuid, limit: i64) -> sqlx::Result<Vec<Identity>> {
    sqlx::query_as!(
        Identity,
        "SELECT id, issuer, subject, linked_at FROM identities WHERE account_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        account_id,
        after,
        limit
    )
    .fetch_all(executor)
    .await
}

/// What came of unlinking an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlinked {
    Done,
    NotFound,
    /// It is the only way to log in to the account.
    OnlyOne,
    /// The caller's session has ended.
    SessionEnded,
}

/// Unlinks an identity of the caller. Only identities of `issuer` log in.
#[instrument(name = "postgres identities unlink", level = "debug", skip_all)]
pub async fn unlink(connection: &mut PgConnection, caller: &Caller, issuer: &str, id: Uuid) -> sqlx::Result<Unlinked> {
    // The lock keeps two requests from unlinking the last two identities.
    let held = sqlx::query_scalar!(
        "SELECT password_hash FROM accounts WHERE id = $1 AND session_epoch = $2 AND suspended_at IS NULL FOR NO KEY UPDATE",
        caller.account_id,
        caller.epoch
    );
    let Some(hash) = held.fetch_optional(&mut *connection).await?.map(SecretString::from) else { return Ok(Unlinked::SessionEnded) };
    let all = sqlx::query!("SELECT id, issuer FROM identities WHERE account_id = $1", caller.account_id);
    let all = all.fetch_all(&mut *connection).await?;
    if all.iter().all(|identity| identity.id != id) {
        return Ok(Unlinked::NotFound);
    }
    if !has_password(&hash) && !all.iter().any(|other| other.id != id && other.issuer == issuer) {
        return Ok(Unlinked::OnlyOne);
    }
    sqlx::query!("DELETE FROM identities WHERE id = $1", id).execute(connection).await?;
    Ok(Unlinked::Done)
}

/// Unlinks every identity of an account.
#[instrument(name = "postgres identities unlink_all", level = "debug", skip_all)]
pub async fn unlink_all(connection: &mut PgConnection, account_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM identities WHERE account_id = $1", account_id).execute(connection).await?;
    Ok(())
}

/// An account's identities, for its export. Null if it has none, so that a deploy without a provider exports no such part.
pub async fn export(connection: &mut PgConnection, account_id: Uuid) -> sqlx::Result<Value> {
    let identities = list(connection, account_id, Uuid::nil(), i64::MAX).await?;
    if identities.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::to_value(identities).map_err(|e| sqlx::Error::Encode(e.into()))
}
