//! `worker --until-idle` runs what is due and exits, for platforms that run a worker as a scheduled job.

use serde_json::json;

use crate::support::{Deploy, Proxy};
use crate::{field, insert};

#[tokio::test]
async fn worker_exits_when_no_job_is_due() {
    let deploy = Deploy::new().await.with("WORKER_CONCURRENCY", 2);
    let mut database = deploy.database().await;
    let mut due = Vec::new();
    for _ in 0..20 {
        due.push(insert(&mut database, "sleep", json!({ "millis": 100 }), 1).await);
    }
    let later = insert(&mut database, "noop", json!({}), 1).await;
    sqlx::query("UPDATE jobs SET run_at = now() + interval '1 hour' WHERE id = $1").bind(later).execute(&mut database).await.unwrap();
    let unknown = insert(&mut database, "of_another_release", json!({}), 1).await;
    let mut worker = deploy.rough_worker_with(&["--until-idle"]);
    assert_eq!(worker.exit().await.code(), Some(0), "{:#?}", worker.lines());
    for id in due {
        assert_eq!(field(&deploy, id, "kind").await, None, "every due job has run");
    }
    for id in [later, unknown] {
        assert_eq!(field(&deploy, id, "attempt").await.as_deref(), Some("0"));
    }
    // The runner ends in the moment in which it begins the drain. The drain has its time limit then, too.
    for _ in 0..10 {
        let mut worker = deploy.rough_worker_with(&["--until-idle"]);
        assert_eq!(worker.exit().await.code(), Some(0));
        worker.says("draining for at most").await;
    }
}

#[tokio::test]
async fn worker_with_a_running_job_is_not_idle() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let long = insert(&mut database, "sleep", json!({ "millis": 4_000 }), 1).await;
    // Due while the other one still runs, as a job that it enqueued would be.
    let next = insert(&mut database, "noop", json!({}), 1).await;
    sqlx::query("UPDATE jobs SET run_at = now() + interval '3 seconds' WHERE id = $1").bind(next).execute(&mut database).await.unwrap();
    let mut worker = deploy.rough_worker_with(&["--until-idle"]);
    assert_eq!(worker.exit().await.code(), Some(0), "{:#?}", worker.lines());
    for id in [long, next] {
        assert_eq!(field(&deploy, id, "kind").await, None, "both have run");
    }
}

#[tokio::test]
async fn worker_without_postgres_is_not_idle() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let through = deploy.clone_with("DATABASE_URL", deploy.through("DATABASE_URL", &proxy));
    let id = insert(&mut deploy.database().await, "noop", json!({}), 1).await;
    proxy.cut();
    let mut worker = through.rough_worker_with(&["--until-idle"]);
    worker.says("cannot claim jobs").await;
    proxy.heal();
    assert_eq!(worker.exit().await.code(), Some(0));
    assert_eq!(field(&deploy, id, "kind").await, None, "it waited for Postgres, and ran the job");
}

#[tokio::test]
async fn worker_refuses_unknown_arguments() {
    let deploy = Deploy::new().await;
    for arguments in [&["--until-idl"][..], &["--until-idle", "now"], &["help"]] {
        let mut worker = deploy.rough_worker_with(arguments);
        assert_eq!(worker.exit().await.code(), Some(64));
        assert!(worker.errors().iter().any(|line| line == "usage: worker [--until-idle]"), "{:?}", worker.errors());
        assert!(worker.lines().is_empty(), "it has not started");
    }
}
