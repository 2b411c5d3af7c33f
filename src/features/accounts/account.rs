//! The account and its SQL.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use secrecy::SecretString;
use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::Role;
use crate::resources::postgres::Timestamp;

/// A person's account, as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Account {
    pub id: Uuid,
    pub email: String,
    /// The address that will replace it, once it is verified.
    pub new_email: Option<String>,
    pub role: Role,
    /// Whether the address was shown to be the person's own.
    pub verified: bool,
    /// Whether the daily digest is wanted.
    pub digest: bool,
    pub suspended: bool,
    pub created_at: Timestamp,
}

/// What a log-in is checked against. It is never shown.
pub struct Credentials {
    pub id: Uuid,
    pub role: Role,
    pub suspended: bool,
    /// The number that tells live sessions from ended ones.
    pub session_epoch: i32,
    /// A PHC string.
    pub password_hash: SecretString,
}

/// Makes an account; none if the address has one already, and then nothing changes.
#[instrument(name = "postgres accounts create", level = "debug", skip_all)]
pub async fn create(connection: &mut PgConnection, id: Uuid, email: &str, password_hash: &str) -> sqlx::Result<bool> {
    let created = sqlx::query!(
        "INSERT INTO accounts (id, email, password_hash) VALUES ($1, $2, $3) ON CONFLICT (lower(email)) DO NOTHING",
        id,
        email,
        password_hash
    );
    Ok(created.execute(connection).await?.rows_affected() == 1)
}

#[instrument(name = "postgres accounts find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Account>> {
    let found = sqlx::query_as!(
        Account,
        r#"SELECT id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", created_at
           FROM accounts WHERE id = $1"#,
        id
    );
    found.fetch_optional(executor).await
}

