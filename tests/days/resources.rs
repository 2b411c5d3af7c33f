//! Resources that hang, move and come back, and machines that can be written to nowhere.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Connection;

use crate::support::balancer::has;
use crate::support::person::{Person, problem};
use crate::support::process::programs;
use crate::support::{Deploy, Process, Proxy, eventually};

/// The deploy with a resource behind a proxy.
async fn behind(deploy: Deploy, variable: &str) -> (Deploy, Proxy) {
    let proxy = Proxy::to(deploy.address_of(variable)).await;
    let url = deploy.through(variable, &proxy);
    (deploy.with(variable, url), proxy)
}

/// How long it takes from now until `/readyz` says yes.
async fn until_ready(web: &crate::support::deploy::Web) -> Duration {
    let started = Instant::now();
    eventually("readiness", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
    started.elapsed()
}

#[tokio::test]
async fn a_resource_that_hangs_without_an_answer_is_503_in_time_and_comes_back_without_a_restart() {
    for variable in ["DATABASE_URL", "REDIS_URL"] {
        let (deploy, proxy) = behind(Deploy::new().await.with("REQUEST_TIMEOUT", "4s"), variable).await;
        let web = deploy.web().await;
        let ada = Person::unverified(&web).await;
        proxy.stall();
        let started = Instant::now();
        problem(ada.get("/session").await, 503, "unavailable").await;
        assert!(started.elapsed() < Duration::from_secs(6), "{variable}: {:?}", started.elapsed());
        assert_eq!(web.get("/livez").await.status(), 200);
        eventually("no readiness", async || (web.get("/readyz").await.status() == 503).then_some(())).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        proxy.heal();
        let took = until_ready(&web).await;
        assert!(took < Duration::from_secs(4), "{variable}: ready only {took:?} after its return");
        eventually("the session", async || (ada.get("/session").await.status() == 200).then_some(())).await;
    }
}

#[tokio::test]
async fn a_resource_that_comes_back_at_another_address_behind_the_same_name_is_found() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let url = deploy.through("DATABASE_URL", &proxy);
    let deploy = deploy.with("DATABASE_URL", url);
    let (web, worker, clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
    let ada = Person::unverified(&web).await;
    clock.says("is new").await;
    proxy.cut();
    problem(ada.get("/session").await, 503, "unavailable").await;
    worker.says("Postgres is away").await;
    clock.says("waits for Postgres").await;
    proxy.heal();
    let took = until_ready(&web).await;
    assert!(took < Duration::from_secs(4), "ready only {took:?} after its return");
    let grace = Person::stranger(&web);
    let answer = grace.sign_up().await;
    assert_eq!(answer.status(), 202, "{:#?}", web.process.lines());
    deploy.mail.to(&grace.email, "Is this your address?").await;
}

#[tokio::test]
async fn a_connection_that_is_cut_in_mid_reply_poisons_no_pool() {
    for variable in ["DATABASE_URL", "REDIS_URL"] {
        let (deploy, proxy) = behind(Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000), variable).await;
        let web = deploy.web().await;
        let ada = Person::unverified(&web).await;
        for _ in 0..10 {
            // Requests are under way when the connections break.
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
async fn a_web_without_its_database_listens_lives_and_says_once_why_it_is_not_ready() {
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

#[tokio::test]
async fn on_a_disk_that_cannot_be_written_without_tmp_and_home_all_four_programs_work() {
    if !has("unshare") || !nix::unistd::Uid::effective().is_root() {
        println!("skipped: needs root");
        return;
    }
    let deploy = Deploy::new().await;
    // A mount namespace of its own, in which everything is read-only, /tmp too.
    let start = |program: &str| {
        let script = "set -e; mount --make-rprivate /; mount --bind / /mnt; mount -o remount,bind,ro /mnt; ! touch /mnt/tmp/x 2>/dev/null; \
                      exec chroot /mnt /usr/bin/env --ignore-environment $VARIABLES $PROGRAM";
        let variables: Vec<_> =
            deploy.environment.iter().filter(|(name, _)| *name != "MAIL_FROM").map(|(n, v)| format!("{n}={v}")).collect();
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).env("VARIABLES", format!("{} MAIL_FROM=hello@example.com", variables.join(" ")));
        command.env("PROGRAM", format!("{}/{program}", programs().display()));
        Process::spawn(command)
    };
    let mut admin = start("admin migrate --check");
    assert_eq!(admin.exit().await.code(), Some(0), "{:?}", admin.errors());
    let (mut web, mut worker, mut clock) = (start("web"), start("worker"), start("clock"));
    let port = web.logged("web is listening", |line| line["listener"] == "web").await["port"].as_u64().unwrap();
    web.says("ready").await;
    clock.says("is new").await;
    let at = crate::support::deploy::Web { url: format!("http://127.0.0.1:{port}"), process: start("admin config") };
    Person::verified(&deploy, &at).await;
    for process in [&mut web, &mut worker, &mut clock] {
        assert_eq!(process.terminate().await, Some(0));
    }
    deploy.database().await.ping().await.unwrap();
}
