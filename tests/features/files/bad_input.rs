//! What clients send that is wrong, and a store that refuses, is full, slow, gone: one answer, one line, nothing left behind.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use futures_util::stream;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{PART, content, looked_into, noise, nothing_left, path, shown, stored, upload};
use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::store::{self, Store};
use crate::support::{Deploy, Proxy};

#[tokio::test]
async fn names_are_text_and_never_a_path() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let long = "ä".repeat(127) + "x";
    let longer = "ä".repeat(128);
    for name in [&*long, "...", ".hidden", "a\\b", "C:", "名前.txt", "שם", "😀", "a\nb", "%2e%2e%2f", "con", " "] {
        assert_eq!(stored(&ada, name, "x").await["name"], name);
    }
    for name in ["", ".", "..", "/", "a/b", "../../etc/passwd", "a\0b", &longer] {
        let problem = problem(upload(&ada, name, "x").await, 422, "invalid-input").await;
        assert_eq!(problem["errors"][0]["field"], "name", "{name:?}: {problem}");
    }
    problem(ada.request(Method::POST, "/files").body("x").send().await.unwrap(), 422, "invalid-input").await;
    let objects = store::objects(&deploy).await;
    assert_eq!(objects.len(), 12, "what was refused has touched nothing: {objects:?}");
}

/// Sends raw bytes after the head of an upload, hangs up for writing, and gives the answer.
async fn raw(web: &Web, ada: &Person, head: &str, body: &[u8]) -> String {
    let cookie = ada.another_cookie().await;
    let mut stream = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let head = format!(
        "POST /api/v1/files?name=raw HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\nconnection: close\r\n{head}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn body_shorter_than_it_said_leaves_nothing() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    for (head, body) in [
        ("content-length: 100", &b"short"[..]),
        ("content-length: 20000000", &vec![1; 11_000_000]),
        ("transfer-encoding: chunked", b"5\r\nshort\r\n"),
        ("transfer-encoding: chunked", b"no chunk\r\n"),
    ] {
        let answer = raw(&web, &ada, head, body).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    nothing_left(&deploy).await;
}

#[tokio::test]
async fn body_longer_than_it_said_is_cut_there() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let answer = raw(&web, &ada, "content-length: 5", b"exactly").await;
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains("\"size\":5"), "{answer}");
    assert_eq!(store::objects(&deploy).await.into_values().collect::<Vec<_>>(), [5]);
}

async fn with_digest(ada: &Person, digest: &str, content: Vec<u8>) -> Response {
    ada.request(Method::POST, "/files?name=x").header("content-digest", digest).body(content).send().await.unwrap()
}

#[tokio::test]
async fn content_digest_is_held_against_the_content() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let large = noise(7, PART + 100);
    let sha256 = |content: &[u8]| format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(content)));
    let sha512 = |content: &[u8]| format!("sha-512=:{}:", STANDARD.encode(Sha512::digest(content)));
    for wrong in [sha256(b"other"), sha512(b"other"), format!("{}, {}", sha256(&large), sha512(b"other")), "sha-256=:c2hvcnQ=:".to_owned()]
    {
        problem(with_digest(&ada, &wrong, large.clone()).await, 400, "digest-mismatch").await;
    }
    for malformed in ["sha-256", "sha-256=x", "sha-256=:!:", "", "sha-256=:YQ==:,,"] {
        problem(with_digest(&ada, malformed, b"x".to_vec()).await, 400, "malformed").await;
    }
    nothing_left(&deploy).await;
    for right in
        [sha256(&large), sha512(&large), format!("md5=:YQ==:, {}, {}", sha512(&large), sha256(&large)), "unixsum=:YQ==:".to_owned()]
    {
        assert_eq!(with_digest(&ada, &right, large.clone()).await.status(), 201, "{right}");
    }
}

#[tokio::test]
async fn file_past_the_limit_is_refused() {
    let deploy = Deploy::new().await.with("FILE_SIZE_LIMIT", "6MiB");
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let limit = 6 * 1024 * 1024;
    problem(upload(&ada, "x", vec![0; limit + 1]).await, 413, "file-too-large").await;
    // Nobody knows its length before its end.
    let pieces = stream::iter((0..=limit / 65536).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 65536])));
    problem(upload(&ada, "x", reqwest::Body::wrap_stream(pieces)).await, 413, "file-too-large").await;
    nothing_left(&deploy).await;
    stored(&ada, "x", vec![0; limit]).await;
}

