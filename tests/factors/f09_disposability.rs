//! IX. Disposability: processes start fast, stop on a signal, and lose nothing when they are killed.
//!
//! Violated by a slow start, an unhandled signal, an aborted request, or a job that is lost or stuck.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::person::Person;
use crate::support::{Deploy, eventually};

/// The limit for an exit that must not wait for the drain timeout of 25 s. A busy machine may need most of it.
const PROMPT_EXIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn processes_are_ready_within_three_seconds() {
    let deploy = Deploy::new().await;
    for name in ["web", "worker", "clock"] {
        // On a busy machine at least one start of several must be fast.
        let mut tries = 0..5;
        let quick = async || {
            let started = Instant::now();
            deploy.start(name).logged("ready", |line| line["message"] == "ready").await;
            started.elapsed() < Duration::from_secs(3)
        };
        while !quick().await {
            assert!(tries.next().is_some(), "{name} is not ready within three seconds");
        }
    }
}

#[tokio::test]
async fn idle_processes_exit_promptly_on_signal() {
    let deploy = Deploy::new().await;
    for (name, sign) in [("web", "ready"), ("worker", "worker is starting"), ("clock", "is new")] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let deploy = if name == "clock" { &Deploy::new().await } else { &deploy };
            let mut process = deploy.start(name);
            process.says(sign).await;
            process.signal(signal);
            assert_eq!(process.exit_within(PROMPT_EXIT).await.code(), Some(0), "{name}");
            let last = process.log().pop().unwrap();
            assert_eq!(last["message"], format!("{name} has stopped"));
            assert_eq!(last["exit_status"], 0);
        }
    }
}

#[tokio::test]
async fn sighup_drains_and_user_signals_are_ignored() {
    for (name, sign) in [("web", "ready"), ("worker", "worker is starting"), ("clock", "is new")] {
        let mut process = Deploy::new().await.start(name);
        process.says(sign).await;
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGUSR1] {
            process.signal(signal);
        }
        // A closed terminal sends it.
        process.signal(Signal::SIGHUP);
        assert_eq!(process.exit_within(PROMPT_EXIT).await.code(), Some(0), "{name}: {:#?}", process.lines());
        assert!(process.lines().iter().any(|line| line.contains("draining")), "{name}: {:#?}", process.lines());
        assert_eq!(process.log().pop().unwrap()["message"], format!("{name} has stopped"));
    }
}

#[tokio::test]
async fn drain_answers_requests_and_refuses_connections() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut database = deploy.database().await;
    let mut lock = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE api_tokens").execute(&mut *lock).await.unwrap();
    let reading = tokio::spawn(ada.request(reqwest::Method::GET, "/tokens").send());
    deploy.waits_for_a_lock().await;
    // An idle connection and one with half a request must not delay the drain.
    let idle = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let mut half_sent = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    half_sent.write_all(b"GET /livez HT").await.unwrap();

    for _ in 0..5 {
        web.process.signal(Signal::SIGTERM);
    }
    eventually("a closed listener", async || TcpStream::connect(("127.0.0.1", web.port())).await.err()).await;
    lock.rollback().await.unwrap();
    let answer = reading.await.unwrap();
    assert!(answer.as_ref().is_ok_and(|answer| answer.status() == 200), "the request in flight was not answered: {answer:?}");
    assert_eq!(web.process.exit().await.code(), Some(0));
    drop((idle, half_sent));
    let drains = web.process.log().iter().filter(|line| line["message"].as_str().unwrap().starts_with("draining")).count();
    assert_eq!(drains, 1, "five signals start one drain");
}

#[tokio::test]
async fn drain_timeout_aborts_and_counts_requests() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "300ms");
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let mut database = deploy.database().await;
    let mut lock = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE api_tokens").execute(&mut *lock).await.unwrap();
    let reading = tokio::spawn(ada.request(reqwest::Method::GET, "/tokens").send());
    deploy.waits_for_a_lock().await;
    web.process.signal(Signal::SIGTERM);
    assert_eq!(web.process.exit_within(PROMPT_EXIT).await.code(), Some(1));
    assert!(reading.await.unwrap().is_err());
    assert!(web.process.lines().iter().any(|line| line.contains("1 request(s) on web were cut off")), "{:#?}", web.process.lines());
}

