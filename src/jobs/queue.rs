//! The worker's side of the queue, in SQL. A row without a token is ready, with a token it is leased, with `dead_at` it
//! is dead. A completed job's row is deleted.
//!
//! All times are the database's. Every statement stands alone and needs no session of its own, so a pooler in
//! transaction mode can be in between.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use crate::resources::postgres::{Timestamp, purge};

/// A job that a worker has claimed.
#[derive(Debug)]
pub struct Claimed {
    pub id: i64,
    pub kind: String,
    pub payload: serde_json::Value,
    pub attempt: i32,
    pub max_attempts: i32,
    pub trace_context: Option<serde_json::Value>,
    /// The position that an earlier attempt saved.
    pub progress: Option<serde_json::Value>,
    pub due_at: Timestamp,
    /// How long it had been due before it was claimed, in milliseconds.
    pub wait_ms: i64,
}

/// A kind of job to claim.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub kind: String,
    /// Lower ranks are claimed first.
    pub rank: i32,
    /// Only jobs due since then, if set.
    pub since: Option<Timestamp>,
}

/// Claims at most `limit` due jobs of the wanted kinds: lower ranks first, and the oldest first within a rank. The
/// caller holds them under `token` for `lease`.
pub async fn claim(
    executor: impl PgExecutor<'_>,
    wanted: &[Wanted],
    limit: i64,
    token: Uuid,
    lease: Duration,
) -> sqlx::Result<Vec<Claimed>> {
    let kinds: Vec<_> = wanted.iter().map(|wanted| wanted.kind.clone()).collect();
    let ranks: Vec<_> = wanted.iter().map(|wanted| wanted.rank).collect();
    let since: Vec<_> = wanted.iter().map(|wanted| wanted.since).collect();
    // One index scan for each kind, so that a million jobs of an unwanted kind cost nothing. The sub-selects hide the
    // values from the planner. If it saw them, it would plan each claim anew on a long queue, and a plan costs more
    // than the claim.
    sqlx::query_as!(
        Claimed,
        r#"WITH due AS (
               SELECT ready.id, ready.run_at
               FROM UNNEST((SELECT $1::text[]), (SELECT $5::integer[]), (SELECT $6::timestamptz[])) AS wanted (kind, rank, since)
               CROSS JOIN LATERAL (
                   SELECT id, run_at FROM jobs
                   WHERE jobs.kind = wanted.kind AND token IS NULL AND dead_at IS NULL AND run_at <= now()
                       AND run_at >= COALESCE(wanted.since, '-infinity')
                   ORDER BY run_at LIMIT (SELECT $2::bigint) FOR UPDATE SKIP LOCKED
               ) AS ready
               ORDER BY wanted.rank, ready.run_at LIMIT (SELECT $2::bigint)
           )
           UPDATE jobs SET token = $3, run_at = now() + $4::interval, attempt = attempt + 1
           FROM due WHERE jobs.id = due.id
           RETURNING jobs.id, kind, payload, attempt, max_attempts, trace_context, progress,
               due.run_at AS due_at, (EXTRACT(epoch FROM now() - due.run_at) * 1000)::bigint AS "wait_ms!""#,
        &kinds,
        limit,
        token,
        interval(lease),
        &ranks,
        &since as &[Option<Timestamp>],
    )
    .fetch_all(executor)
    .await
}

/// Extends the leases of running jobs to their full length and returns the jobs whose lease was extended. A row that
/// its own handler has locked is skipped until the next heartbeat, so that it does not delay the others.
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

/// Deletes completed jobs and returns their ids. A job that another worker has taken over stays.
pub async fn complete_all(pool: &PgPool, jobs: &[(i64, Uuid)]) -> sqlx::Result<Vec<i64>> {
    let (ids, tokens) = split(jobs);
    // Heartbeat, claim and expiry skip locked rows, so they cannot deadlock with this statement. Locking the rows in
    // order first would write each of them twice. If a lost lease lets two of these statements deadlock, Postgres
    // aborts one of them and the write-back retries.
    sqlx::query_scalar!(
        r#"DELETE FROM jobs USING UNNEST($1::bigint[], $2::uuid[]) AS mine (id, token)
           WHERE jobs.id = mine.id AND jobs.token = mine.token RETURNING jobs.id"#,
        &ids,
        &tokens,
    )
    .fetch_all(pool)
    .await
}

/// Deletes one completed job in the caller's transaction. Returns whether it was still held under the token.
pub async fn complete(connection: &mut PgConnection, id: i64, token: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query!("DELETE FROM jobs WHERE id = $1 AND token = $2", id, token).execute(connection).await?;
    Ok(done.rows_affected() == 1)
}

