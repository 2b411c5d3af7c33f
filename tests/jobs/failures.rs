//! Errors, panics, timeouts and crashes of jobs: each is retried after a backoff, and marked dead after the last attempt.

use serde_json::json;

use crate::support::{Deploy, eventually};
use crate::{dead, done, expire_leases, field, insert, make_due};

#[tokio::test]
async fn failed_jobs_are_retried_then_marked_dead() {
    let deploy = Deploy::new().await;
    let worker = deploy.rough_worker();
    let mut database = deploy.database().await;
    for (kind, payload, reason) in [
        ("fail", json!({}), "an error of its own"),
        ("panic", json!({}), "on purpose"),
        ("too_slow", json!({}), "took longer than 100ms"),
        ("sleep", json!({ "millis": "soon" }), "the payload does not parse"),
    ] {
        let id = insert(&mut database, kind, payload, 2).await;
        worker.logged("a first failure", |line| line["job_id"] == id && line["outcome"] == "failed" && line["attempt"] == 1).await;
        // The backoff is random, between one and two seconds.
        let delay = field(&deploy, id, "EXTRACT(epoch FROM run_at - now())").await.unwrap().parse::<f64>().unwrap();
        assert!(delay <= 2.0, "{delay}");
        make_due(&deploy).await;
        dead(&deploy, id).await;
        let line = worker.logged("its death", |line| line["job_id"] == id && line["outcome"] == "dead").await;
        assert_eq!((&line["level"], &line["attempt"]), (&json!("ERROR"), &json!(2)), "{line}");
        assert!(field(&deploy, id, "last_error").await.unwrap().contains(reason));
    }
    // The worker still runs jobs.
    let id = insert(&mut database, "noop", json!({}), 1).await;
    done(&deploy, id).await;
}

#[tokio::test]
async fn retry_backoff_doubles_with_jitter() {
    let deploy = Deploy::new().await;
    let _worker = deploy.rough_worker();
    let mut database = deploy.database().await;
    for attempt in [0, 3] {
        let jobs = "INSERT INTO jobs (kind, payload, max_attempts, attempt) SELECT 'fail', '{}', 10, $1 FROM generate_series(1, 20)";
        sqlx::query(jobs).bind(attempt).execute(&mut database).await.unwrap();
    }
    let delays = async |attempt: i32| {
        let query = "SELECT EXTRACT(epoch FROM run_at - now())::float8 FROM jobs WHERE attempt = $1 AND token IS NULL ORDER BY run_at";
        sqlx::query_scalar::<_, f64>(query).bind(attempt).fetch_all(&mut deploy.database().await).await.unwrap()
    };
    let later = eventually("twenty failures", async || Some(delays(4).await).filter(|delays| delays.len() == 20)).await;
    assert!(later.iter().all(|delay| (6.0..=16.0).contains(delay)), "8 to 16 s, less the time that has passed: {later:?}");
    assert!(later[19] - later[0] > 1.0, "without jitter all would retry at once: {later:?}");
}

#[tokio::test]
async fn permanent_failure_is_never_retried() {
    let deploy = Deploy::new().await;
    let _worker = deploy.rough_worker();
    let id = insert(&mut deploy.database().await, "give_up", json!({}), 10).await;
    dead(&deploy, id).await;
    assert_eq!(field(&deploy, id, "attempt || ' ' || last_error").await.as_deref(), Some("1 no retry can help"));
}

/// The other jobs of its worker finish.
#[tokio::test]
async fn job_that_crashes_workers_ends_dead() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    let mut database = deploy.database().await;
    let poison = insert(&mut database, "abort", json!({}), 3).await;
    let mut neighbours = Vec::new();
    for _ in 0..10 {
        neighbours.push(insert(&mut database, "sleep", json!({ "millis": 50 }), 10).await);
    }
    // The test restarts the worker after each crash, as a platform does.
    while field(&deploy, poison, "dead_at IS NOT NULL").await.unwrap() == "false" {
        let mut worker = deploy.rough_worker();
        tokio::select! {
            _ = worker.exit() => expire_leases(&deploy).await,
            () = dead(&deploy, poison) => {}
        }
    }
    assert_eq!(field(&deploy, poison, "attempt").await.as_deref(), Some("3"));
    let _worker = deploy.rough_worker();
    for id in neighbours {
        done(&deploy, id).await;
    }
}

#[tokio::test]
async fn fully_busy_worker_stays_ready() {
    let deploy = Deploy::new().await.with("WORKER_CONCURRENCY", 1);
    let id = insert(&mut deploy.database().await, "sleep", json!({ "millis": 7000 }), 10).await;
    let worker = deploy.rough_worker();
    done(&deploy, id).await;
    assert!(!worker.lines().iter().any(|line| line.contains("not ready: claims")), "{:#?}", worker.lines());
}
