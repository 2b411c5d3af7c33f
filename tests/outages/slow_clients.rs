//! Clients that are slow, and drains, connections and file descriptors with them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::clients::get;
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, EVENT_TIMEOUT, Process, eventually, free_port};

async fn connect(web: &Web) -> TcpStream {
    TcpStream::connect(("127.0.0.1", web.port())).await.unwrap()
}

fn resident_kb(web: &Web) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", web.process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Requests a list of four megabytes and reads nothing of it.
async fn client_that_does_not_read(deploy: &Deploy, web: &Web) -> TcpStream {
    let cookie = Person::stranger(web).cookie().await;
    let fill = "INSERT INTO api_tokens (id, token_hash, account_id, name, scopes, expires_at)
        SELECT gen_random_uuid(), n::text::bytea, id, repeat('\u{1f514}', 10000), '{}', now() + interval '1 day' FROM accounts, generate_series(1, 100) AS n";
    sqlx::query(fill).execute(&mut deploy.database().await).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(format!("127.0.0.1:{}", web.port()).parse().unwrap()).await.unwrap();
    let request = format!("GET /api/v1/tokens?limit=100 HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    web.process.logged("the answer", |line| line["route"] == "/api/v1/tokens" && line["status"] == 200).await;
    client
}

#[tokio::test]
async fn unread_response_is_aborted_by_drain_timeout() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut web = deploy.web().await;
    let _client = client_that_does_not_read(&deploy, &web).await;
    let started = Instant::now();
    assert_eq!(web.process.terminate().await, Some(1), "{:#?}", web.process.lines());
    assert!(started.elapsed() >= Duration::from_secs(1), "the drain must last until its timeout");
    assert!(web.process.lines().iter().any(|line| line.contains("1 request(s) on web were cut off")), "{:#?}", web.process.lines());
}

#[tokio::test]
async fn slowly_read_response_finishes_during_drain() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let mut client = client_that_does_not_read(&deploy, &web).await;
    web.process.signal(Signal::SIGTERM);
    web.process.says("draining").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut answer = Vec::new();
    tokio::time::timeout(EVENT_TIMEOUT, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() > 4_000_000 && answer.ends_with(b"}"), "{}", answer.len());
    assert_eq!(web.process.exit().await.code(), Some(0));
}

#[tokio::test]
async fn client_that_never_reads_is_disconnected() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "info,app=debug");
    let web = deploy.web().await;
    let _client = client_that_does_not_read(&deploy, &web).await;
    // A client that sends many requests and reads none of the small responses.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut many = socket.connect(format!("127.0.0.1:{}", web.port()).parse().unwrap()).await.unwrap();
    while let Ok(sent) = tokio::time::timeout(Duration::from_secs(1), many.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).await {
        sent.unwrap();
    }
    let disconnected = || web.process.lines().iter().filter(|line| line.contains("its client takes too long")).count();
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(disconnected(), 0, "the clients were disconnected too early");
    eventually("both are disconnected", async || (disconnected() >= 2).then_some(())).await;
}

