//! Resources that stop, hang or move.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::clients::get;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, EVENT_TIMEOUT, Proxy, eventually, free_port};

/// The deploy with a resource behind a proxy.
async fn behind(deploy: Deploy, variable: &str) -> (Deploy, Proxy) {
    let proxy = Proxy::to(deploy.address_of(variable)).await;
    let url = deploy.through(variable, &proxy);
    (deploy.with(variable, url), proxy)
}

/// Whether the process at this address is ready.
async fn is_ready(address: &str) -> bool {
    get(format!("{address}/readyz")).await.is_ok_and(|answer| answer.status() == 200)
}

/// Breaks the connections to a resource, for ten seconds if `heal` is given, and checks that every process recovers.
async fn break_resource(variable: &str, fault: fn(&Proxy), heal: Option<fn(&Proxy)>) {
    let deploy = Deploy::new().await.with("REQUEST_TIMEOUT", "4s").with("JOB_LEASE", "10s");
    let (deploy, proxy) = behind(deploy, variable).await;
    let web = deploy.web().await;
    let mut addresses = vec![web.url.clone()];
    let mut others = Vec::new();
    for program in ["worker", "clock"] {
        let port = free_port();
        others.push(deploy.clone_with("METRICS_PORT", port).start(program));
        // The clock does not use Redis.
        if program == "worker" || variable == "DATABASE_URL" {
            addresses.push(format!("http://127.0.0.1:{port}"));
        }
    }
    for address in &addresses {
        eventually("readiness", async || is_ready(address).await.then_some(())).await;
    }
    let ada = Person::unverified(&web).await;

    fault(&proxy);
    let broken_at = Instant::now();
    if let Some(heal) = heal {
        problem(ada.get("/session").await, 503, "unavailable").await;
        assert!(broken_at.elapsed() < Duration::from_secs(6), "{variable}: 503 only after {:?}", broken_at.elapsed());
        assert_eq!(web.get("/livez").await.status(), 200);
        for address in &addresses {
            eventually("no readiness", async || (!is_ready(address).await).then_some(())).await;
        }
        tokio::time::sleep(Duration::from_secs(10).saturating_sub(broken_at.elapsed())).await;
        heal(&proxy);
    } else {
        // Every process checks its resources within a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let healed = Instant::now();
    for (number, address) in addresses.iter().enumerate() {
        let ready = async {
            while !is_ready(address).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(EVENT_TIMEOUT, ready).await.is_err() {
            let log = if number == 0 { web.process.lines() } else { others[number - 1].lines() };
            panic!("{variable}: {address} is not ready: {log:#?}");
        }
        let took = healed.elapsed();
        let log = || if number == 0 { web.process.lines() } else { others[number - 1].lines() };
        assert!(took < Duration::from_secs(2), "{variable}: {address} is ready only after {took:?}: {:#?}", log());
    }
    for process in &others {
        let count = process.lines().iter().filter(|line| line.contains("no heartbeat for more than")).count();
        assert!(count <= 1, "a stall is logged once: {:#?}", process.lines());
    }
    eventually("the session", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    let grace = Person::stranger(&web);
    assert_eq!(grace.sign_up().await.status(), 202, "{:#?}", web.process.lines());
    deploy.mail.to(&grace.email, "Did you sign up?").await;
}

#[tokio::test]
async fn postgres_stops_for_ten_seconds() {
    break_resource("DATABASE_URL", Proxy::cut, Some(Proxy::heal)).await;
}

#[tokio::test]
async fn postgres_hangs_for_ten_seconds() {
    break_resource("DATABASE_URL", Proxy::stall, Some(Proxy::heal)).await;
}

#[tokio::test]
async fn hanging_postgres_moves_to_another_machine() {
    break_resource("DATABASE_URL", Proxy::stall, Some(Proxy::fail_over)).await;
}

#[tokio::test]
async fn postgres_moves_to_another_machine() {
    break_resource("DATABASE_URL", Proxy::fail_over, None).await;
}

#[tokio::test]
async fn redis_stops_for_ten_seconds() {
    break_resource("REDIS_URL", Proxy::cut, Some(Proxy::heal)).await;
}

#[tokio::test]
async fn redis_hangs_for_ten_seconds() {
    break_resource("REDIS_URL", Proxy::stall, Some(Proxy::heal)).await;
}

#[tokio::test]
async fn hanging_redis_moves_to_another_machine() {
    break_resource("REDIS_URL", Proxy::stall, Some(Proxy::fail_over)).await;
}

#[tokio::test]
async fn redis_moves_to_another_machine() {
    break_resource("REDIS_URL", Proxy::fail_over, None).await;
}

#[tokio::test]
async fn broken_connections_never_return_to_the_pool() {
    for variable in ["DATABASE_URL", "REDIS_URL"] {
        let (deploy, proxy) = behind(Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000), variable).await;
        let web = deploy.web().await;
        let ada = Person::unverified(&web).await;
        for _ in 0..10 {
            // Requests are running when the connections break.
            let asking = futures_util::future::join_all((0..20).map(|_| ada.get("/session")));
            let breaking = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                proxy.cut();
                proxy.heal();
            };
            let (answers, ()) = tokio::join!(asking, breaking);
            for answer in answers {
                assert!(matches!(answer.status().as_u16(), 200 | 503), "{variable}: {answer:?}");
            }
        }
        for _ in 0..20 {
            eventually("an answer", async || (ada.get("/session").await.status() == 200).then_some(())).await;
        }
        let answers = futures_util::future::join_all((0..40).map(|_| ada.get("/session"))).await;
        assert!(answers.iter().all(|answer| answer.status() == 200), "{variable}");
    }
}

#[tokio::test]
async fn abandoned_begin_leaves_no_open_transaction() {
    let (deploy, proxy) = behind(Deploy::new().await.with("DATABASE_POOL_SIZE", 1), "DATABASE_URL").await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let begun = || proxy.sent().iter().filter(|piece| piece.contains("BEGIN;")).count();
    let before = begun();
    proxy.delay(Duration::from_millis(300));
    let change = tokio::spawn(ada.request(reqwest::Method::PATCH, "/account").json(&serde_json::json!({ "digest": false })).send());
    eventually("BEGIN on its way", async || (begun() > before).then_some(())).await;
    // The client leaves before the answer to BEGIN arrives.
    change.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.heal();
    assert_eq!(ada.request_reset().await.status(), 202);
    let jobs = "SELECT count(*) FROM jobs WHERE kind = 'send_password_reset'";
    let jobs: i64 = sqlx::query_scalar(jobs).fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(jobs, 1, "the accepted request is committed");
}

#[tokio::test]
async fn web_without_postgres_is_live_but_unready() {
    let deploy = Deploy::new().await.with("DATABASE_URL", "postgres://nobody:secret@127.0.0.1:1/none");
    let web = deploy.web_unready().await;
    assert_eq!(web.get("/livez").await.status(), 200);
    eventually("the reason", async || {
        let answer = web.get("/readyz").await;
        assert_eq!(answer.status(), 503);
        (answer.json::<Value>().await.unwrap()["failed"]["postgres"] == "unavailable").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(web.process.lines().iter().filter(|line| line.contains("not ready")).count(), 1, "{:#?}", web.process.lines());
}
