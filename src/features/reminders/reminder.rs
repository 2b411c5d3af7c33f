//! The reminder and its SQL.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::resources::postgres::{Timestamp, purge};

/// A message to mail at a later time.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Reminder {
    pub id: Uuid,
    pub message: String,
    pub due_at: Timestamp,
    /// Incremented by each change.
    pub version: i32,
    /// When it was mailed.
    pub sent_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Reminder {
    /// The `ETag`, which distinguishes the states of the reminder (RFC 9110, 8.8.3).
    pub fn etag(&self) -> String {
        format!("\"{}{}\"", self.version, if self.sent_at.is_some() { "-sent" } else { "" })
    }
}

/// How many pending reminders an account may have. Without a limit, one account could fill the database.
const MAX_PENDING: i64 = 1000;

/// Creates a reminder. None if the account's address is not verified or the account has too many pending reminders.
#[instrument(name = "postgres reminders create", level = "debug", skip_all)]
pub async fn create(
    connection: &mut PgConnection,
    id: Uuid,
    account_id: Uuid,
    message: &str,
    due_at: Timestamp,
) -> sqlx::Result<Option<Reminder>> {
    let created = sqlx::query_as!(
        Reminder,
        r#"INSERT INTO reminders (id, account_id, message, due_at)
           SELECT $1, id, $3, $4 FROM accounts WHERE id = $2 AND verified_at IS NOT NULL
               AND (SELECT count(*) FROM (SELECT FROM reminders WHERE account_id = $2 AND sent_at IS NULL LIMIT $5) AS waiting) < $5
           RETURNING id, message, due_at, version, sent_at, created_at"#,
        id,
        account_id,
        message,
        due_at as _,
        MAX_PENDING
    );
    created.fetch_optional(connection).await
}

/// One page of an account's reminders after `after`, the earliest first.
#[instrument(name = "postgres reminders list", level = "debug", skip_all)]
pub async fn list(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    after: Option<(Timestamp, Uuid)>,
    limit: i64,
) -> sqlx::Result<Vec<Reminder>> {
    let (due_at, id) = after.unwrap_or((jiff::Timestamp::UNIX_EPOCH.into(), Uuid::nil()));
    let rows = sqlx::query_as!(
        Reminder,
        r#"SELECT id, message, due_at, version, sent_at, created_at FROM reminders
           WHERE account_id = $1 AND (due_at, id) > ($2, $3) ORDER BY due_at, id LIMIT $4"#,
        account_id,
        due_at as _,
        id,
        limit
    );
    rows.fetch_all(executor).await
}

/// An account's reminder. None if it belongs to another account.
#[instrument(name = "postgres reminders find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<Option<Reminder>> {
    let found = sqlx::query_as!(
        Reminder,
        "SELECT id, message, due_at, version, sent_at, created_at FROM reminders WHERE id = $1 AND account_id = $2",
        id,
        account_id
    );
    found.fetch_optional(executor).await
}

/// Locks an account's reminder until the end of the transaction, so that its state does not change after it is checked.
#[instrument(name = "postgres reminders lock", level = "debug", skip_all)]
pub async fn lock(connection: &mut PgConnection, account_id: Uuid, id: Uuid) -> sqlx::Result<Option<Reminder>> {
    let found = sqlx::query_as!(
        Reminder,
        "SELECT id, message, due_at, version, sent_at, created_at FROM reminders WHERE id = $1 AND account_id = $2 FOR UPDATE",
        id,
        account_id
    );
    found.fetch_optional(connection).await
}

/// Whether the account has as many pending reminders as it may have.
#[instrument(name = "postgres reminders is_full", level = "debug", skip_all)]
pub async fn is_full(executor: impl PgExecutor<'_>, account_id: Uuid) -> sqlx::Result<bool> {
    let full = sqlx::query_scalar!(
        r#"SELECT count(*) >= $2 AS "full!" FROM (SELECT FROM reminders WHERE account_id = $1 AND sent_at IS NULL LIMIT $2) AS waiting"#,
        account_id,
        MAX_PENDING
    );
    full.fetch_one(executor).await
}

/// Changes the given fields and leaves the others. If the time changes, the reminder counts as not sent.
#[instrument(name = "postgres reminders change", level = "debug", skip_all)]
pub async fn change(
    connection: &mut PgConnection,
    account_id: Uuid,
    id: Uuid,
    message: Option<&str>,
    due_at: Option<Timestamp>,
) -> sqlx::Result<Option<Reminder>> {
    let changed = sqlx::query_as!(
        Reminder,
        r#"UPDATE reminders SET message = COALESCE($3, message), due_at = COALESCE($4, due_at), version = version + 1,
               sent_at = CASE WHEN $4::timestamptz IS NULL THEN sent_at END
           WHERE id = $1 AND account_id = $2
           RETURNING id, message, due_at, version, sent_at, created_at"#,
        id,
        account_id,
        message,
        due_at as _
    );
    changed.fetch_optional(connection).await
}

/// Deletes an account's reminder. Returns whether there was one.
#[instrument(name = "postgres reminders delete", level = "debug", skip_all)]
pub async fn delete(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("DELETE FROM reminders WHERE id = $1 AND account_id = $2", id, account_id);
    Ok(deleted.execute(executor).await?.rows_affected() == 1)
}

/// How many reminders there are of all accounts.
#[derive(Debug, Serialize)]
pub struct RemindersByState {
    pub pending: i64,
    pub sent: i64,
}

#[instrument(name = "postgres reminders count", level = "debug", skip_all)]
pub async fn count(executor: impl PgExecutor<'_>) -> sqlx::Result<RemindersByState> {
    let counted = sqlx::query_as!(
        RemindersByState,
        r#"SELECT count(*) FILTER (WHERE sent_at IS NULL) AS "pending!", count(sent_at) AS "sent!" FROM reminders"#
    );
    counted.fetch_one(executor).await
}

purge!(purge_sent, "reminders", "sent_at");
