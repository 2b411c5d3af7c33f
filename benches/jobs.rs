//! `bin/bench jobs`: what a job costs. Absolute figures depend on the machine, so two yardsticks run on the same Postgres: a
//! bare loop that claims 500 and deletes 500 jobs, which no queue can beat, and one that claims and deletes one job at a
//! time, as a naive queue does.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod report;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use app::jobs::{CHANNEL, Job, JobContext, JobError, enqueue, enqueue_many, queue};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use report::{Report, median, spread};

const BURN_DOWN: i32 = 100_000;
const ROUNDS: usize = 3;
const MINUTE: Duration = Duration::from_mins(1);

#[derive(Serialize, Deserialize)]
struct Noop {}

impl Job for Noop {
    const KIND: &'static str = "noop";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let url = std::env::var("DATABASE_URL").expect("run it with bin/bench");
    let pool = PgPool::connect(&url).await.unwrap();
    let mut report = Report::default();

    let (mut ceiling, mut naive, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ceiling.push(bare_loop(&pool, BURN_DOWN, 500).await);
        ours.push(burn_down(&pool, BURN_DOWN, 500).await);
        naive.push(bare_loop(&pool, 5_000, 1).await);
    }
    for (name, rates) in
        [("ceiling, claim 500 delete 500", &ceiling), ("naive, claim 1 delete 1", &naive), ("ours, one worker, 500 at a time", &ours)]
    {
        report.figure(&format!("{name}, jobs/s, median"), format!("{:.0}", median(rates)));
        report.figure("   of three rounds", spread(rates, 0));
    }
    let rate = median(&ours);
    report.reach("ours : ceiling", rate / median(&ceiling), rate >= 0.6 * median(&ceiling), "0.6");
    report.reach("ours : naive", rate / median(&naive), rate >= 8.0 * median(&naive), "8");
    report.figure("ours, one worker, 10 at a time, jobs/s", format!("{:.0}", burn_down(&pool, 20_000, 10).await));

    // Like a nightly dump: a snapshot stays open while jobs are enqueued and completed.
    let mut dump = pool.acquire().await.unwrap();
    sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut *dump).await.unwrap();
    sqlx::query("SELECT count(*) FROM schedules").execute(&mut *dump).await.unwrap();
    let beside_dump = burn_down(&pool, BURN_DOWN, 500).await;
    sqlx::query("COMMIT").execute(&mut *dump).await.unwrap();
    drop(dump);
    report.figure("ours beside an open transaction, jobs/s", format!("{beside_dump:.0}"));
    report.reach("   of the speed without it", beside_dump / rate, beside_dump >= 0.5 * rate, "0.5");

    let (single, batch) = enqueue_rates(&pool).await;
    report.figure("enqueue, one a transaction, jobs/s", format!("{single:.0}"));
    report.figure("enqueue, 1000 a statement, jobs/s", format!("{batch:.0}"));

    let (p50, p99) = pick_up(&pool).await;
    report.reach("pick-up on an idle queue, ms from commit to start, p50", p50, p50 < 10.0, "10");
    report.figure("   p99", format!("{p99:.2}"));

    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        few.push(claim_cost(&pool, 1_000).await);
        many.push(claim_cost(&pool, 1_000_000).await);
    }
    let (few, many) = (median(&few), median(&many));
    report.figure("claim of 10 with 1 k waiting, ms, p50", format!("{few:.3}"));
    report.figure("claim of 10 with 1 M waiting, ms, p50", format!("{many:.3}"));
    report.reach("   1 M : 1 k", many / few, many <= 1.3 * few, "1.3");

    report.finish("jobs");
}

/// Empties the queue and fills it with `count` jobs that do nothing.
async fn fill(pool: &PgPool, count: i32) {
    sqlx::query("TRUNCATE jobs").execute(pool).await.unwrap();
    let jobs = "INSERT INTO jobs (kind, payload, max_attempts) SELECT 'noop', '{}', 10 FROM generate_series(1, $1)";
    sqlx::query(jobs).bind(count).execute(pool).await.unwrap();
    // Without a checkpoint. After one, the first write to each page logs the whole page, and a large table has more pages.
    sqlx::query("VACUUM ANALYZE jobs").execute(pool).await.unwrap();
}

