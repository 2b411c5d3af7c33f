//! An upload is streamed to the store as it arrives, and continues as long as data keeps arriving.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{no_leftovers, sha256, stored, upload};
use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::{Deploy, eventually, store};

/// Sends the head of an upload. The test sends the body.
async fn begin(web: &Web, cookie: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let head = format!(
        "POST /api/v1/files?name=slow HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn response(mut stream: impl AsyncRead + Unpin) -> String {
    let mut bytes = vec![0; 4096];
    let count = timeout(Duration::from_mins(1), stream.read(&mut bytes)).await.expect("a response").unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// Waits until so many uploads are in progress.
async fn receiving(deploy: &Deploy, number: i64) {
    eventually("the rows", async || {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files WHERE state = 'receiving'")
            .fetch_one(&mut deploy.database().await)
            .await
            .unwrap();
        (rows == number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn slow_upload_outlives_the_request_timeout() {
    let deploy = Deploy::new().await;
    let (web, short_timeout) = (deploy.web().await, deploy.clone_with("REQUEST_TIMEOUT", "1s").web().await);
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&short_timeout, &cookie, 50).await;
    for _ in 0..50 {
        stream.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let response = response(stream).await;
    assert!(response.starts_with("HTTP/1.1 201") && response.contains(&sha256(&[b'x'; 50])), "{response}");
}

#[tokio::test]
async fn stalled_upload_times_out_after_thirty_seconds() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stalled = begin(&web, &cookie, 50).await;
    stalled.write_all(b"x").await.unwrap();
    // A byte now and then is no progress.
    let (reading, mut writing) = begin(&web, &cookie, 500).await.into_split();
    let trickle = tokio::spawn(async move {
        while writing.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let started = Instant::now();
    for response in [response(stalled).await, response(reading).await] {
        assert!(response.starts_with("HTTP/1.1 408") && response.contains("slow-body"), "{response}");
        assert!(started.elapsed() > Duration::from_secs(28), "{:?}", started.elapsed());
    }
    trickle.abort();
    no_leftovers(&deploy).await;
}

#[tokio::test]
async fn account_has_eight_uploads_in_progress() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let (ada, eve) = (Person::known(&deploy, &web).await, Person::known(&deploy, &web).await);
    let cookie = ada.another_cookie().await;
    let mut streams = Vec::new();
    for number in 1..=8 {
        let mut stream = begin(&web, &cookie, 50).await;
        stream.write_all(b"x").await.unwrap();
        streams.push(stream);
        receiving(&deploy, number).await;
    }
    problem(upload(&ada, "one more", "x").await, 429, "too-many-requests").await;
    stored(&eve, "another account's", "x").await;
    // Its place is free when an upload has ended.
    drop(streams.pop());
    receiving(&deploy, 7).await;
    stored(&ada, "one more", "x").await;
}

#[tokio::test]
async fn disconnected_client_leaves_nothing() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&web, &cookie, 20_000_000).await;
    stream.write_all(&vec![1; 12_000_000]).await.unwrap();
    receiving(&deploy, 1).await;
    drop(stream);
    no_leftovers(&deploy).await;
}

#[tokio::test]
async fn drain_finishes_an_upload() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&web, &cookie, 20).await;
    stream.write_all(b"0123456789").await.unwrap();
    receiving(&deploy, 1).await;
    web.process.signal(nix::sys::signal::Signal::SIGTERM);
    web.process.says("draining").await;
    stream.write_all(b"0123456789").await.unwrap();
    assert!(response(stream).await.starts_with("HTTP/1.1 201"));
    assert!(web.process.exit().await.success());
    assert_eq!(store::objects(&deploy).await.into_values().collect::<Vec<_>>(), [20]);
}

#[tokio::test]
async fn one_address_may_run_sixteen_uploads() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let (ada, eve) = (Person::known(&deploy, &web).await, Person::known(&deploy, &web).await);
    // An account may run eight.
    let cookies = [ada.another_cookie().await, eve.another_cookie().await];
    let (go, wait) = tokio::sync::watch::channel(false);
    let mut streams = Vec::new();
    for number in 0..16 {
        let (mut stream, mut wait) = (begin(&web, &cookies[number % 2], 100_000).await, wait.clone());
        streams.push(tokio::spawn(async move {
            // Each keeps sending, so that none stalls on a slow machine.
            let mut sent = 0;
            while timeout(Duration::from_millis(200), wait.wait_for(|go| *go)).await.is_err() {
                stream.write_all(b"x").await.unwrap();
                sent += 1;
            }
            stream.write_all(&vec![b'x'; 100_000 - sent]).await.unwrap();
            response(stream).await
        }));
    }
    eventually("sixteen rows", async || {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&mut deploy.database().await).await.unwrap();
        (rows == 16).then_some(())
    })
    .await;
    let third = Person::known(&deploy, &web).await.another_cookie().await;
    assert!(response(begin(&web, &third, 10).await).await.starts_with("HTTP/1.1 429"));
    assert_eq!(ada.get("/session").await.status(), 200, "other requests are served meanwhile");
    go.send_replace(true);
    for stream in streams {
        assert!(stream.await.unwrap().starts_with("HTTP/1.1 201"));
    }
    stored(&ada, "one more", "x").await;
}
