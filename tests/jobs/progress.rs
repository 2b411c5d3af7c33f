//! Long work goes on where it was saved, whatever ends an attempt, and a step that was saved is done once.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Deploy, eventually};
use crate::{dead, done, field, hurry, insert, lapse};

async fn deploy() -> Deploy {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    sqlx::query("CREATE TABLE effects (number integer NOT NULL)").execute(&mut deploy.database().await).await.unwrap();
    deploy
}

/// The steps that were done, in order.
async fn steps(deploy: &Deploy) -> Vec<i32> {
    sqlx::query_scalar("SELECT number FROM effects ORDER BY number").fetch_all(&mut deploy.database().await).await.unwrap()
}

async fn some_steps(deploy: &Deploy, count: usize) {
    eventually("some steps", async || (steps(deploy).await.len() >= count).then_some(())).await;
}

#[tokio::test]
async fn killed_job_goes_on_where_it_saved() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 30, "millis": 30 }), 2).await;
    // More often than it has attempts: it moves on each time.
    for kill in 1..=5 {
        let mut worker = deploy.rough_worker();
        some_steps(&deploy, kill * 4).await;
        worker.signal(Signal::SIGKILL);
        worker.exit().await;
        lapse(&deploy).await;
        let other = deploy.rough_worker();
        other.logged("the job taken back", |line| line["job_id"] == id && line["outcome"] == "expired").await;
        hurry(&deploy).await;
    }
    let _worker = deploy.rough_worker();
    done(&deploy, id).await;
    assert_eq!(steps(&deploy).await, (0..30).collect::<Vec<_>>(), "each step once");
}

#[tokio::test]
async fn draining_worker_puts_a_long_job_down() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 200, "millis": 50 }), 2).await;
    let mut worker = deploy.rough_worker();
    some_steps(&deploy, 3).await;
    assert_eq!(worker.terminate().await, Some(0));
    let put_down = worker.logged("the job put down", |line| line["job_id"] == id && line["outcome"] == "later").await;
    assert!(put_down["run_ms"].as_u64().unwrap() < 8000, "it stops at the next step, not at its end: {put_down}");
    assert_eq!(field(&deploy, id, "attempt || ' ' || (run_at <= now())").await.as_deref(), Some("0 true"));
    let _worker = deploy.rough_worker();
    done(&deploy, id).await;
    assert_eq!(steps(&deploy).await, (0..200).collect::<Vec<_>>(), "each step once");
}

#[tokio::test]
async fn job_that_moves_on_spends_no_attempts() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 6, "millis": 0, "fails": true }), 2).await;
    let worker = deploy.rough_worker();
    eventually("its end", async || {
        hurry(&deploy).await;
        field(&deploy, id, "kind").await.is_none().then_some(())
    })
    .await;
    let failures = worker.lines().iter().filter(|line| line.contains("failed after step")).count();
    assert_eq!((failures, steps(&deploy).await), (5, (0..6).collect()), "more failures than attempts, and each step once");
}

#[tokio::test]
async fn job_that_saves_the_same_place_dies() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 6, "millis": 0, "stuck_at": 3 }), 2).await;
    let _worker = deploy.rough_worker();
    eventually("its death", async || {
        hurry(&deploy).await;
        (field(&deploy, id, "dead_at IS NOT NULL").await? == "true").then_some(())
    })
    .await;
    dead(&deploy, id).await;
    assert_eq!(steps(&deploy).await, [0, 1, 2]);
    assert_eq!(field(&deploy, id, "progress").await.as_deref(), Some("3"), "a person sees where it stands");
}

#[tokio::test]
async fn worker_that_lost_its_lease_saves_nothing() {
    let deploy = deploy().await;
    let id = insert(&mut deploy.database().await, "steps", json!({ "count": 3, "millis": 1500 }), 2).await;
    let worker = deploy.rough_worker();
    worker.logged("the start", |line| line["job_id"] == id).await;
    // Another worker has it, and is further.
    let taken = "UPDATE jobs SET token = gen_random_uuid(), progress = '2', run_at = now() + interval '1 minute' WHERE id = $1";
    sqlx::query(taken).bind(id).execute(&mut deploy.database().await).await.unwrap();
    worker.logged("the loss", |line| line["job_id"] == id && line["outcome"] == "lost").await;
    assert_eq!(field(&deploy, id, "progress").await.as_deref(), Some("2"));
    assert_eq!(steps(&deploy).await, Vec::<i32>::new(), "what belongs to the place is undone with it");
}
