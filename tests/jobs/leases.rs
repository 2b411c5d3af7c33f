//! A job belongs to one worker at a time, even if that worker is suspended, is disconnected, or exceeds its lease.

use std::time::Duration;

use app::jobs::queue;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Deploy, Process, Proxy};
use crate::{done, field, insert};

async fn effects(deploy: &Deploy) {
    sqlx::query("CREATE TABLE effects (number integer NOT NULL)").execute(&mut deploy.database().await).await.unwrap();
}

async fn started(worker: &Process, id: i64) {
    worker.logged("the job's start", |line| line["job_id"] == id && line["wait_ms"].is_i64()).await;
}

fn time(line: &Value) -> jiff::Timestamp {
    line["timestamp"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn worker_with_lapsed_lease_cannot_finish_job() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    effects(&deploy).await;
    let id = insert(&mut deploy.database().await, "count", json!({ "number": 1, "millis": 300 }), 10).await;
    let sleeper = deploy.rough_worker();
    started(&sleeper, id).await;
    sleeper.signal(Signal::SIGSTOP);
    crate::expire_leases(&deploy).await;
    let other = deploy.rough_worker();
    other.logged("the job taken back", |line| line["job_id"] == id && line["outcome"] == "expired").await;
    done(&deploy, id).await;

    sleeper.signal(Signal::SIGCONT);
    sleeper.logged("the loss", |line| line["job_id"] == id && (line["outcome"] == "lost" || line["outcome"] == "failed")).await;
    let effects = "SELECT count(*) FROM effects";
    assert_eq!(sqlx::query_scalar::<_, i64>(effects).fetch_one(&mut deploy.database().await).await.unwrap(), 1);
}

#[tokio::test]
async fn stale_lease_token_changes_nothing() {
    let deploy = Deploy::new().await;
    let pool = sqlx::PgPool::connect(&deploy.environment["DATABASE_URL"]).await.unwrap();
    let id = insert(&mut deploy.database().await, "noop", json!({}), 10).await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let noop = [queue::Wanted { kind: "noop".to_owned(), rank: 0, since: None }];
    let claim = async |token, lease| queue::claim(&pool, &noop, 1, token, lease).await.unwrap().len();
    assert_eq!(claim(first, Duration::ZERO).await, 1);
    assert_eq!(queue::expire(&pool).await.unwrap().len(), 1);
    crate::make_due(&deploy).await;
    assert_eq!(claim(second, Duration::from_mins(1)).await, 1);

    let old = [(id, first)];
    assert_eq!(queue::complete_all(&pool, &old).await.unwrap(), Vec::<i64>::new());
    assert_eq!(queue::extend(&pool, &old, Duration::from_hours(1)).await.unwrap(), Vec::<i64>::new());
    assert_eq!(queue::release(&pool, &old).await.unwrap(), 0);
    assert_eq!(queue::fail(&pool, id, first, "late", true).await.unwrap(), queue::Failed::Lost);
    assert!(!queue::complete(&mut pool.acquire().await.unwrap(), id, first).await.unwrap());
    assert_eq!(field(&deploy, id, "token").await.unwrap(), second.to_string());
    assert_eq!(queue::complete_all(&pool, &[(id, second)]).await.unwrap(), [id]);
}

#[tokio::test]
async fn disconnected_worker_stops_jobs_before_lease_expires() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let direct = deploy.environment["DATABASE_URL"].clone();
    let url = deploy.through("DATABASE_URL", &proxy);
    let deploy = deploy.with("DATABASE_URL", url);
    let cut_off = deploy.rough_worker();
    let deploy = deploy.with("DATABASE_URL", direct);
    let id = insert(&mut deploy.database().await, "sleep", json!({ "millis": 60_000 }), 10).await;
    started(&cut_off, id).await;
    proxy.stall();
    let other = deploy.rough_worker();
    let stopped = cut_off.logged("the stop", |line| line["job_id"] == id && line["outcome"] == "lost").await;
    let taken = other.logged("the taking", |line| line["job_id"] == id && line["outcome"] == "expired").await;
    assert!(time(&stopped) < time(&taken), "{stopped} {taken}");

    // It continues when the connection is back.
    proxy.heal();
    let next = insert(&mut deploy.database().await, "noop", json!({}), 10).await;
    done(&deploy, next).await;
}

#[tokio::test]
async fn locked_job_row_lapses_no_other_lease() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    let mut database = deploy.database().await;
    let holder = insert(&mut database, "hold_row", json!({ "millis": 16_000 }), 10).await;
    let neighbour = insert(&mut database, "sleep", json!({ "millis": 13_000 }), 10).await;
    let worker = deploy.rough_worker();
    started(&worker, holder).await;
    let ended = worker.logged("its end", |line| line["job_id"] == neighbour && line["outcome"].is_string()).await;
    assert_eq!((&ended["outcome"], &ended["attempt"]), (&json!("done"), &json!(1)));
}

#[tokio::test]
async fn jobs_holding_all_connections_lapse_no_lease() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s").with("DATABASE_POOL_SIZE", 2);
    let mut database = deploy.database().await;
    for _ in 0..2 {
        insert(&mut database, "hold_row", json!({ "millis": 16_000 }), 10).await;
    }
    let neighbour = insert(&mut database, "sleep", json!({ "millis": 13_000 }), 10).await;
    let worker = deploy.rough_worker();
    let ended = worker.logged("its end", |line| line["job_id"] == neighbour && line["outcome"].is_string()).await;
    assert_eq!((&ended["outcome"], &ended["attempt"]), (&json!("done"), &json!(1)));
}

#[tokio::test]
async fn draining_worker_claims_nothing_and_returns_jobs() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut database = deploy.database().await;
    let long = insert(&mut database, "sleep", json!({ "millis": 60_000 }), 10).await;
    let short = insert(&mut database, "sleep", json!({ "millis": 500 }), 10).await;
    let mut worker = deploy.rough_worker();
    started(&worker, long).await;
    started(&worker, short).await;
    worker.signal(Signal::SIGTERM);
    worker.says("draining").await;
    // By now, a claim that was running when the signal arrived has ended, too.
    worker.logged("the short one's end", |line| line["job_id"] == short && line["outcome"] == "done").await;
    let new = insert(&mut database, "noop", json!({}), 10).await;
    assert_eq!(worker.exit().await.code(), Some(0));
    assert_eq!(field(&deploy, short, "id").await, None, "the short job has finished");
    for id in [long, new] {
        assert_eq!(field(&deploy, id, "attempt || coalesce(token::text, ' free')").await.as_deref(), Some("0 free"));
    }
}