/// Claims and deletes `at_a_time` jobs repeatedly on one connection. Returns jobs per second.
async fn bare_loop(pool: &PgPool, count: i32, at_a_time: i64) -> f64 {
    fill(pool, count).await;
    let mut connection = pool.acquire().await.unwrap();
    let started = Instant::now();
    loop {
        let claim = "UPDATE jobs SET token = $1, run_at = now() + interval '30 s', attempt = attempt + 1 WHERE id IN
            (SELECT id FROM jobs WHERE kind = 'noop' AND token IS NULL AND dead_at IS NULL AND run_at <= now()
             ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING id, payload";
        let claimed = sqlx::query_as::<_, (i64, serde_json::Value)>(claim).bind(Uuid::new_v4()).bind(at_a_time);
        let ids: Vec<_> = claimed.fetch_all(&mut *connection).await.unwrap().into_iter().map(|(id, _)| id).collect();
        if ids.is_empty() {
            return f64::from(count) / started.elapsed().as_secs_f64();
        }
        sqlx::query("DELETE FROM jobs WHERE id = ANY($1)").bind(ids).execute(&mut *connection).await.unwrap();
    }
}

/// A worker that is built as for production, but with other kinds of jobs.
struct Worker(Child);

impl Worker {
    fn start(concurrency: u32, stdout: Stdio) -> Self {
        let program = std::env::var("PROGRAMS").expect("run it with bin/bench") + "/examples/rough_worker";
        let mut command = Command::new(program);
        // It attaches lazily, so resources that it does not use need not exist.
        command.env("REDIS_URL", "redis://127.0.0.1:1").env("SMTP_URL", "smtp://127.0.0.1:1");
        command.env("MAIL_FROM", "bench@example.com").env("PUBLIC_URL", "http://localhost");
        Self(command.env("WORKER_CONCURRENCY", concurrency.to_string()).stdout(stdout).spawn().expect("the worker starts"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Jobs per second from the worker's start until the queue is empty.
async fn burn_down(pool: &PgPool, count: i32, concurrency: u32) -> f64 {
    fill(pool, count).await;
    let started = Instant::now();
    let _worker = Worker::start(concurrency, Stdio::null());
    while sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM jobs WHERE id > (SELECT last_value FROM jobs_id_seq) - 1000)")
        .fetch_one(pool)
        .await
        .unwrap()
    {
        assert!(started.elapsed() < MINUTE * 5, "the queue did not drain");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    while sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM jobs)").fetch_one(pool).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}

async fn enqueue_rates(pool: &PgPool) -> (f64, f64) {
    fill(pool, 0).await;
    let mut connection = pool.acquire().await.unwrap();
    let started = Instant::now();
    for _ in 0..2_000 {
        let _ = enqueue(&mut connection, &Noop {}).await.unwrap();
    }
    let single = 2_000.0 / started.elapsed().as_secs_f64();
    let batch: Vec<_> = (0..1_000).map(|_| Noop {}).collect();
    let started = Instant::now();
    for _ in 0..50 {
        let _ = enqueue_many(&mut connection, &batch).await.unwrap();
    }
    (single, 50_000.0 / started.elapsed().as_secs_f64())
}

/// Milliseconds from the commit to the worker's log line, by this machine's clock: median and 99th percentile.
async fn pick_up(pool: &PgPool) -> (f64, f64) {
    fill(pool, 0).await;
    let mut worker = Worker::start(10, Stdio::piped());
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = worker.0.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["wait_ms"].is_i64() && sender.send(line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()).is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut connection: sqlx::pool::PoolConnection<sqlx::Postgres> = pool.acquire().await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..300 {
        waits.push(one_pick_up(&mut connection, &mut lines).await);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    waits.sort_by(f64::total_cmp);
    (waits[150], waits[297])
}

async fn one_pick_up(connection: &mut PgConnection, starts: &mut tokio::sync::mpsc::UnboundedReceiver<jiff::Timestamp>) -> f64 {
    let _ = enqueue(connection, &Noop {}).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it is compared with the clock of another process on this machine")]
    let committed = jiff::Timestamp::now();
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(connection).await.unwrap();
    let started = starts.recv().await.unwrap();
    started.duration_since(committed).as_secs_f64() * 1000.0
}

/// Milliseconds that a claim of ten takes with `waiting` jobs in the queue: the median of 200. It leaves out the flush
/// at the commit, which depends on the disk. After a million inserts the disk is still busy.
async fn claim_cost(pool: &PgPool, waiting: i32) -> f64 {
    fill(pool, waiting).await;
    let options = pool.connect_options().as_ref().clone().options([("synchronous_commit", "off")]);
    let pool = &PgPool::connect_with(options).await.unwrap();
    let wanted = [queue::Wanted { kind: Noop::KIND.to_owned(), rank: 0, since: None }];
    let mut costs = Vec::new();
    for _ in 0..200 {
        let token = Uuid::new_v4();
        let started = Instant::now();
        let claimed = queue::claim(pool, &wanted, 10, token, MINUTE).await.unwrap();
        costs.push(started.elapsed().as_secs_f64() * 1000.0);
        let claimed: Vec<_> = claimed.iter().map(|job| (job.id, token)).collect();
        assert_eq!(claimed.len(), 10);
        queue::complete_all(pool, &claimed).await.unwrap();
        let again = "INSERT INTO jobs (kind, payload, max_attempts) SELECT 'noop', '{}', 10 FROM generate_series(1, 10)";
        sqlx::query(again).execute(pool).await.unwrap();
    }
    median(&costs)
}
