//! Removes abandoned uploads, and objects without a row.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::objects::{FOLDER, RemoveFile, id_in};
use crate::app::App;
use crate::jobs::{self, Job, JobContext, JobError, Priority};
use crate::resources::storage::{ObjectHeaders, Storage};

/// How many rows or objects one step handles.
const BATCH: usize = 1000;

/// The object that names the deploy whose files the other objects are.
const OWNER_KEY: &str = "owner";

/// Deletes the row of a file that could not be received, and enqueues a job that removes its objects.
///
/// # Errors
/// Postgres is unavailable. The hourly clean-up finds the row later.
pub async fn discard(app: &App, id: Uuid, upload: Option<String>) -> anyhow::Result<()> {
    let mut transaction = app.postgres.begin().await?;
    sqlx::query!("DELETE FROM files WHERE id = $1 AND state = 'receiving'", id).execute(&mut *transaction).await?;
    let enqueued = jobs::enqueue(&mut transaction, &RemoveFile { id, upload }).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    Ok(())
}

/// Deletes abandoned uploads, and finds objects without a row.
#[derive(Debug, Serialize, Deserialize)]
pub struct CleanUpFiles {}

/// The position of the scan for objects without a row.
#[derive(Debug, Serialize, Deserialize)]
struct Scan {
    /// The last key that was checked.
    after: Option<String>,
    /// When the scan started.
    started_at: jiff::Timestamp,
}

impl Job for CleanUpFiles {
    const KIND: &'static str = "clean_up_files";
    const PRIORITY: Priority = Priority::Bulk;
    // Enough for a million objects, which are a thousand pages.
    const TIMEOUT: Duration = Duration::from_mins(30);

    /// One scan at a time.
    fn unique_key(&self) -> Option<String> {
        Some(String::new())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let scan = if let Some(scan) = context.progress()? {
            scan
        } else {
            delete_abandoned(context).await?;
            let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#);
            Scan { after: None, started_at: now.fetch_one(&mut *context.postgres.acquire().await?).await?.into() }
        };
        // Without an object store there is nothing to list.
        let Some(storage) = context.storage.clone() else { return Ok(()) };
        if !owns_objects(context, &storage).await? {
            warn!(
                "the objects in the store belong to another deploy, so none is deleted; give each deploy a bucket or a prefix of its own"
            );
            return Ok(());
        }
        find_strays(context, &storage, scan).await
    }
}

/// Deletes the rows of uploads without progress for an hour. The process that received them has ended.
async fn delete_abandoned(context: &JobContext) -> anyhow::Result<()> {
    loop {
        let mut transaction = context.postgres.begin().await?;
        let abandoned = sqlx::query_as!(
            RemoveFile,
            r#"DELETE FROM files WHERE id = ANY (ARRAY(
                   SELECT id FROM files WHERE state = 'receiving' AND moved_at < now() - interval '1 hour' LIMIT $1 FOR UPDATE SKIP LOCKED))
               RETURNING id, upload"#,
            i64::try_from(BATCH)?
        );
        let abandoned = abandoned.fetch_all(&mut *transaction).await?;
        if abandoned.is_empty() {
            return Ok(());
        }
        let enqueued = jobs::enqueue_many(&mut transaction, &abandoned).await?;
        transaction.commit().await?;
        enqueued.fire(&context.notifier);
        info!(files = abandoned.len(), "{} abandoned upload(s) will be removed", abandoned.len());
    }
}

/// Whether the objects are this deploy's. Those of another have no rows here, and must not be deleted for that. The first deploy
/// that asks becomes the owner.
async fn owns_objects(context: &JobContext, storage: &Storage) -> anyhow::Result<bool> {
    let own = sqlx::query_scalar!(
        "INSERT INTO object_store_owner DEFAULT VALUES ON CONFLICT (only_row) DO UPDATE SET only_row = true RETURNING id"
    );
    let own = own.fetch_one(&mut *context.postgres.acquire().await?).await?.to_string();
    match storage.get(OWNER_KEY).await {
        Err(error) if error.is_missing() => {
            let headers = ObjectHeaders { content_type: "text/plain".to_owned(), content_disposition: "attachment".to_owned() };
            storage.put(OWNER_KEY, own.into(), headers).await?;
            Ok(true)
        }
        owner => Ok(owner? == own.as_bytes()),
    }
}

/// Lists all objects, page by page. An object without a row is reported, and deleted a day after it was first found. The
/// delay is for a database that was restored from an older backup and may get the row back.
async fn find_strays(context: &JobContext, storage: &Storage, mut scan: Scan) -> Result<(), JobError> {
    loop {
        if context.draining() {
            return Err(JobError::DRAINED);
        }
        let page = storage.list(FOLDER, scan.after.as_deref(), BATCH).await?;
        let keys: Vec<_> = page.iter().map(|object| object.key.clone()).collect();
        let ids: Vec<_> = keys.iter().map(|key| id_in(key).unwrap_or_default()).collect();
        let mut transaction = context.postgres.begin().await?;
        let strays = sqlx::query!(
            r#"INSERT INTO stray_objects AS stray (key)
               SELECT key FROM UNNEST($1::text[], $2::uuid[]) AS object (key, id) WHERE NOT EXISTS (SELECT FROM files WHERE files.id = object.id)
               ON CONFLICT (key) DO UPDATE SET seen_at = now()
               RETURNING key, found_at = seen_at AS "new!", found_at < now() - interval '1 day' AS "due!""#,
            &keys,
            &ids
        );
        let strays = strays.fetch_all(&mut *transaction).await?;
        if let Some(last) = keys.last() {
            scan.after = Some(last.clone());
            context.save_in(&mut transaction, &scan).await?;
        }
        transaction.commit().await?;
        let new = strays.iter().filter(|stray| stray.new).count();
        if new > 0 {
            warn!(objects = new, "{new} object(s) belong to no file and will be deleted in a day; the table stray_objects lists them");
        }
        for stray in strays.iter().filter(|stray| stray.due) {
            storage.delete(&stray.key).await?;
        }
        if page.len() < BATCH {
            break;
        }
    }
    // An object that this scan did not see again is gone, or has a row now.
    let cleared =
        sqlx::query!("DELETE FROM stray_objects WHERE seen_at < $1", crate::resources::postgres::Timestamp::from(scan.started_at) as _);
    cleared.execute(&mut *context.postgres.acquire().await?).await?;
    Ok(())
}
