//! The account and its SQL.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use super::mailed_token;
use crate::auth::{Caller, Role, api_token};
use crate::resources::postgres::Timestamp;

/// A person's account, as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Account {
    pub id: Uuid,
    pub email: String,
    /// The address that replaces `email` once it is verified.
    pub new_email: Option<String>,
    pub role: Role,
    /// Whether the address is verified to be the person's own.
    pub verified: bool,
    /// Whether the account gets the daily digest.
    pub digest: bool,
    pub suspended: bool,
    /// When a mail server last refused the address permanently.
    pub bounced_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// The data that a log-in is checked against. It is never sent to a client.
pub struct Credentials {
    pub id: Uuid,
    pub email: String,
    pub role: Role,
    pub suspended: bool,
    /// The account's epoch. Sessions of an earlier epoch have ended.
    pub session_epoch: i32,
    /// A PHC string.
    pub password_hash: SecretString,
}

/// Creates an account. Returns false and changes nothing if the address already has one.
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
               suspended_at IS NOT NULL AS "suspended!", bounced_at, created_at
           FROM accounts WHERE id = $1"#,
        id
    );
    found.fetch_optional(executor).await
}

/// Locks an account until the end of the transaction.
#[instrument(name = "postgres accounts lock", level = "debug", skip_all)]
pub async fn lock(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query_scalar!("SELECT id FROM accounts WHERE id = $1 FOR UPDATE", id).fetch_optional(connection).await.map(drop)
}

#[instrument(name = "postgres accounts find_by_email", level = "debug", skip_all)]
pub async fn find_by_email(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Account>> {
    let found = sqlx::query_as!(
        Account,
        r#"SELECT id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", bounced_at, created_at
           FROM accounts WHERE lower(email) = lower($1)"#,
        email
    );
    found.fetch_optional(executor).await
}

/// Finds an account by its id or its address.
pub async fn find_by_name(executor: impl PgExecutor<'_>, name: &str) -> sqlx::Result<Option<Account>> {
    match name.parse() {
        Ok(id) => find(executor, id).await,
        Err(_) => find_by_email(executor, name).await,
    }
}

/// The credentials of the account with an address.
#[instrument(name = "postgres accounts credentials", level = "debug", skip_all)]
pub async fn credentials(executor: impl PgExecutor<'_>, email: &str) -> sqlx::Result<Option<Credentials>> {
    let found = sqlx::query_as!(
        Credentials,
        r#"SELECT id, email, role AS "role: Role", suspended_at IS NOT NULL AS "suspended!", session_epoch, password_hash
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
        r#"SELECT id, email, role AS "role: Role", suspended_at IS NOT NULL AS "suspended!", session_epoch, password_hash
           FROM accounts WHERE id = $1"#,
        id
    );
    found.fetch_optional(executor).await
}

/// One page of all accounts after `after`, the oldest first.
#[instrument(name = "postgres accounts list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, after: Uuid, limit: i64) -> sqlx::Result<Vec<Account>> {
    let rows = sqlx::query_as!(
        Account,
        r#"SELECT id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", bounced_at, created_at
           FROM accounts WHERE id > $1 ORDER BY id LIMIT $2"#,
        after,
        limit
    );
    rows.fetch_all(executor).await
}

