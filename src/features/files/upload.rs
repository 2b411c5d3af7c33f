//! Streams an upload from the client into the object store, part by part.
//!
//! First a row in the state `receiving` is committed, then the object is written, then one transaction marks the file as
//! stored. A process that is killed at any point leaves at most a row, which the clean-up finds.

use std::time::Duration;

use axum::http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::file::{self, Content, File, StoreOutcome};
use super::inspect::InspectFile;
use super::media_type::{self, SNIFFED_BYTES};
use super::objects::content_key;
use super::{UPLOADED, clean_up};
use crate::app::App;
use crate::auth::{Caller, audit};
use crate::http::{ContentDigest, Problem, Result, Streamed};
use crate::jobs;
use crate::resources::storage::{MAX_UPLOADS_PER_ACCOUNT, ObjectHeaders, Storage, Writer};

/// How often an upload records its progress in its row. After an hour without progress the clean-up treats the upload as
/// abandoned.
const HEARTBEAT_INTERVAL: Duration = Duration::from_mins(5);

/// A new upload.
pub struct Upload {
    pub app: App,
    pub storage: Storage,
    pub caller: Caller,
    pub name: String,
    pub digest: ContentDigest,
}

impl Upload {
    /// Receives the content and stores the file. Cleans up if that fails.
    ///
    /// # Errors
    /// 400 if the body ends early or its digest differs, 401 if the caller's session was ended meanwhile, 403 if the quota is
    /// reached or the email address is not verified, 408 if the client stops sending, 413 if the body is too large, 429 if the
    /// account has too many uploads in progress, 503 if the store or Postgres is unavailable.
    pub async fn run(self, mut body: Streamed) -> Result<File> {
        let Some(_place) = self.storage.places().take(self.caller.account_id) else {
            let detail = format!("You have {MAX_UPLOADS_PER_ACCOUNT} uploads in progress. Retry when one has ended.");
            return Err(Problem::too_many(detail, 5));
        };
        let (id, remaining) = self.begin(body.length.unwrap_or_default()).await?;
        let mut writer = Writer::new(self.storage.clone(), content_key(id), body.length);
        let problem = match self.receive(id, remaining, &mut body, &mut writer).await {
            // If this fails, the transaction may still have been committed. So only the clean-up may remove the file.
            Ok(content) => match self.store(id, content).await? {
                StoreOutcome::Stored(file) => return Ok(file),
                StoreOutcome::Gone => Problem::not_found(),
                StoreOutcome::QuotaReached => quota_reached(),
                StoreOutcome::Ended => Problem::unauthenticated(),
            },
            Err(problem) => problem,
        };
        let upload = writer.upload().map(str::to_owned);
        // Cancels the part in flight.
        drop(writer);
        if let Err(error) = clean_up::discard(&self.app, id, upload).await {
            warn!(error = format!("{error:#}"), "cannot remove a failed upload; the hourly clean-up will: {error:#}");
        }
        Err(problem)
    }

    /// Inserts the row if the quota allows it. Returns the file's id and how many bytes the account may still store.
    async fn begin(&self, length: u64) -> Result<(Uuid, u64)> {
        let limits = self.storage.limits();
        if length > limits.object {
            return Err(too_large(limits.object));
        }
        let (id, account_id) = (Uuid::now_v7(), self.caller.account_id);
        let mut connection = self.app.postgres.acquire().await?;
        let remaining = file::remaining(&mut *connection, account_id, limits.account).await?;
        let remaining = remaining.filter(|remaining| length <= *remaining).ok_or_else(quota_reached)?;
        if file::begin(&mut *connection, id, account_id, &self.name).await? { Ok((id, remaining)) } else { Err(Problem::not_verified()) }
    }

    async fn receive(&self, id: Uuid, remaining: u64, body: &mut Streamed, writer: &mut Writer) -> Result<Content> {
        let limit = self.storage.limits().object;
        let (mut size, mut head, mut hashes) = (0, Vec::new(), self.digest.hashes());
        let (mut recorded, mut last_heartbeat) = (false, Instant::now());
        while let Some(piece) = body.next().await? {
            size += piece.len() as u64;
            if size > limit {
                return Err(too_large(limit));
            }
            if size > remaining {
                return Err(quota_reached());
            }
            hashes.update(&piece);
            head.extend_from_slice(&piece[..piece.len().min(SNIFFED_BYTES - head.len())]);
            writer.write(piece, || self.object_headers(&head)).await?;
            // The store's id of the upload is recorded at once, for the clean-up.
            if writer.upload().is_some() != recorded || last_heartbeat.elapsed() > HEARTBEAT_INTERVAL {
                (recorded, last_heartbeat) = (writer.upload().is_some(), Instant::now());
                if !file::heartbeat(&mut *self.app.postgres.acquire().await?, id, writer.upload()).await? {
                    return Err(Problem::not_found());
                }
            }
        }
        let sha256 = hashes.finish()?;
        writer.finish(|| self.object_headers(&head)).await?;
        Ok(Content { size, sha256, media_type: media_type::detect(&head) })
    }

    /// The headers that the content is served with. Its type comes from its first bytes, and browsers download it instead of
    /// displaying it.
    fn object_headers(&self, head: &[u8]) -> ObjectHeaders {
        let content_disposition = format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(&self.name, NON_ALPHANUMERIC));
        ObjectHeaders { content_type: media_type::served_as(media_type::detect(head)).to_owned(), content_disposition }
    }

    async fn store(&self, id: Uuid, content: Content) -> Result<StoreOutcome> {
        let (account_id, quota) = (self.caller.account_id, self.storage.limits().account);
        let mut transaction = self.app.postgres.begin().await?;
        let outcome = match self.caller.hold(&mut transaction).await {
            Ok(_) => file::store(&mut transaction, account_id, id, content, quota).await?,
            Err(problem) if problem.status == StatusCode::UNAUTHORIZED => StoreOutcome::Ended,
            Err(problem) => return Err(problem),
        };
        if !matches!(outcome, StoreOutcome::Stored(_)) {
            transaction.rollback().await?;
            return Ok(outcome);
        }
        let enqueued = jobs::enqueue(&mut transaction, &InspectFile { id }).await?;
        audit::record(&mut *transaction, UPLOADED, Some(account_id), self.caller.by).await?;
        transaction.commit().await?;
        enqueued.fire(&self.app.notifier);
        Ok(outcome)
    }
}

fn too_large(limit: u64) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "file-too-large", format!("A file may have at most {limit} bytes."))
}

fn quota_reached() -> Problem {
    Problem::forbidden("quota-reached", "You have reached your storage quota. Delete files that you no longer need.")
}
