//! An upload is passed on as it comes in, for as long as something moves.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{nothing_left, sha256, stored};
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::{Deploy, eventually, store};

/// Sends the head of an upload, and leaves the body to the test.
async fn begin(web: &Web, cookie: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let head = format!(
        "POST /api/v1/files?name=slow HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let count = timeout(Duration::from_mins(1), stream.read(&mut bytes)).await.expect("an answer").unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

async fn receiving(deploy: &Deploy) {
    eventually("a row", async || {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files WHERE state = 'receiving'")
            .fetch_one(&mut deploy.database().await)
            .await
            .unwrap();
        (rows == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn slow_upload_outlives_the_request_timeout() {
    let deploy = Deploy::new().await;
    let (web, impatient) = (deploy.web().await, deploy.clone_with("REQUEST_TIMEOUT", "1s").web().await);
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&impatient, &cookie, 50).await;
    for _ in 0..50 {
        stream.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = answer(stream).await;
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains(&sha256(&[b'x'; 50])), "{answer}");
}

#[tokio::test]
async fn stalled_upload_is_cut_off_after_thirty_seconds() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&web, &cookie, 50).await;
    stream.write_all(b"x").await.unwrap();
    let started = Instant::now();
    let answer = answer(stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("slow-body"), "{answer}");
    assert!(started.elapsed() > Duration::from_secs(28), "{:?}", started.elapsed());
    nothing_left(&deploy).await;
}

#[tokio::test]
async fn client_that_hangs_up_leaves_nothing() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&web, &cookie, 20_000_000).await;
    stream.write_all(&vec![1; 12_000_000]).await.unwrap();
    receiving(&deploy).await;
    drop(stream);
    nothing_left(&deploy).await;
}

#[tokio::test]
async fn drain_finishes_an_upload() {
    let deploy = Deploy::new().await;
    let mut web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let mut stream = begin(&web, &cookie, 20).await;
    stream.write_all(b"0123456789").await.unwrap();
    receiving(&deploy).await;
    web.process.signal(nix::sys::signal::Signal::SIGTERM);
    web.process.says("draining").await;
    stream.write_all(b"0123456789").await.unwrap();
    assert!(answer(stream).await.starts_with("HTTP/1.1 201"));
    assert!(web.process.exit().await.success());
    assert_eq!(store::objects(&deploy).await.into_values().collect::<Vec<_>>(), [20]);
}

#[tokio::test]
async fn one_address_has_sixteen_uploads_at_a_time() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let cookie = ada.another_cookie().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let mut streams = Vec::new();
    for _ in 0..16 {
        let (mut stream, mut wait) = (begin(&web, &cookie, 100_000).await, wait.clone());
        streams.push(tokio::spawn(async move {
            // Something moves in each, however slow the machine is.
            let mut sent = 0;
            while timeout(Duration::from_millis(200), wait.wait_for(|go| *go)).await.is_err() {
                stream.write_all(b"x").await.unwrap();
                sent += 1;
            }
            stream.write_all(&vec![b'x'; 100_000 - sent]).await.unwrap();
            answer(stream).await
        }));
    }
    eventually("sixteen rows", async || {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&mut deploy.database().await).await.unwrap();
        (rows == 16).then_some(())
    })
    .await;
    assert!(answer(begin(&web, &cookie, 10).await).await.starts_with("HTTP/1.1 429"));
    assert_eq!(ada.get("/session").await.status(), 200, "others are served meanwhile");
    go.send_replace(true);
    for stream in streams {
        assert!(stream.await.unwrap().starts_with("HTTP/1.1 201"));
    }
    stored(&ada, "one more", "x").await;
}
