//! IV. Backing services: they are attached resources. The config says where they are, and the code cannot tell one from another.
//!
//! Violated by an address in the code, even part of one, or by a process that must restart because a resource did.

use crate::support::person::Person;
use crate::support::{Deploy, Proxy, eventually};

const RESOURCES: [&str; 3] = ["DATABASE_URL", "REDIS_URL", "SMTP_URL"];

#[tokio::test]
async fn changed_url_attaches_another_resource() {
    let (first, second) = tokio::join!(Deploy::new(), Deploy::new());
    let web = first.web().await;
    let ada = Person::unverified(&web).await;

    // One variable after the other is changed to a resource on another machine.
    let moved = async |deploy: &Deploy, variable: &str| {
        let machine = Proxy::another_machine(second.address_of(variable)).await;
        (deploy.clone_with(variable, second.through(variable, &machine)), machine)
    };
    let reached = |variable: &str, machine: &Proxy| {
        assert!(!machine.sent().is_empty(), "{variable} names another machine, and no process connected to it");
    };
    let (deploy, redis) = moved(&first, "REDIS_URL").await;
    let web = deploy.web().await;
    let ada = ada.at(&web);
    assert_eq!(ada.get("/session").await.status(), 401, "the other Redis does not have the first one's sessions");
    assert_eq!(ada.log_in().await.status(), 200, "the database is the same");
    reached("REDIS_URL", &redis);

    let (deploy, smtp) = moved(&deploy, "SMTP_URL").await;
    let _worker = deploy.start("worker");
    second.mail.to(&ada.email, "Did you sign up?").await;
    reached("SMTP_URL", &smtp);

    let (deploy, database) = moved(&deploy, "DATABASE_URL").await;
    let web = deploy.web().await;
    assert_eq!(ada.at(&web).log_in().await.status(), 401, "the other database does not have the first one's accounts");
    reached("DATABASE_URL", &database);

    let (deploy, store) = moved(&deploy, "AWS_ENDPOINT_URL_S3").await;
    let doctor = deploy.admin(&["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    storage"), "{doctor:?}");
    reached("AWS_ENDPOINT_URL_S3", &store);
}

/// The same deploy, with a proxy before each resource that can cut its connections.
async fn behind_proxies(mut deploy: Deploy) -> (Deploy, [Proxy; 3]) {
    let proxies = RESOURCES.map(|variable| Proxy::to(deploy.address_of(variable)));
    let proxies: [Proxy; 3] = futures_util::future::join_all(proxies).await.try_into().ok().unwrap();
    for (variable, proxy) in RESOURCES.iter().zip(&proxies) {
        deploy = deploy.clone_with(variable, deploy.through(variable, proxy));
    }
    (deploy, proxies)
}

#[tokio::test]
async fn processes_start_without_resources_then_recover() {
    let (deploy, proxies) = behind_proxies(Deploy::new().await).await;
    proxies.iter().for_each(Proxy::cut);
    let (web, worker, clock) = (deploy.web_unready().await, deploy.start("worker"), deploy.start("clock"));
    web.process.says("not ready: postgres").await;
    worker.says("cannot claim jobs").await;
    clock.says("cannot check the schedule").await;
    assert_eq!(web.get("/livez").await.status(), 200);
    assert_eq!(web.get("/readyz").await.status(), 503);

    proxies.iter().for_each(Proxy::heal);
    eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
}

#[tokio::test]
async fn resource_outage_needs_no_restart() {
    let (deploy, proxies) = behind_proxies(Deploy::new().await).await;
    let (mut web, mut worker, mut clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
    for (variable, proxy) in RESOURCES.iter().zip(&proxies) {
        proxy.cut();
        let grace = Person::stranger(&web);
        if *variable == "SMTP_URL" {
            grace.sign_up().await;
            worker.logged("a mail that could not be sent", |line| line["outcome"] == "failed").await;
        } else {
            eventually("not ready", async || (web.get("/readyz").await.status() == 503).then_some(())).await;
        }
        proxy.heal();
        eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
        // A session needs Redis, an account Postgres, and a mail SMTP. After an outage of SMTP the first mail arrives, too.
        eventually("an answer", async || (grace.sign_up().await.status() == 202).then_some(())).await;
        deploy.mail.to(&grace.email, "Did you sign up?").await;
        eventually("a session", async || (grace.log_in().await.status() == 200).then_some(())).await;
        assert_eq!(grace.get("/session").await.status(), 200, "{variable} is back");
    }
    for process in [&mut web.process, &mut worker, &mut clock] {
        assert!(process.ended().is_none(), "{:#?}", process.lines());
    }
}
