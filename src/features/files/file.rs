//! Files and their SQL.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::jobs::{self, EnqueueError, Enqueued};
use crate::resources::postgres::Timestamp;

use super::objects::RemoveFile;

/// How many files an account may store. The quota does not bound empty files, but their rows take space too.
const MAX_FILES_PER_ACCOUNT: i64 = 10_000;

/// How many removal jobs one statement enqueues.
const BATCH: usize = 1000;

/// A stored file.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct File {
    pub id: Uuid,
    pub name: String,
    /// Size in bytes
    pub size: i64,
    /// SHA-256 of the content, in hexadecimal
    pub sha256: String,
    /// The type detected from the content
    #[schema(example = "image/jpeg")]
    pub media_type: String,
    /// Width of an image in pixels. Null until the image is inspected
    pub width: Option<i32>,
    /// Height of an image in pixels. Null until the image is inspected
    pub height: Option<i32>,
    /// Sizes of the thumbnails that exist: `small`, `large`
    pub thumbnails: Vec<String>,
    /// Why an image has no thumbnails
    pub remark: Option<String>,
    pub created_at: Timestamp,
}

/// Inserts the row of a file that is being received. Returns false if the account's email address is not verified. The row
/// is committed before the object is written, so that every object has a row.
#[instrument(name = "postgres files begin", level = "debug", skip_all)]
pub async fn begin(executor: impl PgExecutor<'_>, id: Uuid, account_id: Uuid, name: &str) -> sqlx::Result<bool> {
    let begun = sqlx::query!(
        "INSERT INTO files (id, account_id, name) SELECT $1, id, $3 FROM accounts WHERE id = $2 AND verified_at IS NOT NULL",
        id,
        account_id,
        name
    );
    Ok(begun.execute(executor).await?.rows_affected() == 1)
}

/// Returns how many more bytes an account may store, or none if it has reached the limit of files.
#[instrument(name = "postgres files remaining", level = "debug", skip_all)]
pub async fn remaining(executor: impl PgExecutor<'_>, account_id: Uuid, quota: u64) -> sqlx::Result<Option<u64>> {
    let used = sqlx::query!("SELECT files, bytes FROM file_usage WHERE account_id = $1", account_id).fetch_optional(executor).await?;
    let (files, bytes) = used.map_or((0, 0), |used| (used.files, used.bytes));
    Ok((files < MAX_FILES_PER_ACCOUNT).then(|| quota.saturating_sub(bytes.unsigned_abs())))
}

/// Records that an upload makes progress, with the store's id of the upload. Returns whether the file is still being
/// received.
#[instrument(name = "postgres files heartbeat", level = "debug", skip_all)]
pub async fn heartbeat(executor: impl PgExecutor<'_>, id: Uuid, upload: Option<&str>) -> sqlx::Result<bool> {
    let updated = sqlx::query!("UPDATE files SET moved_at = now(), upload = $2 WHERE id = $1 AND state = 'receiving'", id, upload);
    Ok(updated.execute(executor).await?.rows_affected() == 1)
}

/// The content of a file once it is in the store.
pub struct Content {
    pub size: u64,
    pub sha256: Vec<u8>,
    pub media_type: &'static str,
}

/// The result of [`store`].
pub enum StoreOutcome {
    Stored(File),
    /// The row is gone. The account was deleted in the meantime, or the upload made no progress for an hour.
    Gone,
    /// The account has reached its quota.
    QuotaReached,
    /// The uploader's session was ended, or the account suspended, while the content arrived.
    Ended,
}

/// Marks a received file as stored, within the account's quota. Unless the outcome is `Stored`, the caller must roll back.
#[instrument(name = "postgres files store", level = "debug", skip_all)]
pub async fn store(connection: &mut PgConnection, account_id: Uuid, id: Uuid, content: Content, quota: u64) -> sqlx::Result<StoreOutcome> {
    let size = i64::try_from(content.size).unwrap_or(i64::MAX);
    let stored = sqlx::query_as!(
        File,
        r#"UPDATE files SET state = 'stored', upload = NULL, size = $3, sha256 = $4, media_type = $5
           WHERE id = $1 AND account_id = $2 AND state = 'receiving'
           RETURNING id, name, size AS "size!", encode(sha256, 'hex') AS "sha256!", media_type AS "media_type!", width, height, thumbnails,
               remark, created_at"#,
        id,
        account_id,
        size,
        &content.sha256,
        content.media_type
    );
    let Some(file) = stored.fetch_optional(&mut *connection).await? else { return Ok(StoreOutcome::Gone) };
    let counted = sqlx::query!(
        r#"INSERT INTO file_usage AS usage (account_id, files, bytes) SELECT $1, 1, $2 WHERE $2::bigint <= $3
           ON CONFLICT (account_id) DO UPDATE SET files = usage.files + 1, bytes = usage.bytes + $2
           WHERE usage.bytes + $2 <= $3 AND usage.files < $4"#,
        account_id,
        size,
        i64::try_from(quota).unwrap_or(i64::MAX),
        MAX_FILES_PER_ACCOUNT
    );
    let counted = counted.execute(connection).await?.rows_affected() == 1;
    Ok(if counted { StoreOutcome::Stored(file) } else { StoreOutcome::QuotaReached })
}

