//! Many concurrent connections and half-sent requests, most of them from one address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::person::{Person, problem};
use crate::support::{Deploy, EVENT_TIMEOUT, eventually, free_port};

const HALF_A_BODY: &str = "POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";

/// Connects from another address of this machine.
async fn connect_from(last: u8, port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap()
}

/// Whether `/livez` answers a client at this address within a second.
async fn is_live(last: u8, port: u16) -> bool {
    let asking = async {
        let mut client = connect_from(last, port).await;
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await?;
        std::io::Result::Ok(&answer == b"HTTP/1.1 200")
    };
    tokio::time::timeout(Duration::from_secs(1), asking).await.is_ok_and(|answer| answer.unwrap_or(false))
}

/// Reads until the connection ends or a problem is complete.
async fn answer(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !answer.ends_with(b"}") {
            match client.read(&mut buffer).await {
                Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(EVENT_TIMEOUT, reading).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The name of the problem in an answer.
fn slug(answer: &str) -> String {
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
    problem["type"].as_str().unwrap().replace("/problems/", "")
}

#[tokio::test]
async fn half_sent_bodies_block_no_other_request() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000);
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    let mut slow = Vec::new();
    // More than the limit of concurrent requests. They come from several addresses, because each has its own limit.
    for number in 0..560 {
        let mut client = connect_from(u8::try_from(2 + number % 20).unwrap(), web.port()).await;
        client.write_all(HALF_A_BODY.as_bytes()).await.unwrap();
        slow.push(client);
    }
    let sent = Instant::now();
    for _ in 0..20 {
        assert_eq!(ada.get("/session").await.status(), 200);
        assert_eq!(ada.request_reset().await.status(), 202);
    }
    assert!(sent.elapsed() < Duration::from_secs(3), "the bodies must still be pending: {:?}", sent.elapsed());
    let answers = join_all(slow.iter_mut().map(answer)).await;
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 408") && slug(answer) == "slow-body"), "{:#?}", answers[0]);
}

#[tokio::test]
async fn tiny_chunks_hold_little_memory() {
    let web = Deploy::new().await.web().await;
    let before = web.process.memory_kib("VmRSS:");
    let head = "POST /api/v1/accounts HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = "1\r\nx\r\n".repeat(300_000);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = connect_from(2, web.port()).await;
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(chunks.as_bytes()).await.unwrap();
        clients.push(client);
    }
    // The last chunk is missing, so the bodies are held until they count as stalled.
    let answers = join_all(clients.iter_mut().map(answer)).await;
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 408")), "{:#?}", answers[0]);
    let grown = web.process.memory_kib("VmHWM:") - before;
    assert!(grown < 20 * 1024, "{grown} KiB for 1.2 MB of bodies");
}

#[tokio::test]
async fn stalled_body_is_408_after_three_seconds() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let mut stalled = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    stalled.write_all(HALF_A_BODY.as_bytes()).await.unwrap();
    let (started, answer) = (Instant::now(), answer(&mut stalled).await);
    assert!(answer.starts_with("HTTP/1.1 408") && slug(&answer) == "slow-body", "{answer}");
    assert!(!answer.to_lowercase().contains("retry-after"), "{answer}");
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(2900) && took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test]
async fn address_may_send_sixty_four_concurrent_bodies() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let mut slow = Vec::new();
    for _ in 0..65 {
        let mut client = connect_from(9, web.port()).await;
        client.write_all(HALF_A_BODY.as_bytes()).await.unwrap();
        slow.push(client);
    }
    let answers = join_all(slow.iter_mut().map(answer)).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 429")).collect();
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert!(refused[0].to_lowercase().contains("retry-after: 1"), "{}", refused[0]);
    let other = Person::stranger(&web);
    problem(other.log_in().await, 401, "wrong-credentials").await;
}

/// Opens this many idle connections from one address, and checks that this and another address are still answered.
async fn crowd(port: u16, connections: u32) {
    let mut idle = Vec::new();
    for _ in 0..connections {
        idle.push(connect_from(2, port).await);
    }
    // The last connections may not be accepted yet.
    eventually("an answer", async || (is_live(2, port).await && is_live(3, port).await).then_some(())).await;
    for _ in 0..5 {
        assert!(is_live(2, port).await && is_live(3, port).await, "no response with {connections} idle connections");
    }
}

#[tokio::test]
async fn new_clients_replace_idle_connections() {
    let deploy = Deploy::new().await.with("TRUSTED_PROXIES", 1);
    let web = deploy.web().await;
    crowd(web.port(), 4_120).await;
}

#[tokio::test]
async fn crowded_address_loses_only_its_own_connections() {
    let metrics = free_port();
    let web = Deploy::new().await.with("METRICS_PORT", metrics).web().await;
    crowd(metrics, 1_100).await;
    // A connection of another address stays open. It has sent a request before, so it may be idle.
    let mut other = connect_from(200, web.port()).await;
    for pressure in [true, false] {
        other.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(answer(&mut other).await.starts_with("HTTP/1.1 404"));
        if pressure {
            crowd(web.port(), 1_100).await;
        }
    }
}

#[tokio::test]
async fn hash_concurrency_limits_parallel_hashing() {
    // Peak memory in KiB after one log-in, and after twenty-four concurrent ones.
    let peaks = async |at_a_time: u32| {
        let web = Deploy::new().await.with("HASH_CONCURRENCY", at_a_time).web().await;
        let peak = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", web.process.pid())).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let ada = Person::unverified(&web).await;
        let before = peak();
        let answers = join_all((0..24).map(|_| ada.log_in())).await;
        assert!(answers.iter().all(|answer| answer.status() == 200), "{answers:#?}");
        (before, peak())
    };
    let ((one_before, one), (_, eight)) = (peaks(1).await, peaks(8).await);
    // Each hash needs 19 MiB.
    assert!(one < one_before + 19 * 1024, "{one_before} KiB before, {one} KiB after");
    assert!(eight > one + 3 * 19 * 1024, "one at a time takes {one} KiB, eight take {eight} KiB");
}

#[tokio::test]
async fn sending_client_does_not_count_as_idle() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    // Its body is still incomplete when the address exceeds its limit of connections.
    let mut sending = connect_from(2, web.port()).await;
    let body = r#"{"email":"ada@example.com","password":"a guess at a password"}"#;
    let head =
        format!("POST /api/v1/session HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    sending.write_all(head.as_bytes()).await.unwrap();
    let crowding = async {
        let mut idle = Vec::new();
        for _ in 0..1_100 {
            idle.push(connect_from(2, web.port()).await);
        }
        idle
    };
    let mut crowding = std::pin::pin!(crowding);
    let mut sent = 0;
    // A byte a second does not count as a stall.
    let _idle = loop {
        sending.write_all(&body.as_bytes()[sent..=sent]).await.unwrap();
        sent += 1;
        if let Ok(idle) = tokio::time::timeout(Duration::from_secs(1), &mut crowding).await {
            break idle;
        }
    };
    sending.write_all(&body.as_bytes()[sent..]).await.unwrap();
    let answer = answer(&mut sending).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}