#[instrument(name = "postgres accounts find_by_email", level = "debug", skip_all)]
pub async fn find_by_email(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Account>> {
    let found = sqlx::query_as!(
        Account,
        r#"SELECT id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", created_at
           FROM accounts WHERE lower(email) = lower($1)"#,
        email
    );
    found.fetch_optional(executor).await
}

/// Finds an account by its id or its address, as an operator names it.
pub async fn find_by_name(executor: impl PgExecutor<'_>, name: &str) -> sqlx::Result<Option<Account>> {
    match name.parse() {
        Ok(id) => find(executor, id).await,
        Err(_) => find_by_email(executor, name).await,
    }
}

/// The credentials behind an address.
#[instrument(name = "postgres accounts credentials", level = "debug", skip_all)]
pub async fn credentials(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Credentials>> {
    let found = sqlx::query_as!(
        Credentials,
        r#"SELECT id, role AS "role: Role", suspended_at IS NOT NULL AS "suspended!", session_epoch, password_hash
           FROM accounts WHERE lower(email) = lower($1)"#,
        email
    );
    found.fetch_optional(executor).await
}

/// The credentials of an account.
#[instrument(name = "postgres accounts credentials_of", level = "debug", skip_all)]
pub async fn credentials_of(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Credentials>> {
    let found = sqlx::query_as!(
        Credentials,
        r#"SELECT id, role AS "role: Role", suspended_at IS NOT NULL AS "suspended!", session_epoch, password_hash
           FROM accounts WHERE id = $1"#,
        id
    );
    found.fetch_optional(executor).await
}

/// One page of all accounts, the oldest first, from behind `after`.
#[instrument(name = "postgres accounts list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, after: Uuid, limit: i64) -> sqlx::Result<Vec<Account>> {
    let rows = sqlx::query_as!(
        Account,
        r#"SELECT id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", created_at
           FROM accounts WHERE id > $1 ORDER BY id LIMIT $2"#,
        after,
        limit
    );
    rows.fetch_all(executor).await
}

/// The number that tells live sessions from ended ones; none for an account that is gone or suspended.
#[instrument(name = "postgres accounts session_epoch", level = "debug", skip_all)]
pub async fn session_epoch(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<i32>> {
    let epoch = sqlx::query_scalar!("SELECT session_epoch FROM accounts WHERE id = $1 AND suspended_at IS NULL", id);
    epoch.fetch_optional(executor).await
}

/// Notes that the address is the person's own, and puts it in the place of the one before if it is another. False if it
/// has an account of its own by now, or is not asked for any more: it may have been mistyped, and somebody else's.
#[instrument(name = "postgres accounts verify", level = "debug", skip_all)]
pub async fn verify(connection: &mut PgConnection, id: Uuid, email: &str) -> sqlx::Result<bool> {
    let verified = sqlx::query!(
        r#"UPDATE accounts SET verified_at = CASE WHEN email = $2 THEN COALESCE(verified_at, now()) ELSE now() END,
               email = $2, new_email = NULL WHERE id = $1 AND $2 IN (email, new_email)"#,
        id,
        email
    );
    match verified.execute(connection).await {
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("accounts_email") => Ok(false),
        result => result.map(|verified| verified.rows_affected() == 1),
    }
}

/// Changes what is given and leaves the rest; a new address counts only when it is verified.
#[instrument(name = "postgres accounts change", level = "debug", skip_all)]
pub async fn change(
    connection: &mut PgConnection,
    id: Uuid,
    new_email: Option<&str>,
    digest: Option<bool>,
) -> sqlx::Result<Option<Account>> {
    let changed = sqlx::query_as!(
        Account,
        r#"UPDATE accounts SET new_email = COALESCE($2, new_email), digest = COALESCE($3, digest) WHERE id = $1
           RETURNING id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", created_at"#,
        id,
        new_email,
        digest
    );
    changed.fetch_optional(connection).await
}

// What follows raises the epoch and returns it: the caller ends the sessions of the one before.

/// Ends every session.
#[instrument(name = "postgres accounts raise_epoch", level = "debug", skip_all)]
pub async fn raise_epoch(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<i32>> {
    let raised = sqlx::query_scalar!("UPDATE accounts SET session_epoch = session_epoch + 1 WHERE id = $1 RETURNING session_epoch", id);
    raised.fetch_optional(connection).await
}

/// Sets another password. Links that were mailed before, and the address that was asked for, count no more: whoever asked
/// for them knew the old one.
#[instrument(name = "postgres accounts set_password", level = "debug", skip_all)]
pub async fn set_password(connection: &mut PgConnection, id: Uuid, password_hash: &str) -> sqlx::Result<Option<i32>> {
    sqlx::query!("DELETE FROM mailed_tokens WHERE account_id = $1", id).execute(&mut *connection).await?;
    sqlx::query_scalar!(
        r#"UPDATE accounts SET password_hash = $2, new_email = NULL, session_epoch = session_epoch + 1
           WHERE id = $1 RETURNING session_epoch"#,
        id,
        password_hash
    )
    .fetch_optional(connection)
    .await
}

/// Suspends an account, or lets it in again.
#[instrument(name = "postgres accounts suspend", level = "debug", skip_all)]
pub async fn suspend(connection: &mut PgConnection, id: Uuid, suspended: bool) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar!(
        r#"UPDATE accounts SET session_epoch = session_epoch + 1, suspended_at = CASE WHEN $2 THEN COALESCE(suspended_at, now()) END
           WHERE id = $1 RETURNING session_epoch"#,
        id,
        suspended
    )
    .fetch_optional(connection)
    .await
}

/// Deletes an account's row, and what refers to it. The sessions to end are those of any epoch.
#[instrument(name = "postgres accounts delete", level = "debug", skip_all)]
pub async fn delete(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<i32> {
    sqlx::query!("DELETE FROM accounts WHERE id = $1", id).execute(connection).await?;
    Ok(i32::MAX)
}

/// Gives a role, and raises the epoch if that is a change; returns the account's id and its epoch.
#[instrument(name = "postgres accounts grant", level = "debug", skip_all)]
pub async fn grant(connection: &mut PgConnection, email: &str, role: Role) -> sqlx::Result<Option<(Uuid, i32)>> {
    let row = sqlx::query!(
        r#"UPDATE accounts SET session_epoch = session_epoch + (role <> $2)::int, role = $2
           WHERE lower(email) = lower($1) RETURNING id, session_epoch"#,
        email,
        role as Role
    );
    Ok(row.fetch_optional(connection).await?.map(|row| (row.id, row.session_epoch)))
}
