//! Workers are killed and Postgres crashes. Every job still takes effect exactly once.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::PgConnection;

use crate::support::postgres::Postgres;
use crate::support::{Deploy, eventually};

/// Enqueues jobs that each insert one row.
async fn enqueue(database: &mut PgConnection, count: i32) {
    sqlx::query("CREATE TABLE effects (number integer NOT NULL)").execute(&mut *database).await.unwrap();
    let jobs = "INSERT INTO jobs (kind, payload, max_attempts)
        SELECT 'count', jsonb_build_object('number', number, 'millis', (random() * 300)::int), 1000 FROM generate_series(1, $1) AS number";
    sqlx::query(jobs).bind(count).execute(database).await.unwrap();
}

async fn left(deploy: &Deploy) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap()
}

async fn each_once(deploy: &Deploy, count: i64) {
    eventually("an empty queue", async || (left(deploy).await == 0).then_some(())).await;
    let effects = "SELECT count(*), count(DISTINCT number) FROM effects";
    let effects: (i64, i64) = sqlx::query_as(effects).fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(effects, (count, count), "each job must take effect exactly once");
}

#[tokio::test]
async fn fifty_worker_kills_lose_no_job() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    enqueue(&mut deploy.database().await, 2000).await;
    let mut workers: Vec<_> = (0..3).map(|_| deploy.rough_worker()).collect();
    // A linear congruential generator, so that a run can be reproduced from its seed.
    let mut random = seed();
    println!("seed {random}");
    let mut next = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit
    };
    let mut kills = 0;
    while kills < 50 || left(&deploy).await > 600 {
        tokio::time::sleep(Duration::from_millis(50 + next(200))).await;
        let index = usize::try_from(next(3)).unwrap();
        workers[index].signal(Signal::SIGKILL);
        workers[index].exit().await;
        workers[index] = deploy.rough_worker();
        kills += 1;
        assert!(kills < 500, "the queue does not shrink");
    }
    each_once(&deploy, 2000).await;
}

fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0)
}

#[tokio::test]
async fn workers_and_clock_survive_postgres_crashes() {
    let Some(mut postgres) = Postgres::start().await else { return };
    let deploy = Deploy::unmigrated().await.with("DATABASE_URL", format!("{}/postgres", postgres.url)).with("JOB_LEASE", "10s");
    assert!(deploy.admin(&["migrate"]).await.status.success());
    enqueue(&mut deploy.database().await, 500).await;
    let (mut first, mut second, mut clock) = (deploy.rough_worker(), deploy.rough_worker(), deploy.start("clock"));
    clock.says("is new").await;
    for _ in 0..2 {
        let before = left(&deploy).await;
        eventually("some progress", async || (left(&deploy).await < before - 30).then_some(())).await;
        postgres.crash().await;
    }
    each_once(&deploy, 500).await;

    sqlx::query("UPDATE schedules SET last_tick = last_tick - interval '3 days'").execute(&mut deploy.database().await).await.unwrap();
    clock.says("schedule purge-expired ticked").await;
    for process in [&mut first, &mut second, &mut clock] {
        assert_eq!(process.terminate().await, Some(0));
    }
}