#[tokio::test]
async fn idle_connection_outlives_the_head_timeout() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (mut asked, mut refused) = (connect(&web).await, connect(&web).await);
    assert!(answer(&mut asked, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    // The client sends the body of a rejected request after the response.
    let head = "POST /api/v1/tokens HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048577\r\n\r\n";
    assert!(answer(&mut refused, head).await.starts_with("HTTP/1.1 413"));
    refused.write_all(&vec![b' '; 1_048_577]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    for client in [&mut asked, &mut refused] {
        assert!(answer(client, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
}

/// Sends a request, and returns the first part of the response. A small response has only one part.
async fn answer(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 8192];
    let count = client.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test]
async fn drain_answers_requests_already_sent() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    // The clients connect and send requests while the process is stopped. When it continues, it has a pending SIGTERM, too.
    web.process.signal(Signal::SIGSTOP);
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = connect(&web).await;
        client.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    web.process.signal(Signal::SIGTERM);
    web.process.signal(Signal::SIGCONT);
    for mut client in clients {
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(web.process.exit().await.code(), Some(0));
}

/// It is not counted as aborted, so the exit status is 0.
#[tokio::test]
async fn incomplete_request_does_not_extend_the_drain() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut web = deploy.web().await;
    let mut body = connect(&web).await;
    body.write_all(b"POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        .await
        .unwrap();
    let mut head = connect(&web).await;
    head.write_all(b"GET /livez HTTP/1.1\r\nho").await.unwrap();
    // Both have been read by the time a third client has its response.
    assert_eq!(web.get("/livez").await.status(), 200);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    assert_eq!(web.process.terminate().await, Some(0), "{:#?}", web.process.lines());
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn chunked_request_counts_at_drain_timeout() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut web = deploy.web().await;
    let cookie = Person::known(&deploy, &web).await.cookie().await;
    let mut database = deploy.database().await;
    let mut lock = sqlx::Connection::begin(&mut database).await.unwrap();
    sqlx::query("LOCK TABLE api_tokens").execute(&mut *lock).await.unwrap();
    let body = r#"{"name": "x", "scopes": ["tokens:read"], "expires_in_days": 1}"#;
    let request = format!(
        "POST /api/v1/tokens HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let mut client = connect(&web).await;
    client.write_all(request.as_bytes()).await.unwrap();
    deploy.waits_for_a_lock().await;
    assert_eq!(web.process.terminate().await, Some(1), "{:#?}", web.process.lines());
    assert!(web.process.lines().iter().any(|line| line.contains("1 request(s) on web were cut off")), "{:#?}", web.process.lines());
}

#[tokio::test]
async fn unfinished_requests_do_not_delay_others() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let before = resident_kb(&web);
    let mut slow = Vec::new();
    for number in 0..500 {
        let mut client = connect(&web).await;
        let part = if number % 2 == 0 {
            "GET /api/v1/session HTTP/1.1\r\nx-slow: "
        } else {
            "POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{"
        };
        client.write_all(part.as_bytes()).await.unwrap();
        slow.push(client);
    }
    // A byte a second keeps such requests incomplete.
    let trickle = tokio::spawn(async move {
        loop {
            for client in &mut slow {
                let _ = client.write_all(b"x").await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    for _ in 0..50 {
        let answer = tokio::time::timeout(Duration::from_secs(5), ada.get("/session")).await.expect("other clients are served");
        assert_eq!(answer.status(), 200);
    }
    let after = resident_kb(&web);
    assert!(after < before + 64 * 1024, "{before} kB before, {after} kB with 500 slow clients");
    // A head may take ten seconds, and so may a request. Then web closes the connections.
    eventually("the slow clients are disconnected", async || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", web.process.pid())).unwrap().count();
        (files < 100).then_some(())
    })
    .await;
    trickle.abort();
}

async fn exhaust_file_descriptors(program: &str) {
    let port = free_port();
    let deploy = Deploy::new().await.with("DATABASE_POOL_SIZE", 2).with("RATE_LIMIT_REQUESTS", 1_000_000);
    let deploy = deploy.with(if program == "web" { "PORT" } else { "METRICS_PORT" }, port);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("ulimit -n 64; exec {}", programs().join(program).display())]).env_clear().envs(&deploy.environment);
    let process = Process::spawn(command);
    process.logged("ready", |line| line["message"] == "ready").await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    process.says("cannot accept connections").await;
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        let fields: Vec<u64> = stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // After the name and the state, utime and stime are the eleventh and twelfth numbers.
        fields[10] + fields[11]
    };
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(cpu() - before < 100, "a busy loop: {} ticks of 10 ms in two seconds", cpu() - before);
    drop(held);
    eventually("an answer", async || {
        let asking = get(format!("http://127.0.0.1:{port}/readyz"));
        let answer = tokio::time::timeout(Duration::from_secs(2), asking).await.ok()?.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    assert_eq!(process.lines().iter().filter(|line| line.contains("cannot accept connections")).count(), 1);
}

#[tokio::test]
async fn web_recovers_from_exhausted_file_descriptors() {
    exhaust_file_descriptors("web").await;
}

#[tokio::test]
async fn worker_and_clock_recover_from_exhausted_descriptors() {
    tokio::join!(exhaust_file_descriptors("worker"), exhaust_file_descriptors("clock"));
}

#[tokio::test]
async fn log_ins_do_not_leak_memory() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let before = resident_kb(&web);
    for _ in 0..40 {
        assert_eq!(ada.log_in().await.status(), 200);
    }
    // Each hash needs 19 MiB.
    let after = resident_kb(&web);
    assert!(after < before + 32 * 1024, "{before} kB before, {after} kB after 40 log-ins");
}
