//! `bin/bench events`: what 2,000 idle event streams cost a `web`, how fast an event reaches them beside load, and how
//! fast a drain ends them.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod load;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use load::{COOKIE, Request, Rounds, Server, ask, people};
use report::{Report, median};

const STREAMS: usize = 2000;
const STREAMS_PER_ACCOUNT: usize = 10;
const EVENTS: usize = 500;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let web = Arc::new(Server::start(&programs.join("web")));
    let mut report = Report::default();
    let sessions = people(&pool, &web, STREAMS / STREAMS_PER_ACCOUNT).await;
    let read = Request { name: "GET /api/v1/session", method: "GET", path: "/api/v1/session", body: None, credential: Some(COOKIE) };
    let (mut alone, mut beside) = (Rounds::default(), Rounds::default());
    for _ in 0..ROUNDS {
        reads(&web, &read, &sessions, &mut alone);
    }

    let before = web.resident_mb();
    let mut streams = Vec::new();
    for (at, session) in sessions.iter().flat_map(|session| [session; STREAMS_PER_ACCOUNT]).enumerate() {
        streams.push(open(&web, session, at).await);
    }
    sleep(Duration::from_secs(1)).await;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let each_kb = (web.resident_mb() - before) * 1000.0 / STREAMS as f64;
    report.reach(&format!("{STREAMS} idle streams, resident kB each"), each_kb, each_kb < 40.0, "40");

    for _ in 0..ROUNDS {
        reads(&web, &read, &sessions, &mut beside);
    }
    for (what, rounds) in [("without streams", &alone), ("beside idle streams", &beside)] {
        report.figure(&format!("signed-in read {what}, requests/s"), format!("{:.0}", median(&rounds.rate)));
        report.figure("   CPU, µs a request", format!("{:.0}", median(&rounds.cpu_us)));
    }
    let ratio = median(&beside.rate) / median(&alone.rate);
    report.reach("   beside : without", ratio, ratio >= 0.9, "0.9");

    let load = tokio::task::spawn_blocking({
        let (web, sessions) = (web.clone(), sessions.clone());
        move || {
            let mut rounds = Rounds::default();
            for _ in 0..ROUNDS {
                ask(&web, &read, &sessions, 8, &mut rounds);
            }
        }
    });
    let account: uuid::Uuid =
        sqlx::query_scalar("SELECT id FROM accounts WHERE email = 'bench-0@example.com'").fetch_one(&pool).await.unwrap();
    let mut delays = delays_ms(&mut streams[0], account).await;
    load.await.unwrap();
    delays.sort_by(f64::total_cmp);
    report.figure("event from Redis to a stream beside load, median ms", format!("{:.2}", median(&delays)));
    let p99 = delays[delays.len() * 99 / 100];
    report.reach("   p99, ms", p99, p99 < 50.0, "50");

    let (id, asked) = (i32::try_from(web.id()).unwrap(), Instant::now());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).unwrap();
    timeout(Duration::from_secs(20), join_all(streams.iter_mut().map(end))).await.expect("every stream ends");
    let took = asked.elapsed().as_secs_f64();
    report.reach(&format!("drain of {STREAMS} streams, s"), took, took < 1.0, "1");
    report.finish("events");
}

fn reads(web: &Arc<Server>, read: &Request, sessions: &[String], rounds: &mut Rounds) {
    tokio::task::block_in_place(|| ask(web, read, sessions, 8, rounds));
}

/// Opens a stream. Half of them come from another address, because `web` limits the connections of one.
async fn open(web: &Server, session: &str, at: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, if at.is_multiple_of(2) { 2 } else { 3 }], 0))).unwrap();
    let mut stream = socket.connect(web.url.trim_start_matches("http://").parse().unwrap()).await.unwrap();
    let request = format!("GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\ncookie: id={session}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(received(&mut stream, "retry: ").await.starts_with("HTTP/1.1 200"));
    stream
}

/// Reads until a text has come, and returns all that came.
async fn received(stream: &mut TcpStream, text: &str) -> String {
    let (mut all, mut buffer) = (String::new(), [0; 1024]);
    while !all.contains(text) {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "the stream ended: {all}");
        all.push_str(str::from_utf8(&buffer[..length]).unwrap());
    }
    all
}

/// How long each of some events takes from the publisher to the stream, in milliseconds.
async fn delays_ms(stream: &mut TcpStream, account: uuid::Uuid) -> Vec<f64> {
    let redis = redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut delays = Vec::new();
    for _ in 0..EVENTS {
        let id = uuid::Uuid::new_v4();
        let event = json!({ "account_id": account, "feature": "files", "id": id }).to_string();
        let sent = Instant::now();
        redis::cmd("PUBLISH").arg("events").arg(event).query_async::<()>(&mut redis).await.unwrap();
        received(stream, &id.to_string()).await;
        delays.push(sent.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(15)).await;
    }
    delays
}

/// Reads a stream to its end.
async fn end(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}
