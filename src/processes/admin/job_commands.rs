//! `admin jobs …` and `admin schedule`: the queue, dead jobs, and the schedule.

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::Task;
use super::output::say;
use crate::auth::By;
use crate::auth::audit::{self, Action};
use crate::jobs::schedule::ticks;
use crate::jobs::{Enqueued, operator};
use crate::processes::{clock, worker};

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
            task.rows(&["kind", "state", "jobs", "oldest_s"], &json(operator::count(&*pool).await?)?);
        }
        Command::List { dead, limit } => {
            let columns = ["id", "kind", "state", "attempt", "max_attempts", "run_at", "last_error"];
            task.rows(&columns, &json(operator::list(&*pool, dead, 0, limit.into()).await?)?);
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
    let ticks = ticks(&*task.postgres()?, &clock::schedule()?).await?;
    task.rows(&["name", "cron", "last_tick", "next_tick"], &json(ticks)?);
    Ok(())
}

fn json(rows: Vec<impl Serialize>) -> Result<Vec<Value>> {
    Ok(rows.into_iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
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
    if action == Action::JOB_RETRIED {
        operator::retry(change, id).await?;
    } else {
        operator::discard(change, id).await?;
    }
    Ok(audit::record(change, action, None, By::OPERATOR).await?)
}
