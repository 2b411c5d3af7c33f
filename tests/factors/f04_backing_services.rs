//! IV. Backing services: they are attached resources; the config says where they are, and the code cannot tell one from another.
//!
//! Violated by an address in the code, or by a process that must be restarted because a resource was.

use crate::support::mail::Sink;
use crate::support::person::Person;
use crate::support::{Deploy, Proxy, eventually};

#[tokio::test]
async fn another_address_in_the_environment_is_another_database_session_store_and_mail_server() {
    let (first, second) = tokio::join!(Deploy::new(), Deploy::new());
    let web = first.web().await;
    let ada = Person::unverified(&web).await;

    let moved = Deploy { environment: first.environment.clone(), mail: Sink::start().await.into() };
    let url = moved.mail.smtp_url.clone();
    let moved = moved.with("SMTP_URL", url).with("REDIS_URL", &second.environment["REDIS_URL"]);
    let (web, _worker) = (moved.web().await, moved.start("worker"));
    let ada = ada.at(&web);
    assert_eq!(ada.get("/session").await.status(), 401, "another Redis knows no session of the first");
    assert_eq!(ada.log_in().await.status(), 200, "the database is the same");
    moved.mail.to(&ada.email, "Is this your address?").await;

    let moved = moved.with("DATABASE_URL", &second.environment["DATABASE_URL"]);
    let web = moved.web().await;
    assert_eq!(ada.at(&web).log_in().await.status(), 401, "another database knows no account of the first");
}

#[tokio::test]
async fn every_process_starts_while_its_resources_are_down_and_heals_when_they_come() {
    let deploy = Deploy::new().await;
    let database = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let redis = Proxy::to(deploy.address_of("REDIS_URL")).await;
    database.cut();
    redis.cut();
    let (database_url, redis_url) = (deploy.through("DATABASE_URL", &database), deploy.through("REDIS_URL", &redis));
    let deploy = deploy.with("DATABASE_URL", database_url).with("REDIS_URL", redis_url);
    let (web, worker, clock) = (deploy.web_unready().await, deploy.start("worker"), deploy.start("clock"));
    web.process.says("not ready: postgres").await;
    worker.says("no jobs claimed").await;
    clock.says("the schedule waits for Postgres").await;
    assert_eq!(web.get("/livez").await.status(), 200);
    assert_eq!(web.get("/readyz").await.status(), 503);

    database.heal();
    redis.heal();
    eventually("ready", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
}
