//! An upload: from the client through this process into the store, part by part.
//!
//! First comes a row in the state `receiving`, then the object, then one transaction that makes it a stored file. So a process
//! that is killed at any moment leaves at most a row that the clean-up finds.

use std::time::Duration;

use axum::http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::file::{self, Content, File, Stored};
use super::inspect::LookIntoFile;
use super::media_type::{self, HEAD};
use super::{UPLOADED, clean_up};
use crate::app::App;
use crate::auth::{Caller, audit};
use crate::http::{ContentDigest, Problem, Result, Streamed};
use crate::jobs;
use crate::resources::storage::{Presentation, Storage, Writer};

/// How often the row is told that something moves: the clean-up takes an hour without it for the end.
const TELL: Duration = Duration::from_mins(5);

/// An upload that begins.
pub struct Upload {
    pub app: App,
    pub storage: Storage,
    pub caller: Caller,
    pub name: String,
    pub digest: ContentDigest,
}

impl Upload {
    /// Receives the content to its end; leaves nothing behind where that fails.
    ///
    /// # Errors
    /// 400 for a body that ended early or has another digest, 403 past the quota or for an unverified address, 408 for a client
    /// that stopped, 413 for too large a body, 503 where the store or Postgres is unavailable.
    pub async fn run(self, mut body: Streamed) -> Result<File> {
        let (id, room) = self.begin(body.length.unwrap_or_default()).await?;
        let mut writer = Writer::new(self.storage.clone(), file::content_key(id), body.length);
        let refused = match self.receive(id, room, &mut body, &mut writer).await {
            // Whether the transaction was committed may be unknown, so what fails here stays for the clean-up.
            Ok(content) => match self.store(id, content).await? {
                Stored::Yes(file) => return Ok(file),
                Stored::Gone => Problem::not_found(),
                Stored::Full => full(),
            },
            Err(problem) => problem,
        };
        let upload = writer.upload().map(str::to_owned);
        // What is still being sent ends here.
        drop(writer);
        if let Err(error) = clean_up::forget(&self.app, id, upload).await {
            warn!(error = format!("{error:#}"), "an upload that failed is left to the clean-up: {error:#}");
        }
        Err(refused)
    }

    /// Makes the row, if there is room; says how many bytes there is room for.
    async fn begin(&self, length: u64) -> Result<(Uuid, u64)> {
        let limits = self.storage.limits();
        if length > limits.object {
            return Err(too_large(limits.object));
        }
        let (id, account_id) = (Uuid::now_v7(), self.caller.account_id);
        let mut connection = self.app.postgres.acquire().await?;
        let room = file::room(&mut *connection, account_id, limits.account).await?;
        let room = room.filter(|room| length <= *room).ok_or_else(full)?;
        if file::begin(&mut *connection, id, account_id, &self.name).await? { Ok((id, room)) } else { Err(Problem::not_verified()) }
    }

    async fn receive(&self, id: Uuid, room: u64, body: &mut Streamed, writer: &mut Writer) -> Result<Content> {
        let limit = self.storage.limits().object;
        let (mut size, mut head, mut hashes, mut told) = (0, Vec::new(), self.digest.hashes(), None::<Instant>);
        while let Some(piece) = body.next().await? {
            size += piece.len() as u64;
            if size > limit {
                return Err(too_large(limit));
            }
            if size > room {
                return Err(full());
            }
            hashes.update(&piece);
            head.extend_from_slice(&piece[..piece.len().min(HEAD - head.len())]);
            writer.write(piece, || self.presentation(&head)).await?;
            if writer.upload().is_some() && told.is_none_or(|at| at.elapsed() > TELL) {
                told = Some(Instant::now());
                if !file::moved(&mut *self.app.postgres.acquire().await?, id, writer.upload()).await? {
                    return Err(Problem::not_found());
                }
            }
        }
        let sha256 = hashes.finish()?;
        writer.finish(|| self.presentation(&head)).await?;
        Ok(Content { size, sha256, media_type: media_type::of(&head) })
    }

    /// How the object is handed out: as what its first bytes say, and never shown in the browser.
    fn presentation(&self, head: &[u8]) -> Presentation {
        let content_disposition = format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(&self.name, NON_ALPHANUMERIC));
        Presentation { content_type: media_type::presented(media_type::of(head)).to_owned(), content_disposition }
    }

    async fn store(&self, id: Uuid, content: Content) -> Result<Stored> {
        let (account_id, quota) = (self.caller.account_id, self.storage.limits().account);
        let mut transaction = self.app.postgres.begin().await?;
        let stored = file::store(&mut transaction, account_id, id, content, quota).await?;
        if !matches!(stored, Stored::Yes(_)) {
            transaction.rollback().await?;
            return Ok(stored);
        }
        let enqueued = jobs::enqueue(&mut transaction, &LookIntoFile { id }).await?;
        audit::record(&mut *transaction, UPLOADED, Some(account_id), self.caller.by).await?;
        transaction.commit().await?;
        enqueued.fire(&self.app.notifier);
        Ok(stored)
    }
}

fn too_large(limit: u64) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "file-too-large", format!("a file may have {limit} bytes at most"))
}

fn full() -> Problem {
    Problem::forbidden("quota-reached", "there is no room for it: delete files that you no longer need")
}