/// Returns one page of an account's files, newest first, starting after `before`.
#[instrument(name = "postgres files list", level = "debug", skip_all)]
pub async fn list(executor: impl PgExecutor<'_>, account_id: Uuid, before: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<File>> {
    let rows = sqlx::query_as!(
        File,
        r#"SELECT id, name, size AS "size!", encode(sha256, 'hex') AS "sha256!", media_type AS "media_type!", width, height, thumbnails,
               remark, created_at
           FROM files WHERE account_id = $1 AND id < $2 AND state = 'stored' ORDER BY id DESC LIMIT $3"#,
        account_id,
        before.unwrap_or(Uuid::max()),
        limit
    );
    rows.fetch_all(executor).await
}

/// Returns a stored file, or none if it does not exist or belongs to another account.
#[instrument(name = "postgres files find", level = "debug", skip_all)]
pub async fn find(executor: impl PgExecutor<'_>, account_id: Uuid, id: Uuid) -> sqlx::Result<Option<File>> {
    let found = sqlx::query_as!(
        File,
        r#"SELECT id, name, size AS "size!", encode(sha256, 'hex') AS "sha256!", media_type AS "media_type!", width, height, thumbnails,
               remark, created_at
           FROM files WHERE id = $1 AND account_id = $2 AND state = 'stored'"#,
        id,
        account_id
    );
    found.fetch_optional(executor).await
}

/// What a stored file's row says of its content.
pub struct Claim {
    pub id: Uuid,
    pub account_id: Uuid,
    pub size: i64,
    pub sha256: Vec<u8>,
}

/// Returns up to `limit` claims of stored files, sorted by id, starting after `after`.
pub async fn claims(executor: impl PgExecutor<'_>, after: Uuid, limit: i64) -> sqlx::Result<Vec<Claim>> {
    let claims = sqlx::query_as!(
        Claim,
        r#"SELECT id, account_id, size AS "size!", sha256 AS "sha256!" FROM files WHERE id > $1 AND state = 'stored' ORDER BY id LIMIT $2"#,
        after,
        limit
    );
    claims.fetch_all(executor).await
}

/// Returns all fields of a file, in whatever state it is, as JSON.
pub async fn all_fields(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Value>> {
    let row = sqlx::query_scalar!(
        r#"SELECT jsonb_set_lax(to_jsonb(files), '{sha256}', to_jsonb(encode(sha256, 'hex'))) AS "file!" FROM files WHERE id = $1"#,
        id
    );
    row.fetch_optional(executor).await
}

/// Deletes a stored file and enqueues a job that removes its objects. None if the account has no such file.
///
/// # Errors
/// The job cannot be enqueued, or the database is unreachable.
#[instrument(name = "postgres files delete", level = "debug", skip_all)]
pub async fn delete(connection: &mut PgConnection, account_id: Uuid, id: Uuid) -> Result<Option<Enqueued>, EnqueueError> {
    let deleted = sqlx::query_scalar!(
        r#"DELETE FROM files WHERE id = $1 AND account_id = $2 AND state = 'stored' RETURNING size AS "size!""#,
        id,
        account_id
    );
    let Some(size) = deleted.fetch_optional(&mut *connection).await? else { return Ok(None) };
    sqlx::query!("UPDATE file_usage SET files = files - 1, bytes = bytes - $2 WHERE account_id = $1", account_id, size)
        .execute(&mut *connection)
        .await?;
    jobs::enqueue(connection, &RemoveFile { id, upload: None }).await.map(Some)
}

/// Deletes all files of an account that is about to be deleted, and enqueues jobs that remove their objects.
///
/// # Errors
/// As [`delete`].
pub async fn delete_all(connection: &mut PgConnection, account_id: Uuid) -> Result<(), EnqueueError> {
    let files = sqlx::query_as!(RemoveFile, "DELETE FROM files WHERE account_id = $1 RETURNING id, upload", account_id);
    let files = files.fetch_all(&mut *connection).await?;
    for batch in files.chunks(BATCH) {
        // Nobody waits for these jobs, so the workers find them at their next poll.
        let _ = jobs::enqueue_many(connection, batch).await?;
    }
    Ok(())
}
