//! `admin jobs`: what waits in the queue, and what to do with jobs that were given up.

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::say;
use crate::config;
use crate::jobs::Enqueued;
use crate::resources::postgres;
use crate::worker;

#[derive(Subcommand, Default)]
pub enum Command {
    /// Count the jobs by kind and state, with the age of the oldest
    #[default]
    Count,
    /// List jobs, the oldest first
    List {
        /// Only those that were given up
        #[arg(long)]
        dead: bool,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show all of one job
    Show { id: i64 },
    /// Give dead jobs all their attempts again
    Retry(Which),
    /// Delete jobs that do not run
    Discard(Which),
    /// Enqueue a job: its kind, and its payload as JSON
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

/// Runs a command; false if one of several jobs could not be helped.
pub async fn run(config: &config::Database, command: Command, json: bool) -> anyhow::Result<bool> {
    let pool = postgres::attach(config, "admin")?;
    match command {
        Command::Count => print(&["kind", "state", "jobs", "oldest_s"], count(&pool).await?, json),
        Command::List { dead, limit } => {
            print(&["id", "kind", "state", "attempt", "max_attempts", "run_at", "last_error"], list(&pool, dead, limit).await?, json);
        }
        Command::Show { id } => {
            let row = sqlx::query_scalar!(r#"SELECT to_jsonb(jobs) AS "job!" FROM jobs WHERE id = $1"#, id).fetch_optional(&pool).await?;
            let job = row.with_context(|| format!("there is no job {id}; it may be done"))?;
            say(if json { job.to_string() } else { serde_json::to_string_pretty(&job)? });
        }
        Command::Retry(which) => return each(&pool, which, "retried", retry).await,
        Command::Discard(which) => return each(&pool, which, "discarded", discard).await,
        Command::Enqueue { kind, payload } => {
            let payload = serde_json::from_str(&payload).context("the payload is no JSON")?;
            let mut connection = pool.acquire().await?;
            match worker::registry().enqueue(&mut connection, &kind, payload).await? {
                // A worker finds it at its next poll.
                Enqueued::New(_) => say("enqueued"),
                Enqueued::Duplicate => anyhow::bail!("not enqueued: a job with its unique key waits or runs already"),
            }
        }
    }
    Ok(true)
}

async fn count(pool: &PgPool) -> sqlx::Result<Vec<Value>> {
    sqlx::query_scalar!(
        r#"SELECT jsonb_build_object('kind', kind, 'state', state, 'jobs', count(*),
               'oldest_s', EXTRACT(epoch FROM now() - min(created_at))::bigint) AS "row!"
           FROM (SELECT kind, created_at, CASE WHEN dead_at IS NOT NULL THEN 'dead' WHEN token IS NOT NULL THEN 'running'
                     WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END AS state FROM jobs) AS job
           GROUP BY kind, state ORDER BY kind, state"#
    )
    .fetch_all(pool)
    .await
}

async fn list(pool: &PgPool, dead: bool, limit: u32) -> sqlx::Result<Vec<Value>> {
    sqlx::query_scalar!(
        r#"SELECT jsonb_build_object('id', id, 'kind', kind, 'state', CASE WHEN dead_at IS NOT NULL THEN 'dead'
               WHEN token IS NOT NULL THEN 'running' WHEN run_at > now() THEN 'scheduled' ELSE 'ready' END,
               'attempt', attempt, 'max_attempts', max_attempts, 'run_at', run_at, 'last_error', last_error) AS "row!"
           FROM jobs WHERE dead_at IS NOT NULL OR NOT $1 ORDER BY id LIMIT $2"#,
        dead,
        i64::from(limit)
    )
    .fetch_all(pool)
    .await
}

/// Does something to one job or to every dead one, each by itself, and tells those that it cannot be done to.
async fn each(pool: &PgPool, which: Which, done: &str, act: impl AsyncFn(&PgPool, i64) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    let ids = match which.id {
        Some(id) => vec![id],
        None => sqlx::query_scalar!("SELECT id FROM jobs WHERE dead_at IS NOT NULL ORDER BY id").fetch_all(pool).await?,
    };
    let mut helped = 0;
    for id in &ids {
        match act(pool, *id).await {
            Ok(()) => helped += 1,
            Err(e) => say(format_args!("job {id} was not {done}: {e:#}")),
        }
    }
    say(format_args!("{helped} of {} job(s) {done}", ids.len()));
    Ok(helped == ids.len())
}

async fn retry(pool: &PgPool, id: i64) -> anyhow::Result<()> {
    let retried = sqlx::query!("UPDATE jobs SET dead_at = NULL, attempt = 0, run_at = now() WHERE id = $1 AND dead_at IS NOT NULL", id);
    match retried.execute(pool).await {
        Ok(result) => anyhow::ensure!(result.rows_affected() == 1, "it is not dead"),
        Err(sqlx::Error::Database(e)) if e.constraint() == Some("jobs_unique_key") => {
            anyhow::bail!("another job with its unique key waits or runs; discard this one, or retry it when the other is done");
        }
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

async fn discard(pool: &PgPool, id: i64) -> anyhow::Result<()> {
    let discarded = sqlx::query!("DELETE FROM jobs WHERE id = $1 AND token IS NULL", id).execute(pool).await?;
    anyhow::ensure!(discarded.rows_affected() == 1, "it is not there, or a worker runs it");
    Ok(())
}

/// Prints rows as a table, or each as a line of JSON.
fn print(columns: &[&str], rows: Vec<Value>, json: bool) {
    if json {
        return rows.iter().for_each(say);
    }
    let text = |row: &Value, column: &str| match &row[column] {
        Value::String(text) => text.lines().next().unwrap_or_default().chars().take(60).collect(),
        Value::Null => String::new(),
        value => value.to_string(),
    };
    let head = json!(columns.iter().map(|column| (*column, column)).collect::<std::collections::BTreeMap<_, _>>());
    let rows: Vec<_> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: &str| rows.iter().map(|row| text(row, column).chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = columns.iter().map(|column| width(column)).collect();
    for row in &rows {
        let cells = columns.iter().zip(&widths).map(|(column, width)| format!("{:<width$}", text(row, column)));
        say(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