/// Saves the position of a job. Returns whether it was still held under the token. A new position resets the attempts, so
/// that the next one is the first again.
pub async fn save(executor: impl PgExecutor<'_>, id: i64, token: Uuid, progress: &serde_json::Value) -> sqlx::Result<bool> {
    let saved = sqlx::query!(
        r#"UPDATE jobs SET progress = $3, attempt = CASE WHEN progress IS DISTINCT FROM $3 THEN 0 ELSE attempt END
           WHERE id = $1 AND token = $2"#,
        id,
        token,
        progress
    );
    Ok(saved.execute(executor).await?.rows_affected() == 1)
}

/// The state of a job after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It waits for a retry. The backoff doubles with each attempt up to an hour, and is partly random.
    Waits,
    /// It is dead.
    Dead,
    /// Another worker has it, and this failure is ignored.
    Lost,
}

/// Schedules a retry, or marks the job dead if `retry` is false or its attempts are used up.
pub async fn fail(pool: &PgPool, id: i64, token: Uuid, error: &str, retry: bool) -> sqlx::Result<Failed> {
    let dead = sqlx::query_scalar!(
        r#"UPDATE jobs SET token = NULL, last_error = $3,
               run_at = now() + (0.5 + random() / 2) * LEAST(power(2, LEAST(attempt, 12)), 3600) * interval '1 second',
               dead_at = CASE WHEN NOT $4 OR attempt >= max_attempts THEN now() END
           WHERE id = $1 AND token = $2
           RETURNING dead_at IS NOT NULL AS "dead!""#,
        id,
        token,
        // Postgres cannot store NUL, and 2000 characters are enough to read.
        error.replace('\0', "").chars().take(2000).collect::<String>(),
        retry,
    )
    .fetch_optional(pool)
    .await?;
    Ok(dead.map_or(Failed::Lost, |dead| if dead { Failed::Dead } else { Failed::Waits }))
}

/// Returns a job to the queue for later. It has not used an attempt. Returns whether it was still held.
pub async fn postpone(pool: &PgPool, id: i64, token: Uuid, delay: Duration) -> sqlx::Result<bool> {
    let postponed = sqlx::query!(
        "UPDATE jobs SET token = NULL, run_at = now() + $3::interval, attempt = GREATEST(attempt - 1, 0) WHERE id = $1 AND token = $2",
        id,
        token,
        interval(delay)
    );
    Ok(postponed.execute(pool).await?.rows_affected() == 1)
}

/// Returns unfinished jobs to the queue, due now. They have not used an attempt. Returns how many were still held.
pub async fn release(pool: &PgPool, jobs: &[(i64, Uuid)]) -> sqlx::Result<u64> {
    let (ids, tokens) = split(jobs);
    let released = sqlx::query!(
        r#"WITH held AS (
               SELECT jobs.id FROM jobs JOIN UNNEST($1::bigint[], $2::uuid[]) AS mine (id, token) USING (id, token)
               ORDER BY jobs.id FOR UPDATE OF jobs
           )
           UPDATE jobs SET token = NULL, run_at = now(), attempt = GREATEST(attempt - 1, 0) FROM held WHERE jobs.id = held.id"#,
        &ids,
        &tokens,
    )
    .execute(pool)
    .await?;
    Ok(released.rows_affected())
}

/// A job whose worker crashed or was cut off, so that its lease expired.
#[derive(Debug)]
pub struct Expired {
    pub id: i64,
    pub kind: String,
    pub attempt: i32,
    pub dead: bool,
}

/// Fails the jobs whose lease has expired. They wait a random part of their backoff. After their last attempt they are
/// dead, so that a job that kills its process does not do so forever.
pub async fn expire(pool: &PgPool) -> sqlx::Result<Vec<Expired>> {
    sqlx::query_as!(
        Expired,
        r#"WITH lost AS (
               SELECT id FROM jobs WHERE token IS NOT NULL AND run_at < now() ORDER BY run_at LIMIT 1000 FOR UPDATE SKIP LOCKED
           )
           UPDATE jobs SET token = NULL, last_error = 'the worker was lost before the job ended',
               run_at = now() + random() * LEAST(power(2, LEAST(attempt, 12)), 3600) * interval '1 second',
               dead_at = CASE WHEN attempt >= max_attempts THEN now() END
           FROM lost WHERE jobs.id = lost.id
           RETURNING jobs.id, kind, attempt, dead_at IS NOT NULL AS "dead!""#
    )
    .fetch_all(pool)
    .await
}

/// The kinds of waiting jobs that are not among `kinds`. The query jumps from kind to kind in the index, so a million
/// jobs of one kind cost as much as one.
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

purge!(purge_dead, "jobs", "dead_at");

fn split(jobs: &[(i64, Uuid)]) -> (Vec<i64>, Vec<Uuid>) {
    jobs.iter().copied().unzip()
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
