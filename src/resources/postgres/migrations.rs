//! The schema's migrations.

use std::collections::HashSet;

use sqlx::PgExecutor;
use sqlx::migrate::Migrator;

/// The schema's migrations, which only `admin migrate` applies.
///
/// Applied migrations that this code does not know are no error: after a rollback the schema is ahead of the code.
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    // sqlx's own lock is a session's, which a transaction pooler strands; `admin migrate` holds another.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}

/// The versions of the migrations that this code has and the database has not.
///
/// # Errors
/// Postgres does not answer.
pub async fn pending_migrations(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<i64>> {
    // Not a checked query: on a new database there is no such table yet.
    let applied = sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(executor).await;
    let applied: HashSet<i64> = match applied {
        Ok(versions) => versions.into_iter().collect(),
        Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some(UNDEFINED_TABLE) => HashSet::new(),
        Err(e) => return Err(e),
    };
    Ok(migrator().iter().map(|migration| migration.version).filter(|version| !applied.contains(version)).collect())
}

const UNDEFINED_TABLE: &str = "42P01";
