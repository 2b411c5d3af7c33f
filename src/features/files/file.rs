//! The file and its SQL.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::instrument;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::jobs::{self, EnqueueError, Enqueued};
use crate::resources::postgres::Timestamp;

use super::clean_up::RemoveFile;

/// How many files of an account may be stored: their rows take room too, and an empty file has nothing else.
const FILES: i64 = 10_000;

/// How many removals one statement asks for.
const BATCH: usize = 1000;

/// A stored file.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct File {
    pub id: Uuid,
    pub name: String,
    /// In bytes.
    pub size: i64,
    /// SHA-256 of the content, in hexadecimal digits.
    pub sha256: String,
    /// What the content says that it is.
    #[schema(example = "image/jpeg")]
    pub media_type: String,
    /// Of an image, in pixels; none until it was looked into.
    pub width: Option<i32>,
    pub height: Option<i32>,
    /// The sizes of thumbnails that there are: `small`, `large`.
    pub thumbnails: Vec<String>,
    /// Why an image has no thumbnails.
    pub remark: Option<String>,
    pub created_at: Timestamp,
}

/// The keys of a file's objects: its content, and each thumbnail that it may have.
pub fn content_key(id: Uuid) -> String {
    format!("{FOLDER}/{id}/content")
}

pub fn thumbnail_key(id: Uuid, size: &str) -> String {
    format!("{FOLDER}/{id}/{size}")
}

/// The folder of all objects of files.
pub const FOLDER: &str = "files";

/// The file that an object belongs to.
pub fn id_in(key: &str) -> Option<Uuid> {
    key.strip_prefix(FOLDER)?.strip_prefix('/')?.split('/').next()?.parse().ok()
}

/// Notes that a file is being received, for an account whose address is verified; says whether it is. The row comes before
/// the object, so that there is no object without one.
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

/// How many more bytes an account may store; none where it may store no more files.
#[instrument(name = "postgres files room", level = "debug", skip_all)]
pub async fn room(executor: impl PgExecutor<'_>, account_id: Uuid, quota: u64) -> sqlx::Result<Option<u64>> {
    let used = sqlx::query!("SELECT files, bytes FROM file_usage WHERE account_id = $1", account_id).fetch_optional(executor).await?;
    let (files, bytes) = used.map_or((0, 0), |used| (used.files, used.bytes));
    Ok((files < FILES).then(|| quota.saturating_sub(bytes.unsigned_abs())))
}

/// Notes that something of a file has moved, and what the store calls its upload; says whether it is still received.
#[instrument(name = "postgres files move", level = "debug", skip_all)]
pub async fn moved(executor: impl PgExecutor<'_>, id: Uuid, upload: Option<&str>) -> sqlx::Result<bool> {
    let moved = sqlx::query!("UPDATE files SET moved_at = now(), upload = $2 WHERE id = $1 AND state = 'receiving'", id, upload);
    Ok(moved.execute(executor).await?.rows_affected() == 1)
}

/// What is known of a file whose content is in the store.
pub struct Content {
    pub size: u64,
    pub sha256: Vec<u8>,
    pub media_type: &'static str,
}

/// What became of a file whose content is in the store.
pub enum Stored {
    Yes(File),
    /// Its row is gone: the account was deleted meanwhile, or nothing had moved for an hour.
    Gone,
    /// The account's quota is used up.
    Full,
}

/// Makes a file that was received a stored one, within the account's quota. The caller rolls back unless it is.
#[instrument(name = "postgres files store", level = "debug", skip_all)]
pub async fn store(connection: &mut PgConnection, account_id: Uuid, id: Uuid, content: Content, quota: u64) -> sqlx::Result<Stored> {
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
    let Some(file) = stored.fetch_optional(&mut *connection).await? else { return Ok(Stored::Gone) };
    let counted = sqlx::query!(
        r#"INSERT INTO file_usage AS usage (account_id, files, bytes) SELECT $1, 1, $2 WHERE $2::bigint <= $3
           ON CONFLICT (account_id) DO UPDATE SET files = usage.files + 1, bytes = usage.bytes + $2
           WHERE usage.bytes + $2 <= $3 AND usage.files < $4"#,
        account_id,
        size,
        i64::try_from(quota).unwrap_or(i64::MAX),
        FILES
    );
    let counted = counted.execute(connection).await?.rows_affected() == 1;
    Ok(if counted { Stored::Yes(file) } else { Stored::Full })
}

/// One page of an account's files, the newest first, from behind `before`.
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

/// An account's stored file; none for another's.
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

/// Deletes an account's stored file and asks for its objects to be removed; none where there was no such file.
///
/// # Errors
/// The job cannot be enqueued, or as above.
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

/// Deletes all files of an account, which is about to be deleted, and asks for their objects to be removed.
///
/// # Errors
/// As [`delete`].
pub async fn delete_all(connection: &mut PgConnection, account_id: Uuid) -> Result<(), EnqueueError> {
    let files = sqlx::query_as!(RemoveFile, "DELETE FROM files WHERE account_id = $1 RETURNING id, upload", account_id);
    let files = files.fetch_all(&mut *connection).await?;
    for some in files.chunks(BATCH) {
        // The workers find them at their next poll: nobody waits for it.
        let _ = jobs::enqueue_many(connection, some).await?;
    }
    Ok(())
}
