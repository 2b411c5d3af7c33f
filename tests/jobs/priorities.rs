//! Jobs that users wait for run first, and a worker may be restricted to some kinds.

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::support::{Deploy, eventually};
use crate::{done, field, insert};

/// Fills the queue with overdue jobs of a kind.
async fn fill(database: &mut PgConnection, kind: &str, count: i32) {
    let jobs = "INSERT INTO jobs (kind, payload, max_attempts, run_at)
        SELECT $1, jsonb_build_object('millis', 50), 1, now() - interval '1 hour' FROM generate_series(1, $2)";
    let mut transaction = database.begin().await.unwrap();
    // On a busy machine this takes longer than a statement of the service may.
    sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.unwrap();
    sqlx::query(jobs).bind(kind).bind(count).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    // Autovacuum does this soon after so many inserts.
    sqlx::query("ANALYZE jobs").execute(database).await.unwrap();
}

#[tokio::test]
async fn awaited_job_overtakes_a_backlog() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    fill(&mut database, "bulk", 100_000).await;
    fill(&mut database, "sleep", 1_000).await;
    let worker = deploy.rough_worker();
    worker.logged("a job of the backlog", |line| line["job_kind"] == "sleep" && line["outcome"] == "done").await;
    for _ in 0..10 {
        let id = insert(&mut database, "awaited", json!({}), 1).await;
        done(&deploy, id).await;
        let start = worker.logged("its start", |line| line["job_id"] == id && line["wait_ms"].is_i64()).await;
        assert!(start["wait_ms"].as_i64().unwrap() < 1_000, "{start}");
    }
    let left = |kind: &'static str| sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE kind = $1").bind(kind);
    assert_eq!(left("bulk").fetch_one(&mut database).await.unwrap(), 100_000, "jobs of normal priority run before bulk jobs");
    assert!(left("sleep").fetch_one(&mut database).await.unwrap() > 0, "the backlog never emptied");
}

#[tokio::test]
async fn worker_runs_only_its_configured_kinds() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let (bulk, noop) = (insert(&mut database, "bulk", json!({ "millis": 1 }), 1).await, insert(&mut database, "noop", json!({}), 1).await);
    let _kept = deploy.clone_with("WORKER_KINDS", "awaited, noop").rough_worker();
    done(&deploy, noop).await;
    for _ in 0..3 {
        let awaited = insert(&mut database, "awaited", json!({}), 1).await;
        done(&deploy, awaited).await;
    }
    assert_eq!(field(&deploy, bulk, "attempt").await.as_deref(), Some("0"));
    let _other = deploy.clone_with("WORKER_KINDS", "bulk").rough_worker();
    done(&deploy, bulk).await;

    let mut wrong = deploy.clone_with("WORKER_KINDS", "noop,nonsense").rough_worker();
    assert_eq!(wrong.exit().await.code(), Some(78));
    let error = eventually("the reason", async || wrong.errors().into_iter().find(|line| line.contains("WORKER_KINDS")));
    let error = error.await;
    assert!(error.contains("nonsense, which is not a kind"), "{error}");
}
