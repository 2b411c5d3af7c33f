//! Responses while a resource is unavailable: 503 in time, never a false 401. No restart is needed afterwards.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::person::{Person, problem};
use crate::support::{Deploy, Proxy, eventually};

#[tokio::test]
async fn redis_outage_is_503_and_keeps_sessions() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let web = deploy.with("REDIS_URL", url).web().await;
    let ada = Person::unverified(&web).await;

    proxy.cut();
    problem(ada.get("/session").await, 503, "unavailable").await;
    problem(ada.log_in().await, 503, "unavailable").await;
    problem(Person::stranger(&web).get("/session").await, 401, "unauthenticated").await;
    problem(Person::stranger(&web).sign_up().await, 503, "unavailable").await;
    assert_eq!(web.get("/version").await.status(), 200, "requests without Redis still work");
    let not_ready = eventually("not ready", async || Some(web.get("/readyz").await).filter(|answer| answer.status() == 503)).await;
    assert_eq!(not_ready.json::<Value>().await.unwrap()["failed"], serde_json::json!({ "redis": "unavailable" }));
    assert_eq!(web.get("/livez").await.status(), 200);

    proxy.heal();
    eventually("the session", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
}

#[tokio::test]
async fn hanging_redis_delays_no_anonymous_request() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let web = deploy.with("REDIS_URL", url).web().await;
    proxy.stall();
    let strangers =
        futures_util::future::join_all((0..400).map(|_| async { Person::stranger(&web).get("/session").await.status().as_u16() }));
    assert!(strangers.await.iter().all(|status| *status == 401), "anonymous requests pass without a limit");
}

#[tokio::test]
async fn postgres_outage_is_503_within_request_timeout() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let url = deploy.through("DATABASE_URL", &proxy);
    let web = deploy.with("DATABASE_URL", url).web().await;
    let ada = Person::unverified(&web).await;

    proxy.cut();
    let started = Instant::now();
    problem(ada.get("/session").await, 503, "unavailable").await;
    problem(Person::stranger(&web).sign_up().await, 503, "unavailable").await;
    assert!(started.elapsed() < Duration::from_secs(20), "two requests take at most 10 s each");
    let not_ready = eventually("not ready", async || Some(web.get("/readyz").await).filter(|answer| answer.status() == 503)).await;
    assert_eq!(not_ready.json::<Value>().await.unwrap()["failed"]["postgres"], "unavailable");

    proxy.heal();
    eventually("an answer", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
}

#[tokio::test]
async fn slow_request_times_out_with_503() {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", "2s");
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let mut database = deploy.database().await;
    let mut lock = sqlx::Connection::begin(&mut database).await.unwrap();
    sqlx::query("LOCK TABLE api_tokens").execute(&mut *lock).await.unwrap();
    problem(ada.get("/tokens").await, 503, "unavailable").await;
    // A request whose client does not wait is logged as well.
    let asking = tokio::spawn(ada.request(reqwest::Method::GET, "/tokens").send());
    deploy.waits_for_a_lock().await;
    asking.abort();
    web.process.logged("the request that was abandoned", |line| line["status"] == 499 && line["route"] == "/api/v1/tokens").await;
    lock.rollback().await.unwrap();
    assert_eq!(ada.get("/tokens").await.status(), 200);
}

#[tokio::test]
async fn timed_out_change_suggests_no_retry() {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", "1s");
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let url = deploy.through("DATABASE_URL", &proxy);
    let web = deploy.with("DATABASE_URL", url).web().await;
    let ada = Person::unverified(&web).await;
    // One round trip takes longer than the request's timeout.
    proxy.delay(Duration::from_millis(600));
    let change = Person::stranger(&web).sign_up().await;
    assert!(!change.headers().contains_key("retry-after"), "the change may have been made: {change:?}");
    problem(change, 503, "timed-out").await;
    let read = ada.get("/session").await;
    assert_eq!(read.headers()["retry-after"], "1");
    problem(read, 503, "unavailable").await;
}

#[tokio::test]
async fn mail_waits_for_an_unavailable_server() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("SMTP_URL")).await;
    let url = deploy.through("SMTP_URL", &proxy);
    let deploy = deploy.with("SMTP_URL", url);
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    proxy.cut();
    let ada = Person::stranger(&web);
    ada.sign_up().await;
    worker.logged("a failed attempt", |line| line["outcome"] == "failed").await;
    proxy.heal();
    deploy.mail.to(&ada.email, "Did you sign up?").await;
}

#[tokio::test]
async fn session_read_costs_one_roundtrip_and_query() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "info,sqlx::query=debug");
    let proxy = Proxy::to(deploy.address_of("REDIS_URL")).await;
    let url = deploy.through("REDIS_URL", &proxy);
    let deploy = deploy.with("REDIS_URL", url);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    // web reads the account's status from Postgres every five seconds.
    assert_eq!(ada.get("/tokens").await.status(), 200);
    let before = proxy.sent().len();
    let read = ada.request(reqwest::Method::GET, "/tokens").header("x-request-id", "counted-read").send();
    assert_eq!(read.await.unwrap().status(), 200);
    // Probes also use Redis meanwhile.
    let pieces: Vec<_> = proxy.sent()[before..].iter().filter(|piece| !piece.contains("limit:probe")).cloned().collect();
    assert_eq!(pieces.len(), 1, "session and limit share one round trip: {pieces:#?}");
    assert!(pieces[0].contains("GETEX") && pieces[0].contains("EVAL"), "{pieces:#?}");

    web.process.logged("the access line", |line| line["caller_request_id"] == "counted-read" && line["status"] == 200).await;
    let log = web.process.log();
    let queries: Vec<_> =
        log.iter().filter(|line| line["target"] == "sqlx::query" && line["caller_request_id"] == "counted-read").collect();
    assert_eq!(queries.len(), 1, "{queries:#?}");
}
