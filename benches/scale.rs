//! `bin/bench scale`: the throughput of more processes, the connections that they take, and the cost of a read as the table
//! grows. The yardsticks are one process and the smallest table, in the same run.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod load;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use load::{COOKIE, Request, Rounds, Server, ask, people};
use report::{Report, median};
use sqlx::PgPool;

const PROCESSES: [usize; 3] = [1, 2, 4];
const JOBS: i32 = 4_000;

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let mut report = Report::default();
    webs(&programs, &pool, &mut report).await;
    workers(&programs, &pool, &mut report).await;
    report.finish("scale");
}

fn read() -> Request {
    Request { name: "GET /api/v1/session", method: "GET", path: "/api/v1/session", body: None, credential: Some(COOKIE) }
}

/// How many connections Postgres and Redis have, beside this program's own.
async fn connections(pool: &PgPool) -> (i64, usize) {
    let postgres = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('web', 'worker', 'clock')";
    let redis = redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
    (sqlx::query_scalar(postgres).fetch_one(pool).await.unwrap(), clients.lines().count() - 1)
}

async fn webs(programs: &Path, pool: &PgPool, report: &mut Report) {
    let mut sessions = Vec::new();
    for count in PROCESSES {
        let servers: Vec<_> = (0..count).map(|_| Server::start(&programs.join("web"))).collect();
        if sessions.is_empty() {
            sessions = people(pool, &servers[0], load::SESSIONS).await;
        }
        let mut all: Vec<Rounds> = Vec::new();
        // The same 32 clients are divided among the processes, which get requests at the same time.
        for _ in 0..3 {
            all = std::thread::scope(|scope| {
                let asking: Vec<_> = servers
                    .iter()
                    .map(|server| {
                        let sessions = &sessions;
                        scope.spawn(move || {
                            let mut rounds = Rounds::default();
                            ask(server, &read(), sessions, 32 / count, &mut rounds);
                            rounds
                        })
                    })
                    .collect();
                asking.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
        }
        let rate: f64 = all.iter().map(|rounds| rounds.rate[0]).sum();
        let cost = all.iter().map(|rounds| rounds.cpu_us[0] * rounds.rate[0]).sum::<f64>() / rate;
        let (postgres, redis) = connections(pool).await;
        report.figure(&format!("{count} web, signed-in reads/s, 32 at a time in all"), format!("{rate:.0}"));
        report.figure("   CPU, µs a request", format!("{cost:.0}"));
        report.figure("   connections to Postgres, to Redis", format!("{postgres}, {redis}"));
    }

    let web = Server::start(&programs.join("web"));
    let mut p50 = Vec::new();
    for rows in [1_000_i64, 100_000, 10_000_000] {
        // Random ids, so that the rows are not in order.
        let others = "INSERT INTO accounts (id, email, password_hash)
             SELECT gen_random_uuid(), gen_random_uuid() || '@example.com', '' FROM generate_series(1, $1 - (SELECT count(*) FROM accounts))";
        sqlx::query(others).bind(rows).execute(pool).await.unwrap();
        sqlx::query("VACUUM ANALYZE accounts").execute(pool).await.unwrap();
        sqlx::query("CHECKPOINT").execute(pool).await.unwrap();
        let mut rounds = Rounds::default();
        for _ in 0..4 {
            ask(&web, &read(), &sessions, 1, &mut rounds);
        }
        // The first round only warms up.
        let cost = median(&rounds.p50_ms[1..]);
        report.figure(&format!("signed-in read with {rows} accounts in the table, p50, ms"), format!("{cost:.3}"));
        p50.push(cost);
    }
    let ratio = p50[2] / p50[0];
    report.reach("   10 M : 1 k", ratio, ratio <= 1.2, "1.2");
    sqlx::query("TRUNCATE accounts CASCADE").execute(pool).await.unwrap();
}

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Jobs that wait 20 ms, as most jobs wait for something. A worker with ten at a time can do 500 per second.
async fn workers(programs: &Path, pool: &PgPool, report: &mut Report) {
    let mut one = None;
    for count in PROCESSES {
        sqlx::query("TRUNCATE jobs").execute(pool).await.unwrap();
        let workers: Vec<_> = (0..count)
            .map(|_| {
                let mut command = Command::new(programs.join("examples/rough_worker"));
                Worker(command.env("WORKER_CONCURRENCY", "10").stdout(Stdio::null()).spawn().unwrap())
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let jobs = "INSERT INTO jobs (kind, payload, max_attempts) SELECT 'sleep', '{\"millis\": 20}', 10 FROM generate_series(1, $1)";
        sqlx::query(jobs).bind(JOBS).execute(pool).await.unwrap();
        let started = Instant::now();
        while sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM jobs)").fetch_one(pool).await.unwrap() {
            assert!(started.elapsed() < Duration::from_mins(2), "the queue did not drain");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rate = f64::from(JOBS) / started.elapsed().as_secs_f64();
        let (postgres, redis) = connections(pool).await;
        report.figure(&format!("{count} worker, jobs of 20 ms a second"), format!("{rate:.0}"));
        report.figure("   of what one does", format!("{:.2}", rate / *one.get_or_insert(rate)));
        report.figure("   connections to Postgres, to Redis", format!("{postgres}, {redis}"));
        drop(workers);
    }
}
