//! `admin purge`: deletes old data that is no longer needed.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Task;
use super::output::say;
use crate::auth::By;
use crate::auth::audit::{self, Action};
use crate::config::Setting;
use crate::processes::retention;

#[derive(Args)]
pub struct Arguments {
    /// Minimum age of the data to delete, such as 90d; at least 1d. Some rows are always kept longer
    #[arg(long, value_parser = <Duration as Setting>::parse)]
    before: Duration,
    /// Only count the rows
    #[arg(long)]
    dry_run: bool,
}

/// Deletes or counts the rows that are older, and prints a line for each kind.
pub async fn run(task: &Task, Arguments { before, dry_run }: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(before >= Duration::from_hours(24), "--before must be 1d or longer");
    let pool = task.postgres()?;
    let mut connection = pool.acquire().await?;
    if !dry_run {
        // Recorded first, so that an interrupted run is in the audit trail too.
        audit::record(&mut *connection, Action::DATA_PURGED, None, By::OPERATOR).await?;
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} {msg}")?;
    for line in retention::all() {
        // In a transaction, which has a longer limit than a single statement, because this may read a whole table.
        let total = retention::count(&mut *pool.begin().await?, line, before).await?;
        if dry_run {
            say(format_args!("{total} {} would be deleted", line.what));
            continue;
        }
        // The bar is drawn only on a terminal.
        let bar = ProgressBar::new(total).with_style(style.clone()).with_message(line.what);
        let deleted = retention::purge(&mut connection, line, before, |batch| bar.inc(batch)).await;
        let deleted = deleted.with_context(|| format!("stopped after {} {} were deleted", bar.position(), line.what))?;
        bar.finish_and_clear();
        say(format_args!("{deleted} {} deleted", line.what));
    }
    Ok(())
}
