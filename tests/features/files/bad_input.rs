//! Invalid uploads, and a store that refuses, is full, slow or unavailable. Each failed upload gets one response and one log
//! line, and leaves nothing behind.

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

use super::{PART_BYTES, content, inspected, metadata, no_leftovers, noise, path, stored, upload};
use crate::support::deploy::Web;
use crate::support::person::{Person, problem};
use crate::support::store::{self, Store};
use crate::support::{Deploy, Proxy};

#[tokio::test]
async fn file_names_are_never_paths() {
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
    assert_eq!(objects.len(), 12, "refused uploads store nothing: {objects:?}");
}

/// Sends the head of an upload and raw bytes, closes the sending side, and returns the response.
async fn raw(web: &Web, ada: &Person, head: &str, body: &[u8]) -> String {
    let cookie = ada.another_cookie().await;
    let mut stream = TcpStream::connect(("127.0.0.1", web.port())).await.unwrap();
    let head = format!(
        "POST /api/v1/files?name=raw HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\nsec-fetch-site: same-origin\r\nconnection: close\r\n{head}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut response = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut response)).await.expect("the end of the response");
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn truncated_body_leaves_nothing() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    for (head, body) in [
        ("content-length: 100", &b"short"[..]),
        ("content-length: 20000000", &vec![1; 11_000_000]),
        ("transfer-encoding: chunked", b"5\r\nshort\r\n"),
        ("transfer-encoding: chunked", b"no chunk\r\n"),
    ] {
        let response = raw(&web, &ada, head, body).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400"), "{head}: {response}");
    }
    no_leftovers(&deploy).await;
}

#[tokio::test]
async fn body_ends_at_its_content_length() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let response = raw(&web, &ada, "content-length: 5", b"exactly").await;
    assert!(response.starts_with("HTTP/1.1 201") && response.contains("\"size\":5"), "{response}");
    assert_eq!(store::objects(&deploy).await.into_values().collect::<Vec<_>>(), [5]);
}

async fn with_digest(ada: &Person, digest: &str, content: Vec<u8>) -> Response {
    ada.request(Method::POST, "/files?name=x").header("content-digest", digest).body(content).send().await.unwrap()
}

#[tokio::test]
async fn content_digest_must_match_the_content() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let large = noise(7, PART_BYTES + 100);
    let sha256 = |content: &[u8]| format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(content)));
    let sha512 = |content: &[u8]| format!("sha-512=:{}:", STANDARD.encode(Sha512::digest(content)));
    for wrong in [sha256(b"other"), sha512(b"other"), format!("{}, {}", sha256(&large), sha512(b"other")), "sha-256=:c2hvcnQ=:".to_owned()]
    {
        problem(with_digest(&ada, &wrong, large.clone()).await, 400, "digest-mismatch").await;
    }
    for malformed in ["sha-256", "sha-256=x", "sha-256=:!:", "", "sha-256=:YQ==:,,"] {
        problem(with_digest(&ada, malformed, b"x".to_vec()).await, 400, "malformed").await;
    }
    no_leftovers(&deploy).await;
    for right in
        [sha256(&large), sha512(&large), format!("md5=:YQ==:, {}, {}", sha512(&large), sha256(&large)), "unixsum=:YQ==:".to_owned()]
    {
        assert_eq!(with_digest(&ada, &right, large.clone()).await.status(), 201, "{right}");
    }
}

#[tokio::test]
async fn file_over_the_size_limit_is_refused() {
    let deploy = Deploy::new().await.with("FILE_SIZE_LIMIT", "6MiB");
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let limit = 6 * 1024 * 1024;
    problem(upload(&ada, "x", vec![0; limit + 1]).await, 413, "file-too-large").await;
    // A chunked body, whose length is unknown until it ends.
    let pieces = stream::iter((0..=limit / 65536).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 65536])));
    problem(upload(&ada, "x", reqwest::Body::wrap_stream(pieces)).await, 413, "file-too-large").await;
    no_leftovers(&deploy).await;
    stored(&ada, "x", vec![0; limit]).await;
}

