//! `admin run`: changes of the data that ship with the release, each made once.

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;

use super::Task;
use super::output::say;
use crate::app::Script;
use crate::auth::By;
use crate::auth::audit::{self, Action};
use crate::features::FEATURES;

#[derive(Args)]
pub struct Arguments {
    /// The script. Without one, the scripts of this release are listed
    script: Option<String>,
    /// Keep the changes, which takes a `--reason`. Otherwise they are rolled back at the end
    #[arg(long, requires = "script")]
    write: bool,
}

fn scripts() -> impl Iterator<Item = &'static Script> {
    FEATURES.iter().flat_map(|feature| feature.scripts)
}

/// Lists the scripts or runs one.
///
/// # Errors
/// The release has no such script, the reason is missing, or the script failed. Then nothing has changed.
pub async fn run(task: &Task, Arguments { script, write }: Arguments) -> Result<()> {
    let Some(name) = script else { return list(task).await };
    let known = || scripts().map(|script| script.name).collect::<Vec<_>>().join(", ");
    let script = scripts().find(|script| script.name == name);
    let script = script.with_context(|| format!("this release has no script {name}; it has: {}", known()))?;
    let reason = task.reason.as_deref().unwrap_or_default();
    ensure!(!write || !reason.is_empty(), "say why with --reason, for the audit trail");
    let mut transaction = task.postgres()?.begin().await.context("cannot reach Postgres")?;
    // A second run of the same script waits here until the first ends.
    let first = sqlx::query!(
        "INSERT INTO scripts_run (name, changed_rows, reason) VALUES ($1, 0, $2) ON CONFLICT (name) DO NOTHING",
        script.name,
        reason
    );
    if first.execute(&mut *transaction).await?.rows_affected() == 0 {
        say(format_args!("{name} has already run, and nothing was changed; `admin run` shows when and why"));
        return Ok(());
    }
    let rows = (script.run)(&mut transaction).await.with_context(|| format!("{name} failed, and nothing was changed"))?;
    if !write {
        transaction.rollback().await?;
        say(format_args!("{name} would change {rows} row(s); nothing was changed. Add --write and --reason to keep it"));
        return Ok(());
    }
    let changed = i64::try_from(rows)?;
    sqlx::query!("UPDATE scripts_run SET changed_rows = $2 WHERE name = $1", script.name, changed).execute(&mut *transaction).await?;
    audit::record(&mut *transaction, Action::SCRIPT_RAN, None, By::OPERATOR).await?;
    transaction.commit().await?;
    say(format_args!("{name} changed {rows} row(s)"));
    Ok(())
}

async fn list(task: &Task) -> Result<()> {
    let pool = task.postgres()?;
    let ran = sqlx::query!(r#"SELECT name, to_jsonb(scripts_run) AS "run!" FROM scripts_run"#).fetch_all(&*pool).await?;
    let row = |script: &Script| {
        let run = ran.iter().find(|ran| ran.name == script.name).map(|ran| &ran.run);
        let field = |name: &str| run.map(|run| &run[name]);
        let (ran_at, rows, reason) = (field("ran_at"), field("changed_rows"), field("reason"));
        json!({ "script": script.name, "about": script.about, "ran_at": ran_at, "changed_rows": rows, "reason": reason })
    };
    task.rows(&["script", "about", "ran_at", "changed_rows", "reason"], &scripts().map(row).collect::<Vec<_>>());
    Ok(())
}