/// The account's epoch. None if the account is deleted or suspended.
#[instrument(name = "postgres accounts session_epoch", level = "debug", skip_all)]
pub async fn session_epoch(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<i32>> {
    let epoch = sqlx::query_scalar!("SELECT session_epoch FROM accounts WHERE id = $1 AND suspended_at IS NULL", id);
    epoch.fetch_optional(executor).await
}

/// Stores a new hash of the same password, unless the password was changed meanwhile.
#[instrument(name = "postgres accounts rehash", level = "debug", skip_all)]
pub async fn rehash(executor: impl PgExecutor<'_>, id: Uuid, before: &SecretString, password_hash: &str) -> sqlx::Result<()> {
    let before = before.expose_secret();
    let rehashed = sqlx::query!("UPDATE accounts SET password_hash = $3 WHERE id = $1 AND password_hash = $2", id, before, password_hash);
    rehashed.execute(executor).await?;
    Ok(())
}

/// Records that a mail server refused the account's address permanently.
#[instrument(name = "postgres accounts bounce", level = "debug", skip_all)]
pub async fn bounce(executor: impl PgExecutor<'_>, id: Uuid, email: &str) -> sqlx::Result<()> {
    let bounced = sqlx::query!("UPDATE accounts SET bounced_at = now() WHERE id = $1 AND $2 IN (email, new_email)", id, email);
    bounced.execute(executor).await?;
    Ok(())
}

// The following functions change an account. `held` is the epoch of the session that requests the change. Nothing
// changes if that session has ended meanwhile or the account is suspended. Without `held`, an operator or a mailed link
// requests it.

/// Marks the address as verified. A new address replaces the previous one. Returns false if another account has the
/// address by now, or if the change is no longer requested: the address may have been mistyped and belong to somebody
/// else.
#[instrument(name = "postgres accounts verify", level = "debug", skip_all)]
pub async fn verify(connection: &mut PgConnection, id: Uuid, email: &str, held: Option<i32>) -> sqlx::Result<bool> {
    let verified = sqlx::query!(
        r#"UPDATE accounts SET verified_at = CASE WHEN email = $2 THEN COALESCE(verified_at, now()) ELSE now() END,
               email = $2, new_email = NULL, bounced_at = NULL
           WHERE id = $1 AND $2 IN (email, new_email) AND ($3::integer IS NULL OR session_epoch = $3 AND suspended_at IS NULL)"#,
        id,
        email,
        held
    );
    unless_taken(verified.execute(connection).await.map(|verified| verified.rows_affected() == 1))
}

/// Turns the violation of the unique address into `false`.
fn unless_taken(result: sqlx::Result<bool>) -> sqlx::Result<bool> {
    match result {
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("accounts_email") => Ok(false),
        result => result,
    }
}

/// Changes the given fields and leaves the others. A new address takes effect when it is verified.
#[instrument(name = "postgres accounts change", level = "debug", skip_all)]
pub async fn change(
    connection: &mut PgConnection,
    caller: &Caller,
    new_email: Option<&str>,
    digest: Option<bool>,
) -> sqlx::Result<Option<Account>> {
    let changed = sqlx::query_as!(
        Account,
        r#"UPDATE accounts SET new_email = COALESCE($3, new_email), digest = COALESCE($4, digest)
           WHERE id = $1 AND session_epoch = $2 AND suspended_at IS NULL
           RETURNING id, email, new_email, role AS "role: Role", verified_at IS NOT NULL AS "verified!", digest,
               suspended_at IS NOT NULL AS "suspended!", bounced_at, created_at"#,
        caller.account_id,
        caller.epoch,
        new_email,
        digest
    );
    changed.fetch_optional(connection).await
}

// The following functions raise the epoch and return it. The caller ends the sessions of earlier epochs.

/// Ends every session.
#[instrument(name = "postgres accounts raise_epoch", level = "debug", skip_all)]
pub async fn raise_epoch(connection: &mut PgConnection, id: Uuid, held: Option<i32>) -> sqlx::Result<Option<i32>> {
    let raised = sqlx::query_scalar!(
        r#"UPDATE accounts SET session_epoch = session_epoch + 1
           WHERE id = $1 AND ($2::integer IS NULL OR session_epoch = $2 AND suspended_at IS NULL) RETURNING session_epoch"#,
        id,
        held
    );
    raised.fetch_optional(connection).await
}

/// An account whose password was changed.
pub struct Renewed {
    pub session_epoch: i32,
    pub role: Role,
}

/// Sets a new password. It also deletes API tokens, earlier mailed links and a requested new address, because a person
/// with the old password may have requested them. Links that undo a change of address stay valid. None if the account
/// is suspended.
#[instrument(name = "postgres accounts set_password", level = "debug", skip_all)]
pub async fn set_password(
    connection: &mut PgConnection,
    id: Uuid,
    password_hash: &str,
    held: Option<i32>,
) -> sqlx::Result<Option<Renewed>> {
    let renewed = sqlx::query_as!(
        Renewed,
        r#"UPDATE accounts SET password_hash = $2, new_email = NULL, session_epoch = session_epoch + 1
           WHERE id = $1 AND suspended_at IS NULL AND ($3::integer IS NULL OR session_epoch = $3)
           RETURNING session_epoch, role AS "role: Role""#,
        id,
        password_hash,
        held
    );
    let renewed = renewed.fetch_optional(&mut *connection).await?;
    if renewed.is_some() {
        mailed_token::delete_all_but_undo(connection, id).await?;
        api_token::delete_all(connection, id).await?;
    }
    Ok(renewed)
}

/// Restores a previous address of the account and makes the password unusable, because a thief may know it. None if
/// another account has the address by now.
#[instrument(name = "postgres accounts put_back", level = "debug", skip_all)]
pub async fn put_back(connection: &mut PgConnection, id: Uuid, email: &str, unusable: &str) -> sqlx::Result<Option<i32>> {
    let put_back = sqlx::query_scalar!(
        r#"UPDATE accounts SET email = $2, new_email = NULL, verified_at = now(), password_hash = $3,
               session_epoch = session_epoch + 1, undone_epoch = session_epoch + 1
           WHERE id = $1 AND NOT EXISTS (SELECT FROM accounts AS other WHERE lower(other.email) = lower($2) AND other.id <> $1)
           RETURNING session_epoch"#,
        id,
        email,
        unusable
    );
    let epoch = match put_back.fetch_optional(&mut *connection).await {
        // A sign-up that committed just now. The caller rolls back.
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("accounts_email") => return Ok(None),
        put_back => put_back?,
    };
    if epoch.is_some() {
        mailed_token::delete_all(connection, id).await?;
        api_token::delete_all(connection, id).await?;
    }
    Ok(epoch)
}

/// Suspends or restores an account. `admin` is the admin who requests it. Nothing changes if that session or role has
/// ended.
#[instrument(name = "postgres accounts suspend", level = "debug", skip_all)]
pub async fn suspend(connection: &mut PgConnection, id: Uuid, suspended: bool, admin: Option<&Caller>) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar!(
        r#"UPDATE accounts SET session_epoch = session_epoch + 1, suspended_at = CASE WHEN $2 THEN COALESCE(suspended_at, now()) END
           WHERE id = $1 AND ($3::uuid IS NULL OR EXISTS (
               SELECT FROM accounts AS admin
               WHERE admin.id = $3 AND admin.session_epoch = $4 AND admin.role = 'admin' AND admin.suspended_at IS NULL))
           RETURNING session_epoch"#,
        id,
        suspended,
        admin.map(|admin| admin.account_id),
        admin.map(|admin| admin.epoch)
    )
    .fetch_optional(connection)
    .await
}

/// Deletes an account's row and the rows that refer to it. The caller ends the sessions of every epoch.
#[instrument(name = "postgres accounts delete", level = "debug", skip_all)]
pub async fn delete(connection: &mut PgConnection, id: Uuid, held: Option<i32>) -> sqlx::Result<Option<i32>> {
    let deleted = sqlx::query!(
        "DELETE FROM accounts WHERE id = $1 AND ($2::integer IS NULL OR session_epoch = $2 AND suspended_at IS NULL)",
        id,
        held
    );
    Ok((deleted.execute(connection).await?.rows_affected() == 1).then_some(i32::MAX))
}

/// Sets the role and raises the epoch if the role changes.
#[instrument(name = "postgres accounts grant", level = "debug", skip_all)]
pub async fn grant(connection: &mut PgConnection, id: Uuid, role: Role) -> sqlx::Result<Option<i32>> {
    let granted = sqlx::query_scalar!(
        "UPDATE accounts SET session_epoch = session_epoch + (role <> $2)::int, role = $2 WHERE id = $1 RETURNING session_epoch",
        id,
        role as Role
    );
    granted.fetch_optional(connection).await
}