#[tokio::test]
async fn concurrent_uploads_cannot_exceed_the_quota() {
    let deploy = Deploy::new().await.with("FILE_QUOTA", "1000KiB");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let pieces = |length: usize| {
        let pieces = stream::iter((0..length).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1024])));
        reqwest::Body::wrap_stream(pieces)
    };
    let both = join_all([upload(&ada, "one", pieces(600)), upload(&ada, "two", pieces(600))]).await;
    let mut statuses: Vec<_> = both.iter().map(|response| response.status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403]);
    for response in both.into_iter().filter(|response| response.status() == 403) {
        problem(response, 403, "quota-reached").await;
    }
    // The first is refused by its `Content-Length`, the second in the middle of its body.
    problem(upload(&ada, "three", vec![0; 401 * 1024]).await, 403, "quota-reached").await;
    problem(upload(&ada, "three", pieces(401)).await, 403, "quota-reached").await;
    stored(&ada, "fills the quota", vec![0; 400 * 1024]).await;
    problem(upload(&ada, "one byte", "x").await, 403, "quota-reached").await;
    stored(&ada, "none", "").await;
    let list: Value = ada.get("/files").await.json().await.unwrap();
    let first = list["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(ada.delete(&path(&first)).await.status(), 204);
    stored(&ada, "fits again", vec![0; 600 * 1024]).await;
    worker.logged("the removal", |line| line["job_kind"] == "remove_file" && line["outcome"] == "done").await;
    let another = Person::known(&deploy, &web).await;
    stored(&another, "each account has its own quota", vec![0; 1000 * 1024]).await;
}

#[tokio::test]
async fn unverified_account_cannot_upload() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::unverified(&web).await;
    problem(upload(&ada, "x", "x").await, 403, "email-not-verified").await;
    assert!(store::objects(&deploy).await.is_empty());
}

/// A PNG whose header states this size, with no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
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
async fn undecodable_and_huge_images_get_a_remark() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let mut cut = super::photo(500, 500);
    cut.truncate(300);
    for (name, bytes, size, remark) in [
        ("huge.png", png_header(60_000, 60_000), json!(60_000), "60000 × 60000 pixels exceed the limit of 30000000"),
        ("empty.png", png_header(600, 600), json!(600), "the image cannot be decoded"),
        ("cut.jpg", cut, Value::Null, "the image header cannot be read"),
        ("head.webp", b"RIFF\x10\0\0\0WEBPVP8 nothing".to_vec(), Value::Null, "the image header cannot be read"),
        ("large.gif", [b"GIF89a".to_vec(), vec![0; 33 * 1024 * 1024]].concat(), Value::Null, "the image is larger than"),
    ] {
        let file = stored(&ada, name, bytes.clone()).await;
        let seen = inspected(&ada, &file).await;
        assert!(seen["remark"].as_str().unwrap().contains(remark), "{name}: {seen}");
        assert_eq!((&seen["width"], &seen["thumbnails"]), (&size, &json!([])), "{name}: {seen}");
        assert!(content(&ada, &file).await == bytes, "{name} is stored all the same");
        problem(ada.get(&format!("{}/thumbnail", path(&file))).await, 404, "not-found").await;
    }
    assert!(worker.lines().iter().all(|line| !line.contains("\"outcome\":\"failed\"")), "{:#?}", worker.lines());
}

#[tokio::test]
async fn content_type_header_is_ignored() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for lie in ["image/png", "text/html", "application/json", "multipart/form-data; boundary=x", "nonsense"] {
        let response = ada.request(Method::POST, "/files?name=x.html").header("content-type", lie).body("words").send().await.unwrap();
        assert_eq!(response.json::<Value>().await.unwrap()["media_type"], "text/plain", "{lie}");
    }
}

/// Uploads a small file and a large one while the store fails. Each is 503, with one line in the log, and leaves no row.
/// Everything else continues.
async fn uploads_are_503(deploy: &Deploy, web: &Web, ada: &Person) {
    for length in [100, 2 * PART_BYTES + 1] {
        // The response comes before the end of the body, so the connection cannot be reused.
        let request = ada.request(Method::POST, "/files?name=x").header("connection", "close").body(noise(1, length));
        let response = request.send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let problem = problem(response, 503, "unavailable").await;
        assert!(!problem.to_string().contains("store"), "the response reveals nothing internal: {problem}");
        web.process.logged("the access line", |line| line["request_id"] == id && line["status"] == 503).await;
        let lines = web.process.lines().into_iter().filter(|line| line.contains(&id) && !line.contains("\"status\":")).collect::<Vec<_>>();
        assert!(lines.len() == 1 && lines[0].contains("ERROR") && lines[0].contains("object store operation"), "{lines:#?}");
    }
    // Everything else continues.
    assert_eq!(ada.get("/session").await.status(), 200);
    assert_eq!(ada.get("/files").await.status(), 200);
    let ready = web.get("/readyz").await;
    assert_eq!(ready.status(), 200, "{:?}", ready.text().await);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(rows, 0);
}

