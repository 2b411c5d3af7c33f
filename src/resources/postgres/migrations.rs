//! The schema's migrations.

use std::collections::HashSet;

use sqlx::PgExecutor;
use sqlx::migrate::Migrator;

/// The schema's migrations. Only `admin migrate` applies them.
///
/// Applied migrations that this code does not know are not an error, because the schema is ahead of the code after a
/// rollback.
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    // sqlx's lock belongs to a session, which a pooler in transaction mode leaves behind. `admin migrate` holds another
    // lock.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}

/// The versions of the migrations that this code knows and the database has not applied.
///
/// # Errors
/// Postgres is unavailable.
pub async fn pending_migrations(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<i64>> {
    // Not a checked query, because a new database does not have this table yet.
    let applied = sqlx::query_scalar::<_, i64>("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(executor).await;
    let applied: HashSet<i64> = match applied {
        Ok(versions) => versions.into_iter().collect(),
        Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some(UNDEFINED_TABLE) => HashSet::new(),
        Err(e) => return Err(e),
    };
    Ok(migrator().iter().map(|migration| migration.version).filter(|version| !applied.contains(version)).collect())
}

const UNDEFINED_TABLE: &str = "42P01";
