//! `admin purge`: removes what is old and of no more use.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures_util::future::BoxFuture;
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgConnection;

use super::Task;
use super::output::say;
use crate::accounts::{audit, audit::Action, mailed_token};
use crate::http::{idempotency, token};
use crate::reminders::reminder;
use crate::{config::Setting, jobs::queue, resources::postgres::Timestamp};

#[derive(Args)]
pub struct Arguments {
    /// How old it must be: 90d, and not less than 1d
    #[arg(long, value_parser = <Duration as Setting>::parse)]
    before: Duration,
    /// Only count it
    #[arg(long)]
    dry_run: bool,
}

type Purge = for<'a> fn(&'a mut PgConnection, Timestamp, Option<i64>) -> BoxFuture<'a, sqlx::Result<i64>>;

/// What grows old.
const OLD: &[(&str, Purge)] = &[
    ("sent reminders", reminder::purge_sent),
    ("audit events", audit::purge),
    ("expired mailed tokens", mailed_token::purge),
    ("expired API tokens", token::purge),
    ("idempotency keys", idempotency::purge),
    ("dead jobs", queue::purge_dead),
];

/// How many rows one transaction deletes: few enough that nobody waits for it.
const BATCH: i64 = 1000;

/// Deletes what is older, a batch at a time, each its own transaction: it may be stopped at any moment and run again.
pub async fn run(task: &Task, Arguments { before, dry_run }: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(before >= Duration::from_hours(24), "--before must be 1d or longer");
    let mut connection = task.postgres()?.acquire().await?;
    let before = sqlx::query_scalar!(r#"SELECT now() - make_interval(secs => $1) AS "before!""#, before.as_secs_f64());
    let before = before.fetch_one(&mut *connection).await?;
    if !dry_run {
        // First, so that a run that is stopped has left its line too.
        audit::record(&mut *connection, Action::DataPurged, None, None).await?;
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} {msg}")?;
    for &(what, purge) in OLD {
        let total = purge(&mut connection, before, None).await?;
        if dry_run {
            say(format_args!("{total} {what} would be deleted"));
            continue;
        }
        // It is drawn on a terminal alone.
        let bar = ProgressBar::new(total.unsigned_abs()).with_style(style.clone()).with_message(what);
        loop {
            let count = purge(&mut connection, before, Some(BATCH)).await;
            let count = count.with_context(|| format!("{} {what} deleted, and no more", bar.position()))?;
            bar.inc(count.unsigned_abs());
            if count < BATCH {
                break;
            }
        }
        bar.finish_and_clear();
        say(format_args!("{} {what} deleted", bar.position()));
    }
    Ok(())
}