/// Waits until the removal jobs are done. Skips their backoff, so that the test does not have to wait for it.
async fn removals_finish(deploy: &Deploy) {
    crate::support::eventually("the removals", async || {
        let skip_backoff = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND run_at > now()";
        sqlx::query(skip_backoff).execute(&mut deploy.database().await).await.unwrap();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'remove_file'")
            .fetch_one(&mut deploy.database().await)
            .await
            .unwrap();
        (left == 0).then_some(())
    })
    .await;
    no_leftovers(deploy).await;
}

#[tokio::test]
async fn unavailable_store_affects_only_files() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("AWS_ENDPOINT_URL_S3")).await;
    let cut_off = deploy.clone_with("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address));
    let (web, _worker) = (cut_off.web().await, cut_off.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "x", "x").await;
    proxy.cut();
    problem(ada.get(&format!("{}/content", path(&file))).await, 503, "unavailable").await;
    assert_eq!(metadata(&ada, &file).await, file);
    assert_eq!(ada.delete(&path(&file)).await.status(), 204, "its objects are removed when the store is back");
    uploads_are_503(&deploy, &web, &ada).await;
    proxy.heal();
    removals_finish(&deploy).await;
    stored(&ada, "healed", "x").await;
}

#[tokio::test]
async fn wrong_store_key_is_503() {
    let deploy = Deploy::new().await;
    let refused = deploy.clone_with("AWS_SECRET_ACCESS_KEY", "wrong");
    let web = refused.web().await;
    let ada = Person::known(&deploy, &web).await;
    uploads_are_503(&deploy, &web, &ada).await;
    let _worker = deploy.start("worker");
    removals_finish(&deploy).await;
}

#[tokio::test]
async fn missing_bucket_is_503() {
    let store = Store::start().await;
    let deploy = store.of(&Deploy::new().await);
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "x", "x").await;
    std::fs::rename(store.folder.join("files"), store.folder.join("lost")).unwrap();
    problem(ada.get(&format!("{}/content", path(&file))).await, 503, "unavailable").await;
    assert_eq!(ada.delete(&path(&file)).await.status(), 204);
    uploads_are_503(&deploy, &web, &ada).await;
    std::fs::rename(store.folder.join("lost"), store.folder.join("files")).unwrap();
    removals_finish(&deploy).await;
}

/// Starts a store that responds to every request as S3 servers on a full disk do. Returns its URL.
async fn start_full_store() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let body = "<Error><Code>XMinioStorageFull</Code><Message>sekret</Message></Error>";
                    let response =
                        format!("HTTP/1.1 507 Insufficient Storage\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(response.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn full_store_is_503() {
    let deploy = Deploy::new().await;
    let web = deploy.clone_with("AWS_ENDPOINT_URL_S3", start_full_store().await).web().await;
    let ada = Person::known(&deploy, &web).await;
    uploads_are_503(&deploy, &web, &ada).await;
    assert!(web.process.lines().iter().all(|line| !line.contains("sekret")));
    let _worker = deploy.start("worker");
    removals_finish(&deploy).await;
}

#[tokio::test]
async fn store_killed_during_an_upload_is_503() {
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
        sender.send(Ok(noise(number, PART_BYTES))).await.unwrap();
    }
    crate::support::eventually("a multipart upload", async || {
        let upload = "SELECT count(*) FROM files WHERE upload IS NOT NULL";
        let uploads: i64 = sqlx::query_scalar(upload).fetch_one(&mut deploy.database().await).await.unwrap();
        (uploads == 1).then_some(())
    })
    .await;
    store.process.signal(nix::sys::signal::Signal::SIGKILL);
    store.process.exit().await;
    // Small pieces: a large unread rest of the body would reset the connection before the response is read.
    while !uploading.is_finished() {
        let _ = sender.send(Ok(noise(3, 64 * 1024))).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    problem(uploading.await.unwrap(), 503, "unavailable").await;
    store.restart().await;
    removals_finish(&deploy).await;
    stored(&ada, "healed", "x").await;
    let parts =
        std::fs::read_dir(&store.folder).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("upload"));
    assert_eq!(parts.count(), 0, "no part is left behind");
}

#[tokio::test]
async fn slow_store_does_not_fail_uploads() {
    let deploy = Deploy::new().await;
    let proxy = Proxy::to(deploy.address_of("AWS_ENDPOINT_URL_S3")).await;
    let slow = deploy.clone_with("AWS_ENDPOINT_URL_S3", format!("http://{}", proxy.address)).with("REQUEST_TIMEOUT", "1s").web().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await.at(&slow);
    proxy.delay(Duration::from_millis(700));
    let file = stored(&ada, "x", "slowly").await;
    proxy.heal();
    assert_eq!(content(&ada, &file).await, b"slowly");
}
