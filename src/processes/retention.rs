//! Retention: deletes rows that have reached their age. The hourly job and `admin purge` share [`purge`].

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tracing::info;

use crate::app::Retention;
use crate::auth::{api_token, audit};
use crate::features::FEATURES;
use crate::http::idempotency;
use crate::jobs::{Job, JobContext, JobError, queue};
use crate::resources::postgres::Timestamp;

const DAY: Duration = Duration::from_hours(24);

/// The rows of the core, and how long they are kept.
const CORE: &[Retention] = &[
    Retention { what: "audit events", age: Some(audit::MIN_RETENTION), floor: audit::MIN_RETENTION, purge: audit::purge },
    // Their age counts from the time at which they expire.
    Retention { what: "expired API tokens", age: Some(Duration::ZERO), floor: Duration::ZERO, purge: api_token::purge },
    Retention {
        what: "idempotency keys",
        age: Some(idempotency::KEY_LIFETIME),
        floor: idempotency::KEY_LIFETIME,
        purge: idempotency::purge,
    },
    // Not deleted by the hourly job, because an operator should look at them first.
    Retention { what: "dead jobs", age: None, floor: DAY, purge: queue::purge_dead },
];

/// How many rows one transaction deletes. So few rows lock nothing for long.
const BATCH_SIZE: i64 = 1000;

/// Every line of retention, of the core and of the features.
pub fn all() -> impl Iterator<Item = &'static Retention> {
    CORE.iter().chain(FEATURES.iter().flat_map(|feature| feature.retention))
}

/// Counts the rows that are older than `age`, or than the floor if that is more.
///
/// # Errors
/// The database is unreachable.
pub async fn count(connection: &mut PgConnection, retention: &Retention, age: Duration) -> sqlx::Result<u64> {
    let before = before(connection, age.max(retention.floor)).await?;
    Ok((retention.purge)(connection, before, None).await?.unsigned_abs())
}

/// Deletes the same rows in batches. Each batch has its own transaction, so the function may be stopped at any moment
/// and run again. It calls `on_batch` with the size of each deleted batch and returns the number of rows.
///
/// # Errors
/// The database is unreachable. The earlier batches stay deleted.
pub async fn purge(connection: &mut PgConnection, retention: &Retention, age: Duration, on_batch: impl Fn(u64)) -> sqlx::Result<u64> {
    let before = before(connection, age.max(retention.floor)).await?;
    let mut deleted = 0;
    loop {
        let batch = (retention.purge)(connection, before, Some(BATCH_SIZE)).await?;
        on_batch(batch.unsigned_abs());
        deleted += batch.unsigned_abs();
        if batch < BATCH_SIZE {
            return Ok(deleted);
        }
    }
}

async fn before(connection: &mut PgConnection, age: Duration) -> sqlx::Result<Timestamp> {
    let before = sqlx::query_scalar!(r#"SELECT now() - make_interval(secs => $1) AS "before!""#, age.as_secs_f64());
    before.fetch_one(connection).await
}

/// The hourly job that deletes rows that have reached their age.
#[derive(Debug, Serialize, Deserialize)]
pub struct PurgeExpired {}

impl Job for PurgeExpired {
    const KIND: &'static str = "purge_expired";
    // A first run may find years of rows. Deleted batches stay deleted, so a retry continues from there.
    const TIMEOUT: Duration = Duration::from_mins(10);

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let mut rows = 0;
        for retention in all() {
            if let Some(age) = retention.age {
                rows += purge(&mut *context.postgres.acquire().await?, retention, age, |_| {}).await?;
            }
        }
        info!(rows, "purged {rows} expired row(s)");
        Ok(())
    }
}
