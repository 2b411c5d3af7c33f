//! The operator's side of the queue, in SQL: count and list jobs, retry the dead ones, discard those that do not run.
//!
//! Unless noted, errors are `sqlx::Error`: the database is unreachable.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor};
use utoipa::ToSchema;

use crate::resources::postgres::Timestamp;

/// How many jobs of a kind are in one state.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JobCount {
    pub kind: String,
    /// `ready`, `scheduled` for later, `running` or `dead`.
    pub state: String,
    pub jobs: i64,
    /// For how many seconds the first of them has been due. Negative if it is not due yet, or while it runs.
    pub late_s: i64,
    /// The age of the oldest, in seconds.
    pub oldest_s: i64,
}

/// A job as operators see it, without its payload.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListedJob {
    pub id: i64,
    pub kind: String,
    /// `ready`, `scheduled` for later, `running` or `dead`.
    pub state: String,
    /// How many times it has been started.
    pub attempt: i32,
    pub max_attempts: i32,
    /// When it is or was due. While it runs, when its lease ends.
    pub run_at: Timestamp,
    pub last_error: Option<String>,
}

/// Why a job was neither retried nor discarded.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it does not exist; it may have completed")]
    Missing,
    #[error("it is not dead")]
    NotDead,
    #[error("a worker is running it")]
    Running,
    #[error("another job with its unique key is waiting or running; discard this one, or retry it when the other is done")]
    KeyTaken,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A query that names the state of each job between its parts.
macro_rules! with_state {
    ($type:ty, $before:literal, [$($after:literal),+] $(, $argument:expr)*) => {
        sqlx::query_as!(
            $type,
            $before
                + " CASE WHEN dead_at IS NOT NULL THEN 'dead' WHEN token IS NOT NULL THEN 'running'"
                + " WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END AS \"state!\""
                $(+ $after)+
            $(, $argument)*
        )
    };
}

/// Lists `$limit` jobs after an id, the oldest first. A condition must fit an index.
macro_rules! list_where {
    ($condition:literal, $after:expr, $limit:expr) => {
        with_state!(
            ListedJob,
            "SELECT id, kind, attempt, max_attempts, run_at, last_error,",
            [" FROM jobs WHERE ", $condition, " AND id > $1 ORDER BY id LIMIT $2"],
            $after,
            $limit
        )
    };
}

/// Counts the whole queue by kind and state. It reads every row, which takes seconds for millions of jobs.
pub async fn count(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<JobCount>> {
    let counted = with_state!(
        JobCount,
        "WITH job AS (SELECT kind, run_at, created_at,",
        [r#" FROM jobs) SELECT kind, "state!", count(*) AS "jobs!", EXTRACT(epoch FROM now() - min(run_at))::bigint AS "late_s!",
                EXTRACT(epoch FROM now() - min(created_at))::bigint AS "oldest_s!" FROM job GROUP BY 1, 2 ORDER BY 1, 2"#]
    );
    counted.fetch_all(executor).await
}

/// Lists jobs after an id, the oldest first: all, or only the dead ones, which have an index of their own.
pub async fn list(executor: impl PgExecutor<'_>, only_dead: bool, after: i64, limit: i64) -> sqlx::Result<Vec<ListedJob>> {
    if only_dead {
        list_where!("dead_at IS NOT NULL", after, limit).fetch_all(executor).await
    } else {
        list_where!("true", after, limit).fetch_all(executor).await
    }
}

/// Gives a dead job all of its attempts again. Workers find it at their next poll.
///
/// # Errors
/// The job is not dead, or its unique key is taken. Roll back.
pub async fn retry(connection: &mut PgConnection, id: i64) -> Result<(), Refused> {
    let retry = sqlx::query!("UPDATE jobs SET dead_at = NULL, attempt = 0, run_at = now() WHERE id = $1 AND dead_at IS NOT NULL", id);
    match retry.execute(&mut *connection).await {
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("jobs_unique_key") => Err(Refused::KeyTaken),
        retried => done_or(retried?.rows_affected(), connection, id, Refused::NotDead).await,
    }
}

/// Deletes a job that no worker is running.
///
/// # Errors
/// A worker is running it. Roll back.
pub async fn discard(connection: &mut PgConnection, id: i64) -> Result<(), Refused> {
    let discarded = sqlx::query!("DELETE FROM jobs WHERE id = $1 AND token IS NULL", id).execute(&mut *connection).await?;
    done_or(discarded.rows_affected(), connection, id, Refused::Running).await
}

/// Refuses if the statement changed nothing, for the given reason if the job exists.
async fn done_or(changed: u64, connection: &mut PgConnection, id: i64, reason: Refused) -> Result<(), Refused> {
    if changed == 1 {
        return Ok(());
    }
    let found = sqlx::query!("SELECT id FROM jobs WHERE id = $1", id).fetch_optional(connection).await?;
    Err(if found.is_some() { reason } else { Refused::Missing })
}
