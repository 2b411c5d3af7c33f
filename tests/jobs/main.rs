//! The guarantees of the queue, each tested against a fault that could break it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod crashes;
mod enqueue;
mod failures;
mod job_commands;
mod leases;
mod priorities;
mod progress;
mod until_idle;

use serde_json::Value;
use sqlx::PgConnection;

use crate::support::{Deploy, eventually};

/// Enqueues a job of any kind, known or not.
async fn insert(database: &mut PgConnection, kind: &str, payload: Value, max_attempts: i32) -> i64 {
    let id = sqlx::query_scalar("INSERT INTO jobs (kind, payload, max_attempts) VALUES ($1, $2, $3) RETURNING id");
    id.bind(kind).bind(payload).bind(max_attempts).fetch_one(database).await.unwrap()
}

/// A field of a job, or `None` if the job is done.
async fn field(deploy: &Deploy, id: i64, expression: &str) -> Option<String> {
    let query = format!("SELECT ({expression})::text FROM jobs WHERE id = $1");
    let row = sqlx::query_scalar::<_, Option<String>>(sqlx::AssertSqlSafe(query)).bind(id);
    row.fetch_optional(&mut deploy.database().await).await.unwrap().map(Option::unwrap_or_default)
}

/// Waits until a job is done.
async fn done(deploy: &Deploy, id: i64) {
    eventually("the job's end", async || field(deploy, id, "kind").await.is_none().then_some(())).await;
}

/// Waits until a job is dead.
async fn dead(deploy: &Deploy, id: i64) {
    eventually("the job's death", async || (field(deploy, id, "dead_at IS NOT NULL").await? == "true").then_some(())).await;
}

/// Ends the leases of all running jobs, as if their workers had stopped renewing them.
async fn expire_leases(deploy: &Deploy) {
    let query = "UPDATE jobs SET run_at = now() - interval '1 second' WHERE token IS NOT NULL";
    sqlx::query(query).execute(&mut deploy.database().await).await.unwrap();
}

/// Makes waiting jobs due now, so that tests need not wait for their backoff.
async fn make_due(deploy: &Deploy) {
    let query = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND dead_at IS NULL AND run_at > now()";
    sqlx::query(query).execute(&mut deploy.database().await).await.unwrap();
}
