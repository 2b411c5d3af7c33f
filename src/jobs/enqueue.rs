//! Enqueues jobs in the caller's transaction and wakes the workers after the commit.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{instrument, warn};

use super::Job;
use crate::resources::postgres::{self, Pool};
use crate::telemetry::traces;

/// The Postgres channel that notifies workers of new jobs.
pub const CHANNEL: &str = "jobs";

/// The largest payload, in bytes. Store larger data in a table and put its id into the payload.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// How long a notification may take. By then the workers have found the job by polling.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a job was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("the payload of a {kind} job has {size} bytes, more than {MAX_PAYLOAD_BYTES}: store the data and pass its id")]
    TooLarge { kind: &'static str, size: usize },
    #[error("the payload of a {kind} job cannot be written as JSON: {error}")]
    Payload { kind: &'static str, error: serde_json::Error },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The result of enqueueing.
#[derive(Debug)]
#[must_use = "fire it after the commit, or the workers find the job only at their next poll"]
pub enum Enqueued {
    /// The job is in the queue.
    New(Wake),
    /// The queue already has a job with this unique key.
    Duplicate,
}

/// Wakes the workers for new jobs. Without it they find the jobs at their next poll.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "fire it after the commit, or the workers find the job only at their next poll"]
pub struct Wake(());

impl Wake {
    /// Call it after the commit, because workers cannot see the job before.
    pub fn fire(self, notifier: &Notifier) {
        notifier.0.notify_one();
    }
}

impl Enqueued {
    /// Wakes the workers if a job was added.
    pub fn fire(self, notifier: &Notifier) {
        if let Self::New(wake) = self {
            wake.fire(notifier);
        }
    }
}

/// Sends notifications. Several wakes may share one.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Arc<Notify>);

impl Notifier {
    /// The task that sends notifications. The process registers it.
    ///
    /// # Errors
    /// None. A notification that cannot be sent is logged, and the workers poll.
    pub async fn run(self, pool: Pool, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.0.notified() => {
                    if let Err(e) = pool.within(NOTIFY_TIMEOUT, sqlx::query!("SELECT pg_notify($1, '')", CHANNEL).execute(&*pool)).await {
                        warn!(error = %e, "cannot notify workers, which will find the job at their next poll: {e}");
                    }
                }
            }
        }
    }
}

/// Enqueues a job that is due now, in the caller's transaction if there is one.
///
/// # Errors
/// The payload is too large, or the statement fails.
pub async fn enqueue<J: Job>(connection: &mut PgConnection, job: &J) -> Result<Enqueued, EnqueueError> {
    insert(connection, std::slice::from_ref(job), None).await
}

/// Enqueues a job that is due at `run_at`.
///
/// # Errors
/// As [`enqueue`].
pub async fn enqueue_at<J: Job>(connection: &mut PgConnection, job: &J, run_at: Timestamp) -> Result<Enqueued, EnqueueError> {
    insert(connection, std::slice::from_ref(job), Some(run_at)).await
}

/// Enqueues many jobs of one kind in one statement. Jobs whose unique key is taken are skipped.
///
/// # Errors
/// As [`enqueue`]. Then no job is enqueued.
pub async fn enqueue_many<J: Job>(connection: &mut PgConnection, jobs: &[J]) -> Result<Enqueued, EnqueueError> {
    insert(connection, jobs, None).await
}

/// Deletes the job with this job's unique key, unless a worker has claimed it.
///
/// # Errors
/// The statement fails.
#[instrument(name = "postgres jobs withdraw", level = "debug", skip_all)]
pub async fn withdraw<J: Job>(connection: &mut PgConnection, job: &J) -> sqlx::Result<()> {
    let withdrawn = sqlx::query!(
        "DELETE FROM jobs WHERE kind = $1 AND unique_key = $2 AND token IS NULL AND dead_at IS NULL",
        J::KIND,
        job.unique_key()
    );
    withdrawn.execute(connection).await.map(drop)
}

#[instrument(name = "postgres jobs enqueue", level = "debug", skip_all)]
async fn insert<J: Job>(connection: &mut PgConnection, jobs: &[J], run_at: Option<Timestamp>) -> Result<Enqueued, EnqueueError> {
    let kind = J::KIND;
    let payloads =
        jobs.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>().map_err(|error| EnqueueError::Payload { kind, error })?;
    if let Some(size) = payloads.iter().map(|payload| payload.to_string().len()).find(|size| *size > MAX_PAYLOAD_BYTES) {
        return Err(EnqueueError::TooLarge { kind, size });
    }
    let keys: Vec<_> = jobs.iter().map(Job::unique_key).collect();
    let trace_context = traces::context();
    let inserted = sqlx::query!(
        r#"INSERT INTO jobs (kind, payload, unique_key, run_at, max_attempts, trace_context)
           SELECT $1, payload, unique_key, COALESCE($4, now()), $5, $6 FROM UNNEST($2::jsonb[], $3::text[]) AS job (payload, unique_key)
           ON CONFLICT (kind, unique_key) WHERE unique_key IS NOT NULL AND dead_at IS NULL DO NOTHING"#,
        kind,
        &payloads,
        &keys as &[Option<String>],
        run_at.map(postgres::Timestamp::from) as _,
        J::MAX_ATTEMPTS,
        trace_context,
    )
    .execute(connection)
    .await?
    .rows_affected();
    Ok(if inserted == 0 { Enqueued::Duplicate } else { Enqueued::New(Wake(())) })
}
