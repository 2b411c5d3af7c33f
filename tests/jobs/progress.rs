//! A job resumes from its saved progress, however an attempt ends, and does each saved step once.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Deploy, eventually};
use crate::{dead, done, expire_leases, field, insert, make_due};

async fn deploy() -> Deploy {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    sqlx::query("CREATE TABLE effects (number integer NOT NULL)").execute(&mut deploy.database().await).await.unwrap();
    deploy
}

/// The finished steps, in order.
async fn steps(deploy: &Deploy) -> Vec<i32> {
    sqlx::query_scalar("SELECT number FROM effects ORDER BY number").fetch_all(&mut deploy.database().await).await.unwrap()
}

async fn some_steps(deploy: &Deploy, count: usize) {
    eventually("some steps", async || (steps(deploy).await.len() >= count).then_some(())).await;
}

#[tokio::test]
async fn killed_job_resumes_from_saved_progress() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 150, "millis": 30 }), 2).await;
    // More kills than the job has attempts, but it makes progress each time.
    for kill in 1..=5 {
        let mut worker = deploy.rough_worker();
        some_steps(&deploy, kill * 4).await;
        worker.signal(Signal::SIGKILL);
        worker.exit().await;
        expire_leases(&deploy).await;
        let other = deploy.rough_worker();
        other.logged("the job taken back", |line| line["job_id"] == id && line["outcome"] == "expired").await;
        make_due(&deploy).await;
    }
    let _worker = deploy.rough_worker();
    done(&deploy, id).await;
    assert_eq!(steps(&deploy).await, (0..150).collect::<Vec<_>>(), "each step once");
}

#[tokio::test]
async fn draining_worker_stops_job_between_steps() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 200, "millis": 50 }), 2).await;
    let mut worker = deploy.rough_worker();
    some_steps(&deploy, 3).await;
    assert_eq!(worker.terminate().await, Some(0));
    let stopped = worker.logged("the stop", |line| line["job_id"] == id && line["outcome"] == "later").await;
    assert!(stopped["run_ms"].as_u64().unwrap() < 8000, "it stops at the next step: {stopped}");
    assert_eq!(field(&deploy, id, "attempt || ' ' || (run_at <= now())").await.as_deref(), Some("0 true"));
    let _worker = deploy.rough_worker();
    done(&deploy, id).await;
    assert_eq!(steps(&deploy).await, (0..200).collect::<Vec<_>>(), "each step once");
}

#[tokio::test]
async fn job_that_makes_progress_keeps_its_attempts() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 6, "millis": 0, "fails": true }), 2).await;
    let worker = deploy.rough_worker();
    eventually("its end", async || {
        make_due(&deploy).await;
        field(&deploy, id, "kind").await.is_none().then_some(())
    })
    .await;
    let failures = worker.lines().iter().filter(|line| line.contains("failed after step")).count();
    assert_eq!((failures, steps(&deploy).await), (5, (0..6).collect()), "more failures than attempts, each step once");
}

#[tokio::test]
async fn job_that_saves_unchanged_progress_dies() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 6, "millis": 0, "stuck_at": 3 }), 2).await;
    let _worker = deploy.rough_worker();
    eventually("its death", async || {
        make_due(&deploy).await;
        (field(&deploy, id, "dead_at IS NOT NULL").await? == "true").then_some(())
    })
    .await;
    dead(&deploy, id).await;
    assert_eq!(steps(&deploy).await, [0, 1, 2]);
    assert_eq!(field(&deploy, id, "progress").await.as_deref(), Some("3"), "the dead job shows its progress");
}

#[tokio::test]
async fn worker_without_lease_saves_no_progress() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 3, "millis": 1500 }), 2).await;
    let worker = deploy.rough_worker();
    worker.logged("the start", |line| line["job_id"] == id).await;
    // As if another worker had claimed it and made more progress.
    let taken = "UPDATE jobs SET token = gen_random_uuid(), progress = '2', run_at = now() + interval '1 minute' WHERE id = $1";
    sqlx::query(taken).bind(id).execute(&mut deploy.database().await).await.unwrap();
    worker.logged("the loss", |line| line["job_id"] == id && line["outcome"] == "lost").await;
    assert_eq!(field(&deploy, id, "progress").await.as_deref(), Some("2"));
    assert_eq!(steps(&deploy).await, Vec::<i32>::new(), "the transaction of the failed save is rolled back");
}