#[tokio::test]
async fn second_sigint_exits_immediately() {
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "60s");
    let mut web = deploy.web().await;
    web.process.signal(Signal::SIGINT);
    web.process.says("draining").await;
    web.process.signal(Signal::SIGINT);
    assert_eq!(web.process.exit().await.code(), Some(130));
}

#[tokio::test]
async fn drain_delay_serves_but_reports_unready() {
    let deploy = Deploy::new().await.with("DRAIN_DELAY", "2s");
    let mut web = deploy.web().await;
    web.process.signal(Signal::SIGTERM);
    web.process.says("draining").await;
    assert_eq!(web.get("/readyz").await.status(), 503);
    assert_eq!(web.get("/livez").await.status(), 200);
    assert_eq!(web.get("/version").await.status(), 200);
    assert_eq!(web.process.exit().await.code(), Some(0));
}

#[tokio::test]
async fn drain_does_not_wait_for_answered_clients() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    // The client keeps the connection open and sends no further request.
    let mut client = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    client.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    web.process.signal(Signal::SIGTERM);
    assert_eq!(web.process.exit_within(PROMPT_EXIT).await.code(), Some(0));
}

/// Locks a table that the job must read, so that the job blocks while it runs.
async fn with_blocked_job(deploy: &Deploy) -> (Person, crate::support::Process, sqlx::PgConnection) {
    let (web, first) = (deploy.web().await, deploy.start("worker"));
    let mut database = deploy.database().await;
    sqlx::query("BEGIN").execute(&mut database).await.unwrap();
    sqlx::query("LOCK TABLE mailed_tokens").execute(&mut database).await.unwrap();
    let grace = Person::stranger(&web);
    grace.sign_up().await;
    first.says("send_verification starts").await;
    deploy.waits_for_a_lock().await;
    (grace, first, database)
}

#[tokio::test]
async fn job_of_killed_worker_runs_elsewhere() {
    let deploy = Deploy::new().await.with("JOB_LEASE", "10s");
    let (grace, mut first, mut database) = with_blocked_job(&deploy).await;
    first.signal(Signal::SIGKILL);
    first.exit().await;
    sqlx::query("ROLLBACK").execute(&mut database).await.unwrap();
    // As if its lease had expired.
    sqlx::query("UPDATE jobs SET run_at = now() WHERE token IS NOT NULL").execute(&mut database).await.unwrap();
    let second = deploy.start("worker");
    deploy.mail.to(&grace.email, "Did you sign up?").await;
    second.logged("the expired job", |line| line["outcome"] == "expired" && line["job_kind"] == "send_verification").await;
}

#[tokio::test]
async fn draining_worker_finishes_its_jobs() {
    let deploy = Deploy::new().await;
    let (grace, mut first, mut database) = with_blocked_job(&deploy).await;
    first.signal(Signal::SIGTERM);
    first.says("draining").await;
    sqlx::query("ROLLBACK").execute(&mut database).await.unwrap();
    assert_eq!(first.exit().await.code(), Some(0));
    deploy.mail.to(&grace.email, "Did you sign up?").await;
}

#[tokio::test]
async fn unfinished_job_returns_without_using_an_attempt() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "300ms");
    let (grace, mut first, mut database) = with_blocked_job(&deploy).await;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.exit_within(PROMPT_EXIT).await.code(), Some(0));
    assert!(first.lines().iter().any(|line| line.contains("1 unfinished job(s) returned")), "{:#?}", first.lines());
    let (attempt, held): (i32, bool) =
        sqlx::query_as("SELECT attempt, token IS NOT NULL FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!((attempt, held), (0, false));
    sqlx::query("ROLLBACK").execute(&mut database).await.unwrap();
    let _second = deploy.start("worker");
    deploy.mail.to(&grace.email, "Did you sign up?").await;
}
