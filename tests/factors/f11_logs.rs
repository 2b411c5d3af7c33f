//! XI. Logs: a stream of events on stdout. The platform decides where it goes.
//!
//! Violated by a log file, a line that is not an event, a buffer, a secret, or a request that fails because logging does.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::balancer::has;
use crate::support::clients::get;
use crate::support::deploy::{Web, client};
use crate::support::person::{PASSWORD, Person};
use crate::support::process::programs;
use crate::support::{Deploy, EVENT_TIMEOUT, Process, eventually, free_port};

#[tokio::test]
async fn log_lines_are_complete_json_objects() {
    let deploy = Deploy::new().await.with("RELEASE_VERSION", "v17").with("HOSTNAME", "somewhere");
    let mut web = deploy.web().await;
    let (mut worker, mut clock) = (deploy.start("worker"), deploy.start("clock"));
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
    for (name, process) in [("web", &mut web.process), ("worker", &mut worker), ("clock", &mut clock)] {
        process.terminate().await;
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
async fn log_lines_are_written_without_delay() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let started = Instant::now();
    for number in 0..10 {
        let id = format!("the-line-{number}");
        client().get(format!("{}/version", web.url)).header("x-request-id", &id).send().await.unwrap();
        web.process.logged("its line", |line| line["caller_request_id"] == id.as_str()).await;
    }
    // With a buffer that is flushed every second, this would take ten seconds.
    assert!(started.elapsed() < Duration::from_secs(5), "log lines are delayed: {:?}", started.elapsed());
    assert_eq!(web.process.ended(), None, "the lines appear while web runs");
}

#[tokio::test]
async fn processes_open_no_file_for_writing() {
    if !has("strace") {
        return;
    }
    let deploy = Deploy::new().await;
    let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir(&folder).unwrap();
    let start = |name: &str| {
        let mut command = Command::new("strace");
        // -D makes the program our own child, and strace a grandchild that ends with it.
        command.args(["-D", "-f", "-qq", "-e", "trace=openat,?open,?creat", "-o"]).arg(folder.join(name));
        command.arg(programs().join(name)).env_clear().envs(&deploy.environment);
        Process::spawn(command)
    };
    let (web, worker, clock) = (Web::of(start("web")).await, start("worker"), start("clock"));
    Person::verified(&deploy, &web).await;
    clock.says("is new").await;
    for (name, mut process) in [("web", web.process), ("worker", worker), ("clock", clock)] {
        process.terminate().await;
        let seen = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(seen.contains("O_RDONLY"), "the trace is empty");
        let writes = |line: &&str| ["O_WRONLY", "O_RDWR", "O_CREAT", "creat("].iter().any(|word| line.contains(word));
        let written: Vec<_> = seen.lines().filter(writes).filter(|line| !line.contains("\"/dev/")).collect();
        assert!(written.is_empty(), "{name} opens a file to write to: {written:#?}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn logs_hold_no_secrets_or_personal_data() {
    // At the most verbose level, libraries included.
    let deploy = Deploy::new().await.with("LOG_LEVEL", "trace");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::verified(&deploy, &web).await;
    let token = deploy.mail.to(&ada.email, "Did you sign up?").await.token();
    web.get(&format!("/verify?token={token}")).await;
    ada.request_reset().await;
    let reset = deploy.mail.to(&ada.email, "Set a new password").await.token();
    let cookie = ada.log_in().await.headers()["set-cookie"].to_str().unwrap().split([';', '=']).nth(1).unwrap().to_owned();
    let minted = ada.post("/tokens", serde_json::json!({ "name": "a marked name", "scopes": ["tokens:read"], "expires_in_days": 1 })).await;
    let minted: serde_json::Value = minted.json().await.unwrap();
    let bearer = minted["secret"].as_str().unwrap_or_else(|| panic!("{minted}")).to_owned();
    let asked = client().get(format!("{}/api/v1/tokens?limit=5&marker=of-a-query", web.url)).bearer_auth(&bearer);
    asked.header("user-agent", "marker-of-a-header").send().await.unwrap();
    ada.patch("/account", serde_json::json!({ "email": format!("new-{}", ada.email) })).await;
    ada.post("/account/password", serde_json::json!({ "old": "marker-of-a-wrong-password", "new": "marker-of-a-new-password" })).await;
    worker.logged("the job's end", |line| line["job_kind"] == "send_password_reset" && line["outcome"] == "done").await;
    let lines = [web.process.lines(), worker.lines()].concat().join("\n");
    assert!(lines.contains("/verify"), "the route is logged");
    for secret in [PASSWORD, &ada.email, &token, &reset, &cookie, &bearer, "a marked name", "marker-of-"] {
        assert!(!lines.contains(secret), "{secret}: {lines}");
    }
}

#[tokio::test]
async fn closed_stdout_does_not_stop_web() {
    let deploy = Deploy::new().await;
    let free = free_port();
    let mut command = Command::new(programs().join("web"));
    command
        .env_clear()
        .envs(&deploy.environment)
        .env("PORT", free.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut web = command.spawn().unwrap();
    drop(web.stdout.take());
    let url = format!("http://127.0.0.1:{free}/version");
    eventually("an answer", async || get(&url).await.ok()).await;
    // Each response writes a line to the closed pipe.
    for _ in 0..5 {
        assert_eq!(get(&url).await.unwrap().status(), 200);
    }
    assert_eq!(web.try_wait().unwrap(), None);
}

/// A `web` whose log nobody reads, and which has already lost lines.
async fn unread_web(deploy: &Deploy) -> Child {
    let (port, metrics) = (free_port(), free_port());
    let mut command = Command::new(programs().join("web"));
    command.env_clear().envs(&deploy.environment).env("PORT", port.to_string()).env("RATE_LIMIT_REQUESTS", "1000000");
    command.env("METRICS_PORT", metrics.to_string());
    let web = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let url = format!("http://127.0.0.1:{port}/version");
    eventually("an answer", async || get(&url).await.ok()).await;
    // More lines than the pipe and the buffer hold, from requests sent at once on one connection.
    let (requests, last) = ("GET /version HTTP/1.1\r\nhost: x\r\n", "connection: close\r\n\r\n");
    let requests = format!("{requests}\r\n").repeat(4_999) + requests + last;
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut answers, mut asking) = connection.split();
    let mut received = Vec::new();
    let (asked, answered) = tokio::join!(asking.write_all(requests.as_bytes()), answers.read_to_end(&mut received));
    asked.and(answered).unwrap();
    assert_eq!(String::from_utf8(received).unwrap().matches("HTTP/1.1 200 OK").count(), 5_000);
    // The metrics report the loss, too.
    eventually("the metric", async || {
        let text = get(format!("http://127.0.0.1:{metrics}/metrics")).await.ok()?.text().await.ok()?;
        let lost = text.lines().find_map(|line| line.strip_prefix("log_lines_lost_total ")?.parse::<f64>().ok())?;
        (lost > 0.0).then_some(())
    })
    .await;
    web
}

#[tokio::test]
async fn unread_log_does_not_hold_the_exit() {
    let deploy = Deploy::new().await;
    let mut web = unread_web(&deploy).await;
    let pid = Pid::from_raw(i32::try_from(web.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(5), web.wait()).await;
    assert_eq!(exit.expect("it waits three seconds at most").unwrap().code(), Some(0));
}

#[tokio::test]
async fn unread_log_never_blocks_and_counts_losses() {
    let deploy = Deploy::new().await;
    let mut web = unread_web(&deploy).await;
    let mut lines = BufReader::new(web.stdout.take().unwrap()).lines();
    let mut reading = async || serde_json::from_str::<serde_json::Value>(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let loss = tokio::time::timeout(EVENT_TIMEOUT, async {
        loop {
            let line = reading().await;
            if line["lost"].is_u64() {
                return line;
            }
        }
    });
    assert!(loss.await.expect("the loss is logged")["lost"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn processes_sharing_a_pipe_never_mix_lines() {
    let deploy = Deploy::new().await;
    let (reader, writer) = std::io::pipe().unwrap();
    let start = async || {
        let port = free_port();
        let mut command = Command::new(programs().join("web"));
        command.env_clear().envs(&deploy.environment).env("PORT", port.to_string()).env("RATE_LIMIT_REQUESTS", "1000000");
        let web = command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).kill_on_drop(true).spawn().unwrap();
        eventually("an answer", async || get(format!("http://127.0.0.1:{port}/version")).await.ok()).await;
        (web, port)
    };
    let (mut first, mut second) = (start().await, start().await);
    drop(writer);
    // More than the pipe holds, so that both processes block in the middle of their output.
    for port in [first.1, second.1] {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let requests =
            "GET /version HTTP/1.1\r\nhost: x\r\n\r\n".repeat(999) + "GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let (mut answers, mut asking) = connection.split();
        let mut received = Vec::new();
        let (asked, answered) = tokio::join!(asking.write_all(requests.as_bytes()), answers.read_to_end(&mut received));
        asked.and(answered).unwrap();
    }
    let reading = tokio::task::spawn_blocking(|| std::io::read_to_string(reader).unwrap());
    for (web, _) in [&mut first, &mut second] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(web.id().unwrap().cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
        web.wait().await.unwrap();
    }
    let lines = reading.await.unwrap();
    assert!(lines.matches("\"route\":\"/version\"").count() >= 2_000, "a line for each request: {}", lines.len());
    for line in lines.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line.is_object()), "mixed: {line}");
    }
}

#[tokio::test]
async fn lasting_outage_is_logged_once() {
    let deploy = Deploy::new().await.with("REDIS_URL", "redis://127.0.0.1:1/0");
    let web = deploy.web_unready().await;
    web.process.says("not ready: redis").await;
    // Checks are 400 ms apart, so several of them fail in this time.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(web.get("/readyz").await.status(), 503);
    }
    let count = web.process.lines().iter().filter(|line| line.contains("not ready: redis")).count();
    assert_eq!(count, 1);
}
