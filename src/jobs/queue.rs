//! The queue's SQL. A job's state is implied: ready (no token), leased (a token), dead (`dead_at`); done is deleted.
//!
//! All times are the database's, every statement stands alone, and none needs a session of its own, so that a pooler
//! in transaction mode breaks nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgPool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::Job;
use crate::telemetry;

/// The channel on which workers hear that there is something new.
pub const CHANNEL: &str = "jobs";

/// What fits into a payload, in bytes; what is larger belongs into a table, and its id into the payload.
const PAYLOAD_LIMIT: usize = 64 * 1024;

/// Why a job was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("the payload of a {kind} job has {size} bytes, more than {PAYLOAD_LIMIT}: store the data and pass its id")]
    TooLarge { kind: &'static str, size: usize },
    #[error("the payload of a {kind} job is no JSON: {error}")]
    Payload { kind: &'static str, error: serde_json::Error },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What became of a job that was to be enqueued.
#[derive(Debug)]
pub enum Enqueued {
    /// It is in the queue.
    New(Wake),
    /// A job with its unique key is there already.
    Duplicate,
}

/// Tells the workers of new jobs: a courtesy that makes them start at once, where polling would find them later.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "fire it after the commit, or the workers find the job only at their next poll"]
pub struct Wake(());

impl Wake {
    /// To be called after the commit, since before it there is nothing to see.
    pub fn fire(self, notifier: &Notifier) {
        notifier.0.notify_one();
    }
}

impl Enqueued {
    /// Wakes the workers if there is something new.
    pub fn fire(self, notifier: &Notifier) {
        if let Self::New(wake) = self {
            wake.fire(notifier);
        }
    }
}

/// Sends wakes, many in one.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Arc<Notify>);

impl Notifier {
    /// The task that sends them, to be registered with the process.
    ///
    /// # Errors
    /// None: a wake that cannot be sent is logged, and the workers poll.
    pub async fn run(self, pool: PgPool, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.0.notified() => {
                    if let Err(e) = sqlx::query!("SELECT pg_notify($1, '')", CHANNEL).execute(&pool).await {
                        warn!(error = %e, "workers were not woken and will find the job at their next poll: {e}");
                    }
                }
            }
        }
    }
}

/// Enqueues a job that is due at once, in the caller's transaction if there is one.
///
/// # Errors
/// The payload is too large, or Postgres refuses.
pub async fn enqueue<J: Job>(connection: &mut PgConnection, job: &J) -> Result<Enqueued, EnqueueError> {
    insert(connection, std::slice::from_ref(job), None).await
}

/// Enqueues a job that is due at a time.
///
/// # Errors
/// As [`enqueue`].
pub async fn enqueue_at<J: Job>(connection: &mut PgConnection, job: &J, run_at: Timestamp) -> Result<Enqueued, EnqueueError> {
    insert(connection, std::slice::from_ref(job), Some(run_at)).await
}

/// Enqueues many jobs of one kind in one statement; those whose key is taken are left out.
///
/// # Errors
/// As [`enqueue`], and then none is enqueued.
pub async fn enqueue_many<J: Job>(connection: &mut PgConnection, jobs: &[J]) -> Result<Enqueued, EnqueueError> {
    insert(connection, jobs, None).await
}

async fn insert<J: Job>(connection: &mut PgConnection, jobs: &[J], run_at: Option<Timestamp>) -> Result<Enqueued, EnqueueError> {
    let kind = J::KIND;
    let payloads =
        jobs.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>().map_err(|error| EnqueueError::Payload { kind, error })?;
    if let Some(size) = payloads.iter().map(|payload| payload.to_string().len()).find(|size| *size > PAYLOAD_LIMIT) {
        return Err(EnqueueError::TooLarge { kind, size });
    }
    let keys: Vec<_> = jobs.iter().map(Job::unique_key).collect();
    let trace_context = telemetry::current_field("request_id").map(|id| serde_json::json!({ "request_id": id }));
    let inserted = sqlx::query!(
        r#"INSERT INTO jobs (kind, payload, unique_key, run_at, max_attempts, trace_context)
           SELECT $1, payload, unique_key, COALESCE($4, now()), $5, $6 FROM UNNEST($2::jsonb[], $3::text[]) AS job (payload, unique_key)
           ON CONFLICT (kind, unique_key) WHERE unique_key IS NOT NULL AND dead_at IS NULL DO NOTHING"#,
        kind,
        &payloads,
        &keys as &[Option<String>],
        run_at.map(jiff_sqlx::ToSqlx::to_sqlx) as _,
        J::MAX_ATTEMPTS,
        trace_context,
    )
    .execute(connection)
    .await?
    .rows_affected();
    Ok(if inserted == 0 { Enqueued::Duplicate } else { Enqueued::New(Wake(())) })
}

