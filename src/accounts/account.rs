//! The account and its SQL.

use jiff_sqlx::Timestamp;
use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

/// What the person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Role {
    User,
    Admin,
}

/// A person's account.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: Uuid,
    pub email: String,
    pub role: Role,
    pub verified_at: Option<Timestamp>,
    pub session_epoch: i32,
    pub created_at: Timestamp,
}

/// What log-in compares.
pub struct Credentials {
    pub account: Account,
    pub password_hash: String,
}

/// Makes an account; none if the address has one already, and then nothing changes.
///
/// # Errors
/// Postgres does not answer.
pub async fn create(connection: &mut PgConnection, id: Uuid, email: &str, password_hash: &str) -> sqlx::Result<bool> {
    let created = sqlx::query!(
        "INSERT INTO accounts (id, email, password_hash) VALUES ($1, $2, $3) ON CONFLICT (lower(email)) DO NOTHING",
        id,
        email,
        password_hash
    );
    Ok(created.execute(connection).await?.rows_affected() == 1)
}

/// # Errors
/// Postgres does not answer.
pub async fn find(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Account>> {
    sqlx::query_as!(
        Account,
        r#"SELECT id, email, role AS "role: Role", verified_at, session_epoch, created_at FROM accounts WHERE id = $1"#,
        id
    )
    .fetch_optional(executor)
    .await
}

/// # Errors
/// Postgres does not answer.
pub async fn find_by_email(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Credentials>> {
    let row = sqlx::query!(
        r#"SELECT id, email, role AS "role: Role", verified_at, session_epoch, created_at, password_hash
           FROM accounts WHERE lower(email) = lower($1)"#,
        email
    );
    Ok(row.fetch_optional(executor).await?.map(|row| Credentials {
        account: Account {
            id: row.id,
            email: row.email,
            role: row.role,
            verified_at: row.verified_at,
            session_epoch: row.session_epoch,
            created_at: row.created_at,
        },
        password_hash: row.password_hash,
    }))
}

/// The number that tells live sessions from ended ones; none for an account that is gone.
///
/// # Errors
/// Postgres does not answer.
pub async fn session_epoch(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar!("SELECT session_epoch FROM accounts WHERE id = $1", id).fetch_optional(executor).await
}

/// Notes that the address is the person's own.
///
/// # Errors
/// Postgres does not answer.
pub async fn mark_verified(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query!("UPDATE accounts SET verified_at = COALESCE(verified_at, now()) WHERE id = $1", id).execute(connection).await?;
    Ok(())
}

/// Gives a role, and raises the epoch if that is a change; returns the account's id and its epoch.
///
/// The caller enqueues [`super::jobs::EndSessions`] in the same transaction.
///
/// # Errors
/// Postgres does not answer.
pub async fn grant(connection: &mut PgConnection, email: &str, role: Role) -> sqlx::Result<Option<(Uuid, i32)>> {
    let row = sqlx::query!(
        r#"UPDATE accounts SET session_epoch = session_epoch + (role <> $2)::int, role = $2
           WHERE lower(email) = lower($1) RETURNING id, session_epoch"#,
        email,
        role as Role
    );
    Ok(row.fetch_optional(connection).await?.map(|row| (row.id, row.session_epoch)))
}
