//! The reminder and its SQL.
//!
//! Where nothing else is said, an error is Postgres's: it does not answer.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;
use uuid::Uuid;

/// A message for later.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Reminder {
    pub id: Uuid,
    pub message: String,
    pub due_at: Timestamp,
    /// Raised by each change.
    pub version: i32,
    /// When it was mailed.
    pub sent_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Reminder {
    /// Tells one state of it from another (RFC 9110, 8.8.3).
    pub fn etag(&self) -> String {
        format!("\"{}{}\"", self.version, if self.sent_at.is_some() { "-sent" } else { "" })
    }
}

/// The same, as Postgres gives it.
struct Row {
    id: Uuid,
    message: String,
    due_at: jiff_sqlx::Timestamp,
    version: i32,
    sent_at: Option<jiff_sqlx::Timestamp>,
    created_at: jiff_sqlx::Timestamp,
}

impl From<Row> for Reminder {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            message: row.message,
            due_at: row.due_at.to_jiff(),
            version: row.version,
            sent_at: row.sent_at.map(jiff_sqlx::Timestamp::to_jiff),
            created_at: row.created_at.to_jiff(),
        }
    }
}

/// Makes a reminder for an account whose address is verified; none for another.
pub async fn create(
    connection: &mut PgConnection,
    id: Uuid,
    account_id: Uuid,
    message: &str,
    due_at: Timestamp,
) -> sqlx::Result<Option<Reminder>> {
    let created = sqlx::query_as!(
        Row,
        r#"INSERT INTO reminders (id, account_id, message, due_at)
           SELECT $1, id, $3, $4 FROM accounts WHERE id = $2 AND verified_at IS NOT NULL
           RETURNING id, message, due_at, version, sent_at, created_at"#,
        id,
        account_id,
        message,
        due_at.to_sqlx() as _
    );
    Ok(created.fetch_optional(connection).await?.map(Into::into))
}

/// One page of an account's reminders, the earliest first, from behind `after`.
pub async fn list(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    after: Option<(Timestamp, Uuid)>,
    limit: i64,
) -> sqlx::Result<Vec<Reminder>> {
    let (due_at, id) = after.unwrap_or((Timestamp::UNIX_EPOCH, Uuid::nil()));
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, message, due_at, version, sent_at, created_at FROM reminders
           WHERE account_id = $1 AND (due_at, id) > ($2, $3) ORDER BY due_at, id LIMIT $4"#,
        account_id,
        due_at.to_sqlx() as _,
        id,
        limit
    );
    Ok(rows.fetch_all(executor).await?.into_iter().map(Into::into).collect())
}

/// An account's reminder; none for another's.
pub async fn find(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<Option<Reminder>> {
    let found = sqlx::query_as!(
        Row,
        "SELECT id, message, due_at, version, sent_at, created_at FROM reminders WHERE id = $1 AND account_id = $2",
        id,
        account_id
    );
    Ok(found.fetch_optional(executor).await?.map(Into::into))
}

/// Locks an account's reminder until the end of the transaction, so that what is decided by its state holds.
pub async fn lock(connection: &mut PgConnection, account_id: Uuid, id: Uuid) -> sqlx::Result<Option<Reminder>> {
    let found = sqlx::query_as!(
        Row,
        "SELECT id, message, due_at, version, sent_at, created_at FROM reminders WHERE id = $1 AND account_id = $2 FOR UPDATE",
        id,
        account_id
    );
    Ok(found.fetch_optional(connection).await?.map(Into::into))
}

/// Changes what is given and leaves the rest. It counts as not sent again, if its time is changed.
pub async fn change(
    connection: &mut PgConnection,
    account_id: Uuid,
    id: Uuid,
    message: Option<&str>,
    due_at: Option<Timestamp>,
) -> sqlx::Result<Option<Reminder>> {
    let changed = sqlx::query_as!(
        Row,
        r#"UPDATE reminders SET message = COALESCE($3, message), due_at = COALESCE($4, due_at), version = version + 1,
               sent_at = CASE WHEN $4::timestamptz IS NULL THEN sent_at END
           WHERE id = $1 AND account_id = $2
           RETURNING id, message, due_at, version, sent_at, created_at"#,
        id,
        account_id,
        message,
        due_at.map(jiff_sqlx::ToSqlx::to_sqlx) as _
    );
    Ok(changed.fetch_optional(connection).await?.map(Into::into))
}

/// Deletes an account's reminder; says whether there was one.
pub async fn delete(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("DELETE FROM reminders WHERE id = $1 AND account_id = $2", id, account_id);
    Ok(deleted.execute(executor).await?.rows_affected() == 1)
}
