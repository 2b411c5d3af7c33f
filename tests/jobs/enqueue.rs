//! Data and its job commit together. A unique key admits one job. A job starts when it is due.

use app::jobs::{Enqueued, Job, JobContext, JobError, enqueue};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Connection;

use crate::support::person::Person;
use crate::support::{Deploy, eventually};
use crate::{done, field, insert};

/// A job with a unique key, which it holds until it is done or dead.
#[derive(Serialize, Deserialize)]
struct Keyed {}

impl Job for Keyed {
    const KIND: &'static str = "keyed";

    fn unique_key(&self) -> Option<String> {
        Some("the key".to_owned())
    }

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

async fn count(deploy: &Deploy, table: &'static str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(query).fetch_one(&mut deploy.database().await).await.unwrap()
}

#[tokio::test]
async fn rolled_back_transaction_enqueues_no_job() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let mut transaction = database.begin().await.unwrap();
    let enqueued = enqueue(&mut transaction, &Keyed {}).await.unwrap();
    assert!(matches!(enqueued, Enqueued::New(_)));
    transaction.rollback().await.unwrap();
    assert_eq!(count(&deploy, "jobs").await, 0);
}

#[tokio::test]
async fn web_killed_before_enqueue_stores_nothing() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let mut database = deploy.database().await;
    let mut lock = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let ada = Person::stranger(&web);
    let body = json!({ "email": ada.email, "password": "correct horse battery staple" });
    let signing_up = tokio::spawn(ada.request(reqwest::Method::POST, "/accounts").json(&body).send());
    eventually("the account's row, and a wait for the queue", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'INSERT INTO jobs%' AND wait_event_type = 'Lock'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut deploy.database().await).await.unwrap() > 0).then_some(())
    })
    .await;
    web.process.signal(Signal::SIGKILL);
    web.process.exit().await;
    assert!(signing_up.await.unwrap().is_err());
    lock.rollback().await.unwrap();
    eventually("the end of the transaction", async || {
        let open =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'web' AND state <> 'idle'";
        (sqlx::query_scalar::<_, i64>(open).fetch_one(&mut deploy.database().await).await.unwrap() == 0).then_some(())
    })
    .await;
    assert_eq!((count(&deploy, "accounts").await, count(&deploy, "jobs").await), (0, 0));
}

#[tokio::test]
async fn unique_key_admits_one_live_job() {
    let deploy = Deploy::new().await;
    let race = async || {
        let mut connections = Vec::new();
        for _ in 0..20 {
            connections.push(deploy.database().await);
        }
        let tasks =
            connections.into_iter().map(|mut connection| tokio::spawn(async move { enqueue(&mut connection, &Keyed {}).await.unwrap() }));
        let mut new = 0;
        for task in tasks {
            new += i32::from(matches!(task.await.unwrap(), Enqueued::New(_)));
        }
        new
    };
    assert_eq!(race().await, 1);
    sqlx::query("UPDATE jobs SET dead_at = now()").execute(&mut deploy.database().await).await.unwrap();
    assert_eq!(race().await, 1, "a dead job does not hold its key");
    assert_eq!(count(&deploy, "jobs").await, 2);
}

#[derive(Serialize, Deserialize)]
struct Large {
    text: String,
}

impl Job for Large {
    const KIND: &'static str = "large";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

#[tokio::test]
async fn payload_over_64_kib_is_rejected() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let job = |bytes| Large { text: "x".repeat(bytes) };
    assert!(matches!(enqueue(&mut database, &job(64 * 1024 - 11)).await, Ok(Enqueued::New(_))));
    let refused = enqueue(&mut database, &job(64 * 1024 - 10)).await.unwrap_err().to_string();
    assert!(refused.contains("store the data and pass its id"), "{refused}");
    assert_eq!(count(&deploy, "jobs").await, 1);
}

#[tokio::test]
async fn job_starts_when_due_and_not_before() {
    let deploy = Deploy::new().await;
    let worker = deploy.rough_worker();
    let mut database = deploy.database().await;
    let id = sqlx::query_scalar::<_, i64>(
        "INSERT INTO jobs (kind, payload, max_attempts, run_at) VALUES ('noop', '{}', 1, now() + interval '1500 ms') RETURNING id",
    );
    let id = id.fetch_one(&mut database).await.unwrap();
    done(&deploy, id).await;
    let start = worker.logged("the start", |line| line["job_id"] == id && line["wait_ms"].is_i64()).await;
    // How long after its due time the job was claimed, by the database's clock.
    assert!((0..1000).contains(&start["wait_ms"].as_i64().unwrap()), "{start}");
}

/// Its transaction commits after later jobs were done.
#[tokio::test]
async fn late_committed_job_is_still_found() {
    let deploy = Deploy::new().await;
    let _worker = deploy.rough_worker();
    let (mut slow, mut quick) = (deploy.database().await, deploy.database().await);
    let mut transaction = slow.begin().await.unwrap();
    let late = insert(&mut transaction, "noop", json!({}), 1).await;
    for _ in 0..3 {
        let early = insert(&mut quick, "noop", json!({}), 1).await;
        done(&deploy, early).await;
    }
    transaction.commit().await.unwrap();
    done(&deploy, late).await;
}

#[tokio::test]
async fn idle_worker_polls_twice_a_second() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "info,sqlx::query=debug");
    let mut worker = deploy.rough_worker();
    let id = insert(&mut deploy.database().await, "noop", json!({}), 1).await;
    done(&deploy, id).await;
    // The test measures time: two seconds hold four polls.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    worker.terminate().await;
    let claims =
        worker.log().into_iter().filter(|line| line["target"] == "sqlx::query" && line["summary"].to_string().contains("WITH due")).count();
    assert!((2..20).contains(&claims), "{claims} claims in two seconds");
}

#[tokio::test]
async fn unknown_job_kind_waits_and_is_reported() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    let id = insert(&mut database, "noop", json!({}), 1).await;
    let old = deploy.start("worker");
    old.says("does not know the kind noop").await;
    assert_eq!(field(&deploy, id, "attempt").await.as_deref(), Some("0"));
    let _new = deploy.rough_worker();
    done(&deploy, id).await;
}

#[tokio::test]
async fn jobs_of_unknown_kind_slow_no_claim() {
    let deploy = Deploy::new().await;
    let mut database = deploy.database().await;
    sqlx::query("INSERT INTO jobs (kind, payload, max_attempts, run_at) SELECT 'unknown', '{}', 1, now() - interval '1 hour' FROM generate_series(1, 100000)")
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("SELECT pg_stat_reset()").execute(&mut database).await.unwrap();
    let mut worker = deploy.rough_worker();
    let mut last = 0;
    for _ in 0..20 {
        last = insert(&mut database, "noop", json!({}), 1).await;
    }
    done(&deploy, last).await;
    worker.terminate().await;
    // A backend reports its statistics when it exits, at the latest.
    let read = "SELECT (SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'jobs')::bigint";
    let rows = eventually("the counts", async || {
        let rows = sqlx::query_scalar::<_, i64>(read).fetch_one(&mut deploy.database().await).await.unwrap();
        (rows > 0).then_some(rows)
    })
    .await;
    assert!(rows < 5_000, "{rows} rows were read");
}