#[tokio::test]
async fn of_two_uploads_past_the_quota_one_is_refused() {
    let deploy = Deploy::new().await.with("FILE_QUOTA", "1000KiB");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let pieces = |length: usize| {
        let pieces = stream::iter((0..length).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1024])));
        reqwest::Body::wrap_stream(pieces)
    };
    let both = join_all([upload(&ada, "one", pieces(600)), upload(&ada, "two", pieces(600))]).await;
    let mut statuses: Vec<_> = both.iter().map(|answer| answer.status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403]);
    for answer in both.into_iter().filter(|answer| answer.status() == 403) {
        problem(answer, 403, "quota-reached").await;
    }
    // Known before a byte is sent, and found out in the middle.
    problem(upload(&ada, "three", vec![0; 401 * 1024]).await, 403, "quota-reached").await;
    problem(upload(&ada, "three", pieces(401)).await, 403, "quota-reached").await;
    stored(&ada, "to the last byte", vec![0; 400 * 1024]).await;
    problem(upload(&ada, "one byte", "x").await, 403, "quota-reached").await;
    stored(&ada, "none", "").await;
    let list: Value = ada.get("/files").await.json().await.unwrap();
    let first = list["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(ada.delete(&path(&first)).await.status(), 204);
    stored(&ada, "there is room again", vec![0; 600 * 1024]).await;
    worker.logged("the removal", |line| line["job_kind"] == "remove_file" && line["outcome"] == "done").await;
    let another = Person::known(&deploy, &web).await;
    stored(&another, "another's quota is another", vec![0; 1000 * 1024]).await;
}

#[tokio::test]
async fn unverified_address_stores_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    problem(upload(&ada, "x", "x").await, 403, "email-not-verified").await;
    assert!(store::objects(&deploy).await.is_empty());
}

/// The head of a PNG of so many pixels, and nothing behind it.
fn head_of_png(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        png.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        let body = [kind, data].concat();
        let crc = body
            .iter()
            .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())));
        png.extend(body);
        png.extend((!crc).to_be_bytes());
    };
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 0]].concat());
    chunk(b"IDAT", &[0x78, 0x9c, 0x63, 0, 0]);
    chunk(b"IEND", &[]);
    png
}

#[tokio::test]
async fn images_that_are_none_or_too_much_are_stored_with_a_remark() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let mut cut = super::photo(500, 500);
    cut.truncate(300);
    for (name, bytes, size, remark) in [
        ("huge.png", head_of_png(60_000, 60_000), json!(60_000), "60000 × 60000 pixels are more than 40000000"),
        ("empty.png", head_of_png(600, 600), json!(600), "the image cannot be decoded"),
        ("cut.jpg", cut, Value::Null, "no image that can be decoded"),
        ("head.webp", b"RIFF\x10\0\0\0WEBPVP8 nothing".to_vec(), Value::Null, "no image that can be decoded"),
        ("large.gif", [b"GIF89a".to_vec(), vec![0; 33 * 1024 * 1024]].concat(), Value::Null, "an image of more than"),
    ] {
        let file = stored(&ada, name, bytes.clone()).await;
        let seen = looked_into(&ada, &file).await;
        assert!(seen["remark"].as_str().unwrap().contains(remark), "{name}: {seen}");
        assert_eq!((&seen["width"], &seen["thumbnails"]), (&size, &json!([])), "{name}: {seen}");
        assert!(content(&ada, &file).await == bytes, "{name} is there all the same");
        problem(ada.get(&format!("{}/thumbnail", path(&file))).await, 404, "not-found").await;
    }
    assert!(worker.lines().iter().all(|line| !line.contains("\"outcome\":\"failed\"")), "{:#?}", worker.lines());
}

#[tokio::test]
async fn clients_word_for_the_media_type_counts_for_nothing() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for lie in ["image/png", "text/html", "application/json", "multipart/form-data; boundary=x", "nonsense"] {
        let answer = ada.request(Method::POST, "/files?name=x.html").header("content-type", lie).body("words").send().await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap()["media_type"], "text/plain", "{lie}");
    }
}

/// Uploads while the store does not do its part: small and in parts. Both are 503, with one line each; then heals it, and
/// nothing is left behind.
async fn refused_by_the_store(deploy: &Deploy, web: &Web, ada: &Person) {
    for length in [100, 2 * PART + 1] {
        // The connection is not used again: the answer comes before the body's end.
        let request = ada.request(Method::POST, "/files?name=x").header("connection", "close").body(noise(1, length));
        let answer = request.send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let problem = problem(answer, 503, "unavailable").await;
        assert!(!problem.to_string().contains("store"), "clients learn nothing of the inside: {problem}");
        web.process.logged("the access line", |line| line["request_id"] == id && line["status"] == 503).await;
        let told = web.process.lines().into_iter().filter(|line| line.contains(&id) && !line.contains("\"status\":")).collect::<Vec<_>>();
        assert!(told.len() == 1 && told[0].contains("ERROR") && told[0].contains("the object store did not"), "{told:#?}");
    }
    // Everything else goes on.
    assert_eq!(ada.get("/session").await.status(), 200);
    assert_eq!(ada.get("/files").await.status(), 200);
    let ready = web.get("/readyz").await;
    assert_eq!(ready.status(), 200, "{:?}", ready.text().await);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(rows, 0);
}

