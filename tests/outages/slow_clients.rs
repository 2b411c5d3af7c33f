//! Clients that are slow, many, or gone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::process::programs;
use crate::support::{Deploy, PATIENCE, Process, eventually, free_port};

async fn connect(web: &Web) -> TcpStream {
    TcpStream::connect(("127.0.0.1", web.port())).await.unwrap()
}

fn resident_kb(web: &Web) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", web.process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Asks for a list of four megabytes and reads nothing of it.
async fn a_client_that_does_not_read(deploy: &Deploy, web: &Web) -> TcpStream {
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
async fn an_answer_that_is_not_read_is_cut_off_at_the_end_of_the_drain_and_counted() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut web = deploy.web().await;
    let _client = a_client_that_does_not_read(&deploy, &web).await;
    let started = Instant::now();
    assert_eq!(web.process.terminate().await, Some(1), "{:#?}", web.process.lines());
    assert!(started.elapsed() >= Duration::from_secs(1), "it must have had its time");
    assert!(web.process.lines().iter().any(|line| line.contains("1 request(s) were still being answered")), "{:#?}", web.process.lines());
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_is_finished_in_the_drain() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let mut client = a_client_that_does_not_read(&deploy, &web).await;
    web.process.signal(Signal::SIGTERM);
    web.process.says("draining").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() > 4_000_000 && answer.ends_with(b"}"), "{}", answer.len());
    assert_eq!(web.process.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_is_let_go_after_a_minute() {
    let deploy = Deploy::new().await.with("LOG_LEVEL", "info,app=debug");
    let web = deploy.web().await;
    let _client = a_client_that_does_not_read(&deploy, &web).await;
    // One whose answers are many and small, and lie in the process as it asks for more.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut many = socket.connect(format!("127.0.0.1:{}", web.port()).parse().unwrap()).await.unwrap();
    while let Ok(sent) = tokio::time::timeout(Duration::from_secs(1), many.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).await {
        sent.unwrap();
    }
    let let_go = || web.process.lines().iter().filter(|line| line.contains("its client takes too long")).count();
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(let_go(), 0, "they must have had their time");
    eventually("both are let go", async || (let_go() >= 2).then_some(())).await;
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_the_head_of_a_request_may_take() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (mut asked, mut refused) = (connect(&web).await, connect(&web).await);
    assert!(answer(&mut asked, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    // The body of a request that is refused comes behind the answer.
    let head = "POST /api/v1/tokens HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048577\r\n\r\n";
    assert!(answer(&mut refused, head).await.starts_with("HTTP/1.1 413"));
    refused.write_all(&vec![b' '; 1_048_577]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    for client in [&mut asked, &mut refused] {
        assert!(answer(client, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
}

/// What comes back first, which of a small answer is all.
async fn answer(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 8192];
    let count = client.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test]
async fn who_has_asked_before_the_listener_closes_is_answered() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    // While it sleeps, they connect and ask; as it wakes, it finds them and the signal.
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

#[tokio::test]
async fn a_request_that_is_not_all_there_holds_a_drain_no_longer_than_its_limit_and_does_not_count() {
    let deploy = Deploy::new().await.with("DRAIN_TIMEOUT", "1s");
    let mut web = deploy.web().await;
    let mut body = connect(&web).await;
    body.write_all(b"POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        .await
        .unwrap();
    let mut head = connect(&web).await;
    head.write_all(b"GET /livez HTTP/1.1\r\nho").await.unwrap();
    // Both have been read by the time that a third has its answer.
    assert_eq!(web.get("/livez").await.status(), 200);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    assert_eq!(web.process.terminate().await, Some(0), "{:#?}", web.process.lines());
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_request_in_chunks_that_is_worked_on_at_the_end_of_the_drain_counts() {
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
    assert!(web.process.lines().iter().any(|line| line.contains("1 request(s) were still being answered")), "{:#?}", web.process.lines());
}

#[tokio::test]
async fn five_hundred_clients_that_never_finish_their_requests_disturb_nobody() {
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
    // A byte a second: half of them would do so for ever.
    let trickle = tokio::spawn(async move {
        loop {
            for client in &mut slow {
                let _ = client.write_all(b"x").await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    for _ in 0..50 {
        let answer = tokio::time::timeout(Duration::from_secs(5), ada.get("/session")).await.expect("others are served");
        assert_eq!(answer.status(), 200);
    }
    let after = resident_kb(&web);
    assert!(after < before + 64 * 1024, "{before} kB before, {after} kB with 500 slow clients");
    // A header may take ten seconds, a request too; then they are gone.
    eventually("the slow ones are let go", async || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", web.process.pid())).unwrap().count();
        (files < 100).then_some(())
    })
    .await;
    trickle.abort();
}

async fn without_file_descriptors(program: &str) {
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
    process.says("cannot be accepted").await;
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
        let fields: Vec<u64> = stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // After the name and the state: utime and stime are the eleventh and twelfth numbers.
        fields[10] + fields[11]
    };
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(cpu() - before < 100, "it spins: {} ticks of 10 ms in two seconds", cpu() - before);
    drop(held);
    eventually("an answer", async || {
        let asking = reqwest::get(format!("http://127.0.0.1:{port}/readyz"));
        let answer = tokio::time::timeout(Duration::from_secs(2), asking).await.ok()?.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    assert_eq!(process.lines().iter().filter(|line| line.contains("cannot be accepted")).count(), 1);
}

#[tokio::test]
async fn without_file_descriptors_web_waits_says_so_once_and_recovers() {
    without_file_descriptors("web").await;
}

#[tokio::test]
async fn without_file_descriptors_worker_and_clock_do_the_same() {
    tokio::join!(without_file_descriptors("worker"), without_file_descriptors("clock"));
}

#[tokio::test]
async fn forty_log_ins_leave_no_memory_behind() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let before = resident_kb(&web);
    for _ in 0..40 {
        assert_eq!(ada.log_in().await.status(), 200);
    }
    // Each works on 19 MiB.
    let after = resident_kb(&web);
    assert!(after < before + 32 * 1024, "{before} kB before, {after} kB after 40 log-ins");
}
