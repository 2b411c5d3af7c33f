//! `admin migrate`: brings the schema to where this release needs it. Nothing else ever does.

use std::time::Duration;

use anyhow::Context;
use sqlx::Connection;
use tokio::time::sleep;

use super::Task;
use super::output::say;
use crate::resources::postgres;

/// Of all advisory locks in this database, the one of migrations.
const LOCK: i64 = 0x6d69_6772_6174_6531;

/// How soon one that waits for another asks again.
const AGAIN: Duration = Duration::from_millis(200);

/// Prints what is pending, or for a plan its SQL, each file behind a comment with its name; true for a plan, and if nothing is.
pub async fn check(task: &Task, plan: bool) -> anyhow::Result<bool> {
    let pending = postgres::pending_migrations(&*task.postgres()?).await.context("cannot read the schema's version")?;
    for migration in postgres::migrator().iter().filter(|migration| pending.contains(&migration.version)) {
        let (version, what) = (migration.version, &migration.description);
        if plan {
            say(format_args!("-- {version:04}_{}.sql\n{}", what.replace(' ', "_"), migration.sql.as_str()));
        } else {
            say(format_args!("pending: {version:04} {what}"));
        }
    }
    if pending.is_empty() && !plan {
        say("nothing is pending");
    }
    Ok(plan || pending.is_empty())
}

/// Applies what is pending. Of two at once, one waits for the other and then finds nothing to do.
pub async fn apply(task: &Task) -> anyhow::Result<()> {
    let pool = task.postgres()?;
    // A lock that lives as long as its transaction: behind a transaction pooler one of a session would be stranded.
    let mut guard = sqlx::PgConnection::connect_with(&pool.connect_options()).await.context("cannot reach Postgres")?;
    let mut lock = guard.begin().await?;
    // Asked for again and again: who waits inside a statement holds a snapshot, for whose end `CREATE INDEX CONCURRENTLY` of
    // the other would wait, and neither would ever end.
    while !sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "locked!""#, LOCK).fetch_one(&mut *lock).await? {
        sleep(AGAIN).await;
    }

    let pending = postgres::pending_migrations(&*pool).await?;
    postgres::migrator().run(&*pool).await.context("a migration failed; it was rolled back, those before it stand")?;
    lock.commit().await?;
    say(format_args!("{} migration(s) applied, the schema is current", pending.len()));
    Ok(())
}