/// Hurries jobs whose store was away, so that a test need not sit out their backoff.
async fn hurried(deploy: &Deploy) {
    crate::support::eventually("the removals", async || {
        let hurry = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND run_at > now()";
        sqlx::query(hurry).execute(&mut deploy.database().await).await.unwrap();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'remove_file'")
            .fetch_one(&mut deploy.database().await)
            .await
            .unwrap();
        (left == 0).then_some(())
    })
    .await;
    nothing_left(deploy).await;
}

#[tokio::test]
async fn store_that_is_away_is_503_for_files_alone() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("AWS_ENDPOINT_URL_S3")).await;
    let cut_off = deploy.clone_with("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address));
    let (web, _worker) = (cut_off.web().await, cut_off.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "x", "x").await;
    proxy.cut();
    problem(ada.get(&format!("{}/content", path(&file))).await, 503, "unavailable").await;
    assert_eq!(shown(&ada, &file).await, file);
    assert_eq!(ada.delete(&path(&file)).await.status(), 204, "its objects go when the store is back");
    refused_by_the_store(&deploy, &web, &ada).await;
    proxy.heal();
    hurried(&deploy).await;
    stored(&ada, "healed", "x").await;
}

#[tokio::test]
async fn store_that_refuses_is_503() {
    let deploy = Deploy::new().await;
    let refused = deploy.clone_with("AWS_SECRET_ACCESS_KEY", "wrong");
    let web = refused.web().await;
    let ada = Person::known(&deploy, &web).await;
    refused_by_the_store(&deploy, &web, &ada).await;
    let _worker = deploy.start("worker");
    hurried(&deploy).await;
}

#[tokio::test]
async fn bucket_that_is_lost_is_503() {
    let store = Store::start().await;
    let deploy = store.of(&Deploy::new().await);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "x", "x").await;
    std::fs::rename(store.folder.join("files"), store.folder.join("lost")).unwrap();
    problem(ada.get(&format!("{}/content", path(&file))).await, 503, "unavailable").await;
    assert_eq!(ada.delete(&path(&file)).await.status(), 204);
    refused_by_the_store(&deploy, &web, &ada).await;
    std::fs::rename(store.folder.join("lost"), store.folder.join("files")).unwrap();
    hurried(&deploy).await;
}

/// A store that says of everything that it has no room, as S3 servers on a full disk do.
async fn full_store() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let body = "<Error><Code>XMinioStorageFull</Code><Message>sekret</Message></Error>";
                    let answer =
                        format!("HTTP/1.1 507 Insufficient Storage\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn store_that_is_full_is_503() {
    let deploy = Deploy::new().await;
    let web = deploy.clone_with("AWS_ENDPOINT_URL_S3", full_store().await).web().await;
    let ada = Person::known(&deploy, &web).await;
    refused_by_the_store(&deploy, &web, &ada).await;
    assert!(web.process.lines().iter().all(|line| !line.contains("sekret")));
    let _worker = deploy.start("worker");
    hurried(&deploy).await;
}

#[tokio::test]
async fn store_that_dies_in_the_middle_is_503() {
    let mut store = Store::start().await;
    let deploy = store.of(&Deploy::new().await);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let (sender, pieces) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(stream::unfold(pieces, async |mut pieces| pieces.recv().await.map(|piece| (piece, pieces))));
    let uploading = tokio::spawn({
        let ada = ada.at(&web);
        async move { upload(&ada, "x", body).await }
    });
    for number in 0..3 {
        sender.send(Ok(noise(number, PART))).await.unwrap();
    }
    crate::support::eventually("an upload in parts", async || {
        let upload = "SELECT count(*) FROM files WHERE upload IS NOT NULL";
        let uploads: i64 = sqlx::query_scalar(upload).fetch_one(&mut deploy.database().await).await.unwrap();
        (uploads == 1).then_some(())
    })
    .await;
    store.process.signal(nix::sys::signal::Signal::SIGKILL);
    store.process.exit().await;
    // Little at a time: what nobody reads any more would hide the answer.
    while !uploading.is_finished() {
        let _ = sender.send(Ok(noise(3, 64 * 1024))).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    problem(uploading.await.unwrap(), 503, "unavailable").await;
    store.restart().await;
    hurried(&deploy).await;
    stored(&ada, "healed", "x").await;
    let parts =
        std::fs::read_dir(&store.folder).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("upload"));
    assert_eq!(parts.count(), 0, "no part lies about");
}

#[tokio::test]
async fn store_that_is_slow_is_waited_for() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("AWS_ENDPOINT_URL_S3")).await;
    let slow = deploy.clone_with("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address)).with("REQUEST_TIMEOUT", "1s").web().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await.at(&slow);
    proxy.delay(Duration::from_millis(700));
    let file = stored(&ada, "x", "takes its time").await;
    proxy.heal();
    assert_eq!(content(&ada, &file).await, b"takes its time");
}
