//! What is left over: objects of files that are gone, uploads that nobody finished, objects that no row knows.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use super::file::{self, FOLDER, content_key, thumbnail_key};
use super::inspect::SIZES;
use crate::app::App;
use crate::jobs::{self, Job, JobContext, JobError, Priority};
use crate::resources::storage::Storage;

/// How many rows, or objects, one step looks at.
const BATCH: usize = 1000;

/// Removes the objects of a file whose row is gone, and the upload that was to make them.
#[derive(Debug, Serialize, Deserialize)]
pub struct RemoveFile {
    pub id: Uuid,
    pub upload: Option<String>,
}

impl Job for RemoveFile {
    const KIND: &'static str = "remove_file";
    const PRIORITY: Priority = Priority::Bulk;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let storage = attached(context)?;
        if let Some(upload) = &self.upload {
            storage.abort(&content_key(self.id), upload).await?;
        }
        for size in SIZES {
            storage.delete(&thumbnail_key(self.id, size.name)).await?;
        }
        Ok(storage.delete(&content_key(self.id)).await?)
    }
}

/// Forgets a file that could not be received, and asks for what is in the store of it to be removed.
///
/// # Errors
/// Postgres is unavailable: an hour later the clean-up finds the row.
pub async fn forget(app: &App, id: Uuid, upload: Option<String>) -> anyhow::Result<()> {
    let mut transaction = app.postgres.begin().await?;
    sqlx::query!("DELETE FROM files WHERE id = $1 AND state = 'receiving'", id).execute(&mut *transaction).await?;
    let enqueued = jobs::enqueue(&mut transaction, &RemoveFile { id, upload }).await?;
    transaction.commit().await?;
    enqueued.fire(&app.notifier);
    Ok(())
}

/// The object store, without which files cannot be worked on.
///
/// # Errors
/// `STORAGE_URL` is unset.
pub fn attached(context: &JobContext) -> anyhow::Result<Storage> {
    context.storage.clone().ok_or_else(|| anyhow::anyhow!("STORAGE_URL is unset, and there are files"))
}

/// Forgets what was not received to its end, and finds the objects that no row knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct CleanUpFiles {}

/// Where the search for objects without a row is.
#[derive(Debug, Serialize, Deserialize)]
struct Search {
    /// The last key that was looked at.
    after: Option<String>,
    /// When it began.
    began: jiff::Timestamp,
}

impl Job for CleanUpFiles {
    const KIND: &'static str = "clean_up_files";
    const PRIORITY: Priority = Priority::Bulk;
    // A million objects are a thousand pages.
    const TIMEOUT: Duration = Duration::from_mins(30);

    /// One search at a time.
    fn unique_key(&self) -> Option<String> {
        Some(String::new())
    }

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let search = if let Some(search) = context.progress()? {
            search
        } else {
            forget_abandoned(context).await?;
            let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#);
            Search { after: None, began: now.fetch_one(&mut *context.postgres.acquire().await?).await?.into() }
        };
        // Where files are off, there is nothing to list.
        let Some(storage) = context.storage.clone() else { return Ok(()) };
        find_strays(context, &storage, search).await
    }
}

/// Deletes the rows of files of which nothing has moved for an hour: their process is gone.
async fn forget_abandoned(context: &JobContext) -> anyhow::Result<()> {
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
        info!(files = abandoned.len(), "{} file(s) were never received to their end, and are removed", abandoned.len());
    }
}

/// Lists all objects, page by page. One that no row knows is reported, and deleted a day after it was found first: a
/// database that was set back to yesterday may know it tomorrow.
async fn find_strays(context: &JobContext, storage: &Storage, mut search: Search) -> Result<(), JobError> {
    loop {
        if context.draining() {
            return Err(JobError::PUT_DOWN);
        }
        let page = storage.list(FOLDER, search.after.as_deref(), BATCH).await?;
        let keys: Vec<_> = page.iter().map(|object| object.key.clone()).collect();
        let ids: Vec<_> = keys.iter().map(|key| file::id_in(key).unwrap_or_default()).collect();
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
            search.after = Some(last.clone());
            context.save_in(&mut transaction, &search).await?;
        }
        transaction.commit().await?;
        let new = strays.iter().filter(|stray| stray.new).count();
        if new > 0 {
            warn!(objects = new, "{new} object(s) without a file, which are deleted in a day: see the table stray_objects");
        }
        for stray in strays.iter().filter(|stray| stray.due) {
            storage.delete(&stray.key).await?;
        }
        if page.len() < BATCH {
            break;
        }
    }
    // What this search has not seen again is gone, or has a row.
    let gone = sqlx::query!("DELETE FROM stray_objects WHERE seen_at < $1", crate::resources::postgres::Timestamp::from(search.began) as _);
    gone.execute(&mut *context.postgres.acquire().await?).await?;
    Ok(())
}
