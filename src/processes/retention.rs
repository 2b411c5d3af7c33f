//! Retention: deletes what is older than it needs to be. The hourly job and `admin purge` share this one function.

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

/// What the core keeps, and for how long.
const CORE: &[Retention] = &[
    Retention { what: "audit events", age: Some(audit::MIN_RETENTION), floor: audit::MIN_RETENTION, purge: audit::purge },
    // The column is the time at which they expire.
    Retention { what: "expired API tokens", age: Some(Duration::ZERO), floor: Duration::ZERO, purge: api_token::purge },
    Retention {
        what: "idempotency keys",
        age: Some(idempotency::KEY_LIFETIME),
        floor: idempotency::KEY_LIFETIME,
        purge: idempotency::purge,
    },
    // An operator looks at them first.
    Retention { what: "dead jobs", age: None, floor: DAY, purge: queue::purge_dead },
];

/// How many rows one transaction deletes: few enough that nobody waits for it.
const BATCH_SIZE: i64 = 1000;

/// Every line of retention: the core's, and those of the features.
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

/// Deletes the same rows in batches, each in a transaction of its own, so it may be stopped at any moment and run again.
/// `on_batch` gets the size of each batch as it is deleted. Returns the number of rows.
///
/// # Errors
/// The database is unreachable. The batches before are deleted.
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

/// Deletes what has reached its age.
#[derive(Debug, Serialize, Deserialize)]
pub struct PurgeExpired {}

impl Job for PurgeExpired {
    const KIND: &'static str = "purge_expired";
    // A first run may find years of rows. What is deleted stays deleted, so a retry goes on from there.
    const TIMEOUT: Duration = Duration::from_mins(10);

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let mut rows = 0;
        for retention in all() {
            if let Some(age) = retention.age {
                rows += purge(&mut *context.postgres.acquire().await?, retention, age, |_| {}).await?;
            }
        }
        info!(rows, "purged {rows} row(s) that had reached their age");
        Ok(())
    }
}
