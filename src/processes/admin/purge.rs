//! `admin purge`: deletes what is old and no longer needed.

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
    /// How old it must be: 90d, and not less than 1d. Some rows are kept longer, whatever this says
    #[arg(long, value_parser = <Duration as Setting>::parse)]
    before: Duration,
    /// Only count it
    #[arg(long)]
    dry_run: bool,
}

/// Deletes what is older, or counts it, and prints a line for each kind.
pub async fn run(task: &Task, Arguments { before, dry_run }: Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(before >= Duration::from_hours(24), "--before must be 1d or longer");
    let pool = task.postgres()?;
    let mut connection = pool.acquire().await?;
    if !dry_run {
        // First, so that a run that is stopped is in the trail too.
        audit::record(&mut *connection, Action::DATA_PURGED, None, By::OPERATOR).await?;
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} {msg}")?;
    for line in retention::all() {
        // A single statement has a request's time, and this may read all of a table.
        let total = retention::count(&mut *pool.begin().await?, line, before).await?;
        if dry_run {
            say(format_args!("{total} {} would be deleted", line.what));
            continue;
        }
        // Drawn on a terminal only.
        let bar = ProgressBar::new(total).with_style(style.clone()).with_message(line.what);
        let deleted = retention::purge(&mut connection, line, before, |batch| bar.inc(batch)).await;
        let deleted = deleted.with_context(|| format!("{} {} deleted, and no more", bar.position(), line.what))?;
        bar.finish_and_clear();
        say(format_args!("{deleted} {} deleted", line.what));
    }
    Ok(())
}