/// A job in a worker's hands.
#[derive(Debug)]
pub struct Claimed {
    pub id: i64,
    pub kind: String,
    pub payload: serde_json::Value,
    pub attempt: i32,
    pub max_attempts: i32,
    pub trace_context: Option<serde_json::Value>,
    pub due_at: jiff_sqlx::Timestamp,
    /// How long it was due before it was claimed, in milliseconds.
    pub wait_ms: i64,
}

/// Claims due jobs of the known kinds, the oldest first, at most `limit`, of those due since a time if there is one.
/// They are the caller's under `token` for `lease`.
///
/// # Errors
/// Postgres does not answer.
pub async fn claim(
    pool: &PgPool,
    kinds: &[String],
    limit: i64,
    token: Uuid,
    lease: Duration,
    since: Option<jiff_sqlx::Timestamp>,
) -> sqlx::Result<Vec<Claimed>> {
    // One index scan for each kind: a million jobs of a kind that is not asked for cost nothing.
    sqlx::query_as!(
        Claimed,
        r#"WITH due AS (
               SELECT ready.id, ready.run_at
               FROM UNNEST($1::text[]) AS known (kind)
               CROSS JOIN LATERAL (
                   SELECT id, run_at FROM jobs
                   WHERE jobs.kind = known.kind AND token IS NULL AND dead_at IS NULL AND run_at <= now()
                       AND run_at >= COALESCE($5::timestamptz, '-infinity')
                   ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED
               ) AS ready
               ORDER BY ready.run_at LIMIT $2
           )
           UPDATE jobs SET token = $3, run_at = now() + $4::interval, attempt = attempt + 1
           FROM due WHERE jobs.id = due.id
           RETURNING jobs.id, kind, payload, attempt, max_attempts, trace_context,
               due.run_at AS due_at, (EXTRACT(epoch FROM now() - due.run_at) * 1000)::bigint AS "wait_ms!""#,
        kinds,
        limit,
        token,
        interval(lease),
        since as _,
    )
    .fetch_all(pool)
    .await
}

/// Gives the leases of running jobs their full length again; returns those that were extended. A row that its own
/// handler has locked is left for the next time, rather than hold up its neighbours.
///
/// # Errors
/// Postgres does not answer.
pub async fn extend(pool: &PgPool, jobs: &[(i64, Uuid)], lease: Duration) -> sqlx::Result<Vec<i64>> {
    let (ids, tokens) = split(jobs);
    sqlx::query_scalar!(
        r#"WITH held AS (
               SELECT jobs.id FROM jobs JOIN UNNEST($1::bigint[], $2::uuid[]) AS mine (id, token) USING (id, token)
               FOR UPDATE OF jobs SKIP LOCKED
           )
           UPDATE jobs SET run_at = now() + $3::interval FROM held WHERE jobs.id = held.id RETURNING jobs.id"#,
        &ids,
        &tokens,
        interval(lease),
    )
    .fetch_all(pool)
    .await
}

/// Deletes jobs that are done. A job that another worker has taken over in the meantime stays.
///
/// # Errors
/// Postgres does not answer.
pub async fn complete_all(pool: &PgPool, jobs: &[(i64, Uuid)]) -> sqlx::Result<Vec<i64>> {
    let (ids, tokens) = split(jobs);
    // Heartbeat, claim and expiry skip what is locked, so they and this cannot wait for each other, and the rows need no
    // lock in an order first, which would write each of them twice. Where a lost lease brings two of these together,
    // Postgres breaks a tie and the write-back tries again.
    sqlx::query_scalar!(
        r#"DELETE FROM jobs USING UNNEST($1::bigint[], $2::uuid[]) AS mine (id, token)
           WHERE jobs.id = mine.id AND jobs.token = mine.token RETURNING jobs.id"#,
        &ids,
        &tokens,
    )
    .fetch_all(pool)
    .await
}

/// Deletes one job that is done, in the caller's transaction; says whether it was still held under the token.
///
/// # Errors
/// Postgres does not answer.
pub async fn complete(connection: &mut PgConnection, id: i64, token: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query!("DELETE FROM jobs WHERE id = $1 AND token = $2", id, token).execute(connection).await?;
    Ok(done.rows_affected() == 1)
}

