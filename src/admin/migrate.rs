//! `admin migrate`: brings the schema to where this release needs it. Nothing else ever does.

use anyhow::Context;
use sqlx::Connection;

use super::say;
use crate::config;
use crate::resources::postgres;

/// Of all advisory locks in this database, the one of migrations.
const LOCK: i64 = 0x6d69_6772_6174_6531;

/// Prints what is pending; true if nothing is.
pub async fn check(config: &config::Database) -> anyhow::Result<bool> {
    let pool = postgres::attach(config, "admin")?;
    let pending = postgres::pending_migrations(&pool).await.context("cannot read the schema's version")?;
    let migrator = postgres::migrator();
    for migration in migrator.iter().filter(|migration| pending.contains(&migration.version)) {
        say(format_args!("pending: {:04} {}", migration.version, migration.description));
    }
    if pending.is_empty() {
        say("nothing is pending");
    }
    Ok(pending.is_empty())
}

/// Applies what is pending. Of two at once, one waits for the other and then finds nothing to do.
pub async fn apply(config: &config::Database) -> anyhow::Result<()> {
    let options = postgres::options(config, "admin")?;
    // A lock that lives as long as its transaction: behind a transaction pooler one of a session would be stranded.
    let mut guard = sqlx::PgConnection::connect_with(&options).await.context("cannot reach Postgres")?;
    let mut lock = guard.begin().await?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", LOCK).execute(&mut *lock).await?;

    let pool = postgres::attach(config, "admin")?;
    let pending = postgres::pending_migrations(&pool).await?;
    postgres::migrator().run(&pool).await.context("a migration failed; it was rolled back, those before it stand")?;
    lock.commit().await?;
    say(format_args!("{} migration(s) applied, the schema is current", pending.len()));
    Ok(())
}
