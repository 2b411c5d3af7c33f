//! `admin migrate`: migrates the schema to the version that this release needs. Nothing else changes the schema.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::{Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr};
use tokio::time::sleep;

use super::Task;
use super::output::say;
use crate::config::{Http, read};
use crate::resources::postgres::{self, Limits};

/// The advisory lock for migrations.
const LOCK: i64 = 0x6d69_6772_6174_6531;

/// How often a waiting `admin migrate` tries to get the lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Prints the pending migrations. For a plan it prints their SQL, each file after a comment with its name. Returns true
/// for a plan and if no migration is pending.
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
        say("no migration is pending");
    }
    Ok(plan || pending.is_empty())
}

/// How long a migration waits for a table. Meanwhile all other statements on the table wait behind it.
const LOCK_TIMEOUT: &str = "5s";

/// Applies the pending migrations and sets the time limits of statements as defaults of the database user. If two run
/// at once, the second waits for the first and then finds nothing to do.
pub async fn apply(task: &Task) -> anyhow::Result<()> {
    let time = read::<Http>(&task.env)?.request_timeout.0;
    let pool = task.postgres()?;
    // A lock of a transaction, because a session's lock would be left behind by a pooler in transaction mode.
    let mut guard = sqlx::PgConnection::connect_with(&pool.connect_options()).await.context("cannot reach Postgres")?;
    let mut lock = guard.begin_with("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0").await?;
    // Tries the lock repeatedly instead of waiting in a statement. A waiting statement would hold a snapshot, `CREATE
    // INDEX CONCURRENTLY` in the other process would wait for that snapshot, and neither would ever end.
    while !sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "locked!""#, LOCK).fetch_one(&mut *lock).await? {
        sleep(LOCK_RETRY_INTERVAL).await;
    }

    let pending = postgres::pending_migrations(&*pool).await?;
    let mut connection = pool.acquire().await?;
    // The limits are meant for requests. A migration in a transaction lifts them for that transaction, which works
    // behind a pooler. A migration without a transaction needs them lifted for the session, because `CREATE INDEX
    // CONCURRENTLY` waits for every open transaction.
    connection.execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
    let applied = migrator().run(&mut *connection).await;
    connection.execute("RESET statement_timeout; RESET lock_timeout").await?;
    applied.with_context(|| {
        format!(
            "a migration failed and was rolled back; the earlier ones are applied. If it waited {LOCK_TIMEOUT} for a table in use, run it again. A migration without a transaction may leave an invalid index: migrations/README.md says what to do"
        )
    })?;
    set_limits(&mut lock, Limits::within(time)).await.context("cannot set the time limits of this user's statements")?;
    lock.commit().await?;
    say(format_args!("{} migration(s) applied; the schema is current", pending.len()));
    Ok(())
}

/// The migrations, each with its own time limits in its transaction. Their checksums stay those of the files.
fn migrator() -> Migrator {
    let mut migrator = postgres::migrator();
    let limited = |migration: &Migration| {
        if migration.no_tx {
            return migration.clone();
        }
        let sql = format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n{}", migration.sql.as_str());
        Migration { sql: AssertSqlSafe(sql).into_sql_str(), ..migration.clone() }
    };
    migrator.migrations = migrator.migrations.iter().map(limited).collect();
    migrator
}

/// Sets the limits of single statements as defaults of this user in this database. A pooler in transaction mode drops
/// or refuses settings of a session.
async fn set_limits(connection: &mut PgConnection, limits: Limits) -> sqlx::Result<()> {
    for (name, millis) in limits.settings() {
        let set = format!(
            "DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET {name} = {millis}', current_database()); END $$"
        );
        connection.execute(AssertSqlSafe(set)).await?;
    }
    Ok(())
}
