//! XI. Logs: a stream of events on stdout; what becomes of them is the platform's business.
//!
//! Violated by a log file, a line that is no event, a buffer, a secret.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::person::{PASSWORD, Person};
use crate::support::process::programs;
use crate::support::{Deploy, PATIENCE, eventually, free_port};

#[tokio::test]
async fn every_line_is_one_json_object_that_says_what_when_and_who() {
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v17").with("HOSTNAME", "somewhere");
    let mut web = deploy.web().await;
    let (mut worker, mut clock) = (deploy.start("worker"), deploy.start("clock"));
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
    for (name, process) in [("web", &mut web.process), ("worker", &mut worker), ("clock", &mut clock)] {
        assert_eq!(process.terminate().await, Some(0));
        assert_eq!(process.errors(), Vec::<String>::new());
        for line in process.log() {
            line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            assert!(["ERROR", "WARN", "INFO"].contains(&line["level"].as_str().unwrap()), "{line}");
            assert!(!line["message"].as_str().unwrap().is_empty() && line["target"].is_string(), "{line}");
            assert_eq!(line["process"], name);
            assert!(line["instance"].as_str().unwrap().starts_with("somewhere:"), "{line}");
            assert!(line["release"].is_string() && line["commit"].is_string(), "{line}");
        }
    }
}

#[tokio::test]
async fn one_id_follows_a_request_into_the_job_that_it_asked_for() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    let answer = ada.sign_up().await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let access = web.process.logged("the access line", |line| line["request_id"] == id.as_str() && line["status"] == 202).await;
    assert_eq!((&access["method"], &access["route"]), (&"POST".into(), &"/api/v1/accounts".into()));
    assert!(access["latency_ms"].is_u64());
    let done = worker.logged("the job's end", |line| line["request_id"] == id.as_str() && line["outcome"] == "done").await;
    assert_eq!(done["job_kind"], "send_verification");
}

#[tokio::test]
async fn what_is_secret_or_personal_is_in_no_line() {
    // Whatever is asked of the log, libraries included.
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let token = deploy.mail.to(&ada.email, "Is this your address?").await.token();
    web.get(&format!("/verify?token={token}")).await;
    ada.remind("a private message", 1).await;
    deploy.mail.to(&ada.email, "A reminder").await;
    let cookie = ada.log_in().await.headers()["set-cookie"].to_str().unwrap().split([';', '=']).nth(1).unwrap().to_owned();
    let minted =
        ada.post("/tokens", serde_json::json!({ "name": "a marked name", "scopes": ["reminders:read"], "expires_in_days": 1 })).await;
    let minted: serde_json::Value = minted.json().await.unwrap();
    let bearer = minted["secret"].as_str().unwrap_or_else(|| panic!("{minted}")).to_owned();
    let asked =
        crate::support::deploy::client().get(format!("{}/api/v1/reminders?limit=5&marker=of-a-query", web.url)).bearer_auth(&bearer);
    asked.header("user-agent", "marker-of-a-header").send().await.unwrap();
    ada.patch("/account", serde_json::json!({ "email": format!("new-{}", ada.email) })).await;
    ada.post("/account/password", serde_json::json!({ "old": "marker-of-a-wrong-password", "new": "marker-of-a-new-password" })).await;
    worker.logged("the job's end", |line| line["job_kind"] == "send_reminder" && line["outcome"] == "done").await;
    let lines = [web.process.lines(), worker.lines()].concat().join("\n");
    assert!(lines.contains("/verify"), "the route is there, the query is not");
    for secret in [PASSWORD, &ada.email, &token, &cookie, &bearer, "a private message", "a marked name", "marker-of-"] {
        assert!(!lines.contains(secret), "{secret}: {lines}");
    }
}

#[tokio::test]
async fn a_process_whose_stdout_is_closed_serves_on() {
    let deploy = Deploy::new().await;
    let free = free_port();
    let mut command = tokio::process::Command::new(programs().join("web"));
    command
        .env_clear()
        .envs(&deploy.environment)
        .env("PORT", free.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut web = command.spawn().unwrap();
    drop(web.stdout.take());
    eventually("an answer", async || reqwest::get(format!("http://127.0.0.1:{free}/livez")).await.ok()).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(web.id().unwrap().cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(web.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_process_whose_log_nobody_reads_serves_on_and_counts_the_lines_that_are_lost() {
    let deploy = Deploy::new().await;
    let port = free_port();
    let mut command = tokio::process::Command::new(programs().join("web"));
    command.env_clear().envs(&deploy.environment).env("PORT", port.to_string()).env("RATE_LIMIT_REQUESTS", "1000000");
    let mut web = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let url = format!("http://127.0.0.1:{port}/version");
    eventually("an answer", async || reqwest::get(&url).await.ok()).await;
    // More than the pipe takes and than may wait.
    let ask = async |_| {
        let client = crate::support::deploy::client();
        for _ in 0..1_000 {
            assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
        }
    };
    futures_util::future::join_all((0..6).map(ask)).await;
    let mut lines = BufReader::new(web.stdout.take().unwrap()).lines();
    let mut reading = async || serde_json::from_str::<serde_json::Value>(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let line = reading().await;
            if line["lost"].is_u64() {
                return line;
            }
        }
    });
    assert!(told.await.expect("the loss is told")["lost"].as_u64().unwrap() > 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(web.id().unwrap().cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
    while reading().await["exit_status"] != 0 {}
    assert_eq!(web.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_resource_that_stays_away_is_told_once_and_not_each_second() {
    let deploy = Deploy::new().await.with("REDIS_URL", "redis://127.0.0.1:1/0");
    let web = deploy.web_unready().await;
    web.process.says("not ready: redis").await;
    // Looks are 400 ms apart: as many as would tell it again.
    for _ in 0..4 {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert_eq!(web.get("/readyz").await.status(), 503);
    }
    let told = web.process.lines().iter().filter(|line| line.contains("not ready: redis")).count();
    assert_eq!(told, 1);
}
