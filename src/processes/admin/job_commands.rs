//! `admin jobs …` and `admin schedule`: the queue, dead jobs, and the schedule.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use super::Task;
use super::output::say;
use crate::auth::By;
use crate::auth::audit::{self, Action};
use crate::jobs::Enqueued;
use crate::processes::{clock, worker};
use crate::resources::postgres::Timestamp;

#[derive(Subcommand, Default)]
pub enum Command {
    /// Count the jobs by kind and state, with the age of the oldest
    #[default]
    Count,
    /// List jobs, the oldest first
    List {
        /// Only dead jobs, whose attempts are used up
        #[arg(long)]
        dead: bool,
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one job with all of its fields
    Show { id: i64 },
    /// Retry dead jobs with all of their attempts
    Retry(Which),
    /// Delete jobs that are not running
    Discard(Which),
    /// Enqueue a job, given its kind and its payload as JSON
    Enqueue { kind: String, payload: String },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    id: Option<i64>,
    /// Every dead job
    #[arg(long)]
    dead: bool,
}

/// Runs a command. Returns false if a job could not be retried or discarded.
pub async fn run(task: &Task, command: Command) -> Result<bool> {
    let pool = task.postgres()?;
    match command {
        Command::Count => {
            let rows = sqlx::query_scalar!(
                r#"SELECT jsonb_build_object('kind', kind, 'state', state, 'jobs', count(*),
                       'oldest_s', EXTRACT(epoch FROM now() - min(created_at))::bigint) AS "row!"
                   FROM (SELECT kind, created_at, CASE WHEN dead_at IS NOT NULL THEN 'dead' WHEN token IS NOT NULL THEN 'running'
                             WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END AS state FROM jobs) AS job
                   GROUP BY kind, state ORDER BY kind, state"#
            );
            task.rows(&["kind", "state", "jobs", "oldest_s"], &rows.fetch_all(&*pool).await?);
        }
        Command::List { dead, limit } => {
            let rows = sqlx::query_scalar!(
                r#"SELECT jsonb_build_object('id', id, 'kind', kind, 'state', CASE WHEN dead_at IS NOT NULL THEN 'dead'
                       WHEN token IS NOT NULL THEN 'running' WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END,
                       'attempt', attempt, 'max_attempts', max_attempts, 'run_at', run_at, 'last_error', last_error) AS "row!"
                   FROM jobs WHERE dead_at IS NOT NULL OR NOT $1 ORDER BY id LIMIT $2"#,
                dead,
                i64::from(limit)
            );
            let columns = ["id", "kind", "state", "attempt", "max_attempts", "run_at", "last_error"];
            task.rows(&columns, &rows.fetch_all(&*pool).await?);
        }
        Command::Show { id } => {
            let row = sqlx::query_scalar!(r#"SELECT to_jsonb(jobs) AS "job!" FROM jobs WHERE id = $1"#, id).fetch_optional(&*pool).await?;
            say(serde_json::to_string_pretty(&row.with_context(|| format!("there is no job {id}; it may have completed"))?)?);
        }
        Command::Retry(which) => return each(&pool, which, Action::JOB_RETRIED).await,
        Command::Discard(which) => return each(&pool, which, Action::JOB_DISCARDED).await,
        Command::Enqueue { kind, payload } => {
            let payload = serde_json::from_str(&payload).context("the payload is not JSON")?;
            let mut change = pool.begin().await?;
            match worker::registry().enqueue(&mut change, &kind, payload).await? {
                // A worker finds it at its next poll.
                Enqueued::New(_) => audit::record(&mut *change, Action::JOB_ENQUEUED, None, By::OPERATOR).await?,
                Enqueued::Duplicate => anyhow::bail!("not enqueued: a job with this unique key is already waiting or running"),
            }
            change.commit().await?;
            say("enqueued");
        }
    }
    Ok(true)
}

/// Prints the schedule in UTC: the last tick that enqueued a job, if a clock has ever run, and the next tick.
pub async fn schedule(task: &Task) -> Result<()> {
    let pool = task.postgres()?;
    let mut rows = Vec::new();
    for schedule in clock::schedule()? {
        let last = sqlx::query_scalar!("SELECT last_tick FROM schedules WHERE name = $1", schedule.name).fetch_optional(&*pool).await?;
        let now: Timestamp = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&*pool).await?;
        let next = schedule.cron.find_next_occurrence(&jiff::Timestamp::from(now).to_zoned(TimeZone::UTC), false)?.timestamp();
        rows.push(json!({ "name": schedule.name, "cron": schedule.cron.as_str(), "last_tick": last, "next_tick": next }));
    }
    task.rows(&["name", "cron", "last_tick", "next_tick"], &rows);
    Ok(())
}

/// Retries or discards one job or every dead job, each in its own transaction. Prints the jobs for which that failed.
async fn each(pool: &PgPool, which: Which, action: Action) -> Result<bool> {
    let ids = match which.id {
        Some(id) => vec![id],
        None => sqlx::query_scalar!("SELECT id FROM jobs WHERE dead_at IS NOT NULL ORDER BY id").fetch_all(pool).await?,
    };
    let done = if action == Action::JOB_RETRIED { "retried" } else { "discarded" };
    let mut helped = 0;
    for id in &ids {
        let mut change = pool.begin().await?;
        match one(&mut change, *id, action).await {
            Ok(()) => change.commit().await.map(|()| helped += 1)?,
            Err(e) => say(format_args!("job {id} was not {done}: {e:#}")),
        }
    }
    say(format_args!("{helped} of {} job(s) {done}", ids.len()));
    Ok(helped == ids.len())
}

async fn one(change: &mut PgConnection, id: i64, action: Action) -> Result<()> {
    let (result, unless) = if action == Action::JOB_RETRIED {
        let retry = sqlx::query!("UPDATE jobs SET dead_at = NULL, attempt = 0, run_at = now() WHERE id = $1 AND dead_at IS NOT NULL", id);
        (retry.execute(&mut *change).await, "it is not dead")
    } else {
        let discard = sqlx::query!("DELETE FROM jobs WHERE id = $1 AND token IS NULL", id);
        (discard.execute(&mut *change).await, "it does not exist, or a worker is running it")
    };
    match result {
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("jobs_unique_key") => {
            anyhow::bail!("another job with its unique key is waiting or running; discard this one, or retry it when the other is done");
        }
        result => anyhow::ensure!(result?.rows_affected() == 1, "{unless}"),
    }
    Ok(audit::record(change, action, None, By::OPERATOR).await?)
}