/// What became of a job that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It will be tried again, after a backoff that doubles with each attempt, at most an hour, and is partly random.
    Waits,
    /// It was given up.
    Dead,
    /// It is another worker's now, and this failure counts for nothing.
    Lost,
}

/// Gives a failed job back for another attempt, or up for dead if `retry` is false or it was the last one.
///
/// # Errors
/// Postgres does not answer.
pub async fn fail(pool: &PgPool, id: i64, token: Uuid, error: &str, retry: bool) -> sqlx::Result<Failed> {
    let dead = sqlx::query_scalar!(
        r#"UPDATE jobs SET token = NULL, last_error = $3,
               run_at = now() + (0.5 + random() / 2) * LEAST(power(2, attempt), 3600) * interval '1 second',
               dead_at = CASE WHEN NOT $4 OR attempt >= max_attempts THEN now() END
           WHERE id = $1 AND token = $2
           RETURNING dead_at IS NOT NULL AS "dead!""#,
        id,
        token,
        // Postgres cannot hold NUL, and nobody reads more.
        error.replace('\0', "").chars().take(2000).collect::<String>(),
        retry,
    )
    .fetch_optional(pool)
    .await?;
    Ok(dead.map_or(Failed::Lost, |dead| if dead { Failed::Dead } else { Failed::Waits }))
}

/// Gives unfinished jobs back at once and without having spent an attempt; returns how many were still held.
///
/// # Errors
/// Postgres does not answer.
pub async fn release(pool: &PgPool, jobs: &[(i64, Uuid)]) -> sqlx::Result<u64> {
    let (ids, tokens) = split(jobs);
    let released = sqlx::query!(
        r#"WITH held AS (
               SELECT jobs.id FROM jobs JOIN UNNEST($1::bigint[], $2::uuid[]) AS mine (id, token) USING (id, token)
               ORDER BY jobs.id FOR UPDATE OF jobs
           )
           UPDATE jobs SET token = NULL, run_at = now(), attempt = attempt - 1 FROM held WHERE jobs.id = held.id"#,
        &ids,
        &tokens,
    )
    .execute(pool)
    .await?;
    Ok(released.rows_affected())
}

/// A job whose worker let its lease end: it crashed, or was cut off.
#[derive(Debug)]
pub struct Expired {
    pub id: i64,
    pub kind: String,
    pub attempt: i32,
    pub dead: bool,
}

/// Fails the jobs whose lease has ended: they wait a random part of their backoff, or are dead after their last attempt,
/// so that a job that kills its process stops doing so.
///
/// # Errors
/// Postgres does not answer.
pub async fn expire(pool: &PgPool) -> sqlx::Result<Vec<Expired>> {
    sqlx::query_as!(
        Expired,
        r#"WITH lost AS (
               SELECT id FROM jobs WHERE token IS NOT NULL AND run_at < now() ORDER BY run_at LIMIT 1000 FOR UPDATE SKIP LOCKED
           )
           UPDATE jobs SET token = NULL, last_error = 'the worker was lost before the job ended',
               run_at = now() + random() * LEAST(power(2, attempt), 3600) * interval '1 second',
               dead_at = CASE WHEN attempt >= max_attempts THEN now() END
           FROM lost WHERE jobs.id = lost.id
           RETURNING jobs.id, kind, attempt, dead_at IS NOT NULL AS "dead!""#
    )
    .fetch_all(pool)
    .await
}

/// The kinds of waiting jobs that are none of these. It hops from kind to kind, so a million jobs of one cost as much as one.
///
/// # Errors
/// Postgres does not answer.
pub async fn waiting_kinds_but(pool: &PgPool, kinds: &[String]) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"WITH RECURSIVE waiting AS (
               (SELECT kind FROM jobs WHERE token IS NULL AND dead_at IS NULL ORDER BY kind LIMIT 1)
               UNION ALL
               SELECT (SELECT kind FROM jobs WHERE token IS NULL AND dead_at IS NULL AND kind > waiting.kind ORDER BY kind LIMIT 1)
               FROM waiting WHERE waiting.kind IS NOT NULL
           )
           SELECT kind AS "kind!" FROM waiting WHERE kind IS NOT NULL AND kind <> ALL($1)"#,
        kinds
    )
    .fetch_all(pool)
    .await
}

fn split(jobs: &[(i64, Uuid)]) -> (Vec<i64>, Vec<Uuid>) {
    jobs.iter().copied().unzip()
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
