//! Files: upload, inspection, download and clean-up.

mod bad_input;
mod commands;
mod crashes;
mod page;
mod streams;

use std::io::Cursor;
use std::time::Duration;

use image::{ImageFormat, RgbImage, RgbaImage};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::support::access::{Things, prove_privacy, prove_table};
use crate::support::deploy::client;
use crate::support::person::{PASSWORD, Person, problem};
use crate::support::{Deploy, Process, Proxy, eventually, store};

/// Which callers may use which operations, written by hand. `tests/support/access.rs` explains the letters.
const ACCESS_TABLE: &str = "
    GET    /api/v1/files                   - - s u a
    POST   /api/v1/files                   - - s u a
    GET    /api/v1/files/{id}              - - s u a
    DELETE /api/v1/files/{id}              - - s u a
    GET    /api/v1/files/{id}/content      - - s u a
    GET    /api/v1/files/{id}/thumbnail    - - s u a
";

/// The size of one part of a multipart upload.
const PART_BYTES: usize = 5 * 1024 * 1024;

/// How long the transfer of a large file may take on a busy machine.
const TRANSFER_TIMEOUT: Duration = Duration::from_mins(2);

/// Uploads content under a name.
async fn upload(person: &Person, name: &str, content: impl Into<reqwest::Body>) -> Response {
    let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
    person.request(Method::POST, &format!("/files?name={name}")).timeout(TRANSFER_TIMEOUT).body(content).send().await.unwrap()
}

/// Uploads a file that must be accepted, and returns its metadata.
async fn stored(person: &Person, name: &str, content: impl Into<reqwest::Body>) -> Value {
    let response = upload(person, name, content).await;
    assert_eq!(response.status(), 201, "{:?}", response.text().await);
    response.json().await.unwrap()
}

fn path(file: &Value) -> String {
    format!("/files/{}", file["id"].as_str().unwrap())
}

/// A file's current metadata.
async fn metadata(person: &Person, file: &Value) -> Value {
    person.get(&path(file)).await.json().await.unwrap()
}

/// Follows the redirect to the store. It needs no session.
async fn follow(response: Response) -> Response {
    assert_eq!(response.status(), 303, "{:?}", response.text().await);
    client().get(response.headers()["location"].to_str().unwrap()).timeout(TRANSFER_TIMEOUT).send().await.unwrap()
}

async fn content(person: &Person, file: &Value) -> Vec<u8> {
    let response = follow(person.get(&format!("{}/content", path(file))).await).await;
    assert_eq!(response.status(), 200);
    response.bytes().await.unwrap().to_vec()
}

fn sha256(content: &[u8]) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(content) {
        digits.push_str(&format!("{byte:02x}"));
    }
    digits
}

/// Random bytes, different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// A JPEG image of this size.
fn photo(width: u32, height: u32) -> Vec<u8> {
    let shade = |number: u32| u8::try_from(number % 256).unwrap();
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([shade(x), shade(y), shade(x + y)]));
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
    bytes
}

/// Waits until a worker has inspected an image.
async fn inspected(person: &Person, file: &Value) -> Value {
    eventually("the inspection", async || {
        let metadata = metadata(person, file).await;
        (metadata["thumbnails"].as_array().unwrap().len() == 2 || metadata["remark"].is_string()).then_some(metadata)
    })
    .await
}

/// Waits until no row, no job and no object is left of files that failed or were deleted.
async fn no_leftovers(deploy: &Deploy) {
    eventually("no leftovers", async || {
        let rows = "SELECT (SELECT count(*) FROM files) + (SELECT count(*) FROM jobs WHERE kind IN ('remove_file', 'inspect_file'))";
        let rows: i64 = sqlx::query_scalar(rows).fetch_one(&mut deploy.database().await).await.unwrap();
        (rows == 0 && store::objects(deploy).await.is_empty()).then_some(())
    })
    .await;
}

async fn things(deploy: &Deploy, ada: &Person) -> Things {
    let _worker = deploy.start("worker");
    let file = stored(ada, "a private name.jpg", photo(64, 48)).await;
    inspected(ada, &file).await;
    let ids = vec![("/api/v1/files", file["id"].as_str().unwrap().to_owned())];
    Things { ids, texts: vec!["a private name".to_owned()] }
}

#[tokio::test]
async fn files_follow_the_access_table() {
    prove_table(ACCESS_TABLE, things).await;
}

#[tokio::test]
async fn files_are_private() {
    prove_privacy(ACCESS_TABLE, things).await;
}

#[tokio::test]
async fn downloads_equal_uploads_at_every_size() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for (seed, length) in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 17].into_iter().enumerate() {
        let bytes = noise(seed as u64, length);
        let response = upload(&ada, "noise", bytes.clone()).await;
        assert_eq!(response.status(), 201, "{length}");
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let file: Value = response.json().await.unwrap();
        assert_eq!(location, format!("/api/v1{}", path(&file)));
        assert_eq!((&file["size"], file["sha256"].as_str().unwrap()), (&json!(length), sha256(&bytes).as_str()));
        assert_eq!(file["media_type"], "application/octet-stream");
        assert!(content(&ada, &file).await == bytes, "{length} bytes came back changed");
        assert_eq!(metadata(&ada, &file).await, file);
    }
}

#[tokio::test]
async fn content_is_served_as_an_attachment() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for (name, bytes, media_type, presented) in [
        ("ärger ☂.txt", "plain words".as_bytes(), "text/plain", "text/plain; charset=utf-8"),
        ("page.html", b"<!DOCTYPE html><script>alert(1)</script>", "text/html", "application/octet-stream"),
        ("picture.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/svg+xml", "application/octet-stream"),
        ("picture.jpg", b"%PDF-1.7 and more", "application/pdf", "application/pdf"),
    ] {
        let file = stored(&ada, name, bytes).await;
        assert_eq!((&file["name"], &file["media_type"]), (&json!(name), &json!(media_type)));
        let response = ada.get(&format!("{}/content", path(&file))).await;
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let response = follow(response).await;
        assert_eq!(response.headers()["content-type"], presented, "{name}");
        let disposition = response.headers()["content-disposition"].to_str().unwrap();
        assert!(disposition.starts_with("attachment; filename*=UTF-8''"), "{disposition}");
    }
    let objects = store::objects(&deploy).await;
    assert!(objects.keys().all(|key| key.starts_with("files/") && key.is_ascii()), "no key contains a file name: {objects:?}");
}

#[tokio::test]
async fn photo_gets_dimensions_and_two_thumbnails() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "photo.jpg", photo(1000, 500)).await;
    problem(ada.get(&format!("{}/thumbnail?size=huge", path(&file))).await, 422, "invalid-input").await;
    let seen = inspected(&ada, &file).await;
    assert_eq!((&seen["width"], &seen["height"], &seen["media_type"]), (&json!(1000), &json!(500), &json!("image/jpeg")));
    assert_eq!((&seen["thumbnails"], &seen["remark"]), (&json!(["small", "large"]), &Value::Null));
    for (query, size) in [("", (160, 80)), ("?size=small", (160, 80)), ("?size=large", (640, 320))] {
        let response = follow(ada.get(&format!("{}/thumbnail{query}", path(&file))).await).await;
        assert_eq!(response.headers()["content-type"], "image/jpeg");
        let thumbnail = image::load_from_memory_with_format(&response.bytes().await.unwrap(), ImageFormat::Jpeg).unwrap();
        assert_eq!((thumbnail.width(), thumbnail.height()), size);
    }
    let steps: Vec<_> = worker.lines().iter().filter_map(|line| Some(serde_json::from_str::<Value>(line).ok()?["step"].clone())).collect();
    assert_eq!(steps.into_iter().filter(|step| !step.is_null()).collect::<Vec<_>>(), ["measured", "small", "large"]);

    let small = stored(&ada, "small.png", png(3, 2)).await;
    assert_eq!(inspected(&ada, &small).await["thumbnails"], json!(["small", "large"]));
    let response = follow(ada.get(&format!("{}/thumbnail", path(&small))).await).await;
    let thumbnail = image::load_from_memory(&response.bytes().await.unwrap()).unwrap();
    assert_eq!((thumbnail.width(), thumbnail.height()), (3, 2), "small images are not enlarged");
    assert_eq!(thumbnail.to_rgb8().get_pixel(0, 0).0, [255, 255, 255], "transparent pixels become white");
}

/// A fully transparent PNG image.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::RgbaImage::new(width, height).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

#[tokio::test]
async fn deleted_file_leaves_no_rows_or_objects() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "photo.jpg", photo(300, 300)).await;
    inspected(&ada, &file).await;
    assert_eq!(store::objects(&deploy).await.len(), 3);
    assert_eq!(ada.delete(&path(&file)).await.status(), 204);
    problem(ada.get(&path(&file)).await, 404, "not-found").await;
    problem(ada.get(&format!("{}/content", path(&file))).await, 404, "not-found").await;
    problem(ada.delete(&path(&file)).await, 404, "not-found").await;
    no_leftovers(&deploy).await;
    let usage: (i64, i64) = sqlx::query_as("SELECT files, bytes FROM file_usage").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(usage, (0, 0));
}

#[tokio::test]
async fn files_are_listed_newest_first_in_pages() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for number in 0..5 {
        stored(&ada, &format!("{number}"), "x").await;
    }
    let (mut names, mut next) = (Vec::new(), "/files?limit=2".to_owned());
    loop {
        let page: Value = ada.get(&next).await.json().await.unwrap();
        names.extend(page["items"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next"].as_str() else { break };
        next = format!("/files?limit=2&cursor={cursor}");
    }
    assert_eq!(names, ["4", "3", "2", "1", "0"]);
}

#[tokio::test]
async fn account_export_and_deletion_include_files() {
    let deploy = Deploy::new().await;
    let (web, _worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let photo = stored(&ada, "photo.jpg", photo(300, 300)).await;
    stored(&ada, "large", noise(1, PART_BYTES + 1)).await;
    inspected(&ada, &photo).await;
    let export = deploy.admin(&["export", &ada.email]).await;
    let export: Value = serde_json::from_slice(&export.stdout).unwrap();
    let names: Vec<_> = export["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["large", "photo.jpg"]);
    assert_eq!(export["files"][1]["sha256"], photo["sha256"]);
    let actions = export["audit_events"].as_array().unwrap().iter().filter(|event| event["action"] == "file_uploaded").count();
    assert_eq!(actions, 2);

    assert_eq!(ada.post("/session/confirm", json!({ "password": PASSWORD })).await.status(), 204);
    assert_eq!(ada.delete("/account").await.status(), 204);
    no_leftovers(&deploy).await;
}

#[tokio::test]
async fn without_a_store_only_files_are_off() {
    let deploy = Deploy::new().await.without("STORAGE_URL");
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    problem(upload(&ada, "x", "x").await, 403, "files-disabled").await;
    assert_eq!(ada.get("/files").await.json::<Value>().await.unwrap()["items"], json!([]));
    assert_eq!(ada.get("/session").await.status(), 200);
    worker.says("ready").await;
    let doctor = deploy.admin(&["doctor"]).await;
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("ok    storage    off"), "{doctor:?}");
    let half = deploy.clone_with("STORAGE_URL", "s3://files").without("AWS_SECRET_ACCESS_KEY");
    let mut web = half.start("web");
    assert_eq!(web.exit().await.code(), Some(78));
    assert!(web.errors().join("\n").contains("AWS_SECRET_ACCESS_KEY is missing"));
}

#[tokio::test]
async fn clean_up_removes_abandoned_uploads() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let kept = stored(&ada, "kept", noise(1, 100)).await;
    // Rows as a killed `web` leaves them: one with a complete object, one with a multipart upload, and one that is recent enough
    // to be still in progress.
    let mut database = deploy.database().await;
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(
        "INSERT INTO files (id, account_id, name, moved_at, upload)
         SELECT gen_random_uuid(), (SELECT id FROM accounts), 'half', now() - age, upload
         FROM (VALUES (interval '61 minutes', NULL), ('61 minutes', 'unknown upload'), ('50 minutes', NULL)) AS half (age, upload)
         RETURNING id",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    for id in &ids {
        store::put(&deploy, &format!("files/{id}/content"), b"complete or not").await;
    }
    let enqueued = deploy.admin(&["jobs", "enqueue", "clean_up_files", "{}"]).await;
    assert!(enqueued.status.success(), "{enqueued:?}");
    worker.logged("the end", |line| line["job_kind"] == "clean_up_files" && line["outcome"] == "done").await;
    let kept = [format!("files/{}/content", kept["id"].as_str().unwrap()), format!("files/{}/content", ids[2])];
    eventually("only the kept objects", async || {
        let keys: Vec<_> = store::objects(&deploy).await.into_keys().collect();
        (keys.len() == 2 && kept.iter().all(|key| keys.contains(key))).then_some(())
    })
    .await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM files").fetch_one(&mut database).await.unwrap();
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn clean_up_deletes_stray_objects_after_a_day() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    stored(&ada, "kept", noise(1, 100)).await;
    for stray in ["files/0198c000-0000-7000-8000-000000000000/content", "files/no-id-at-all/content"] {
        store::put(&deploy, stray, b"stray").await;
    }
    let mut database = deploy.database().await;
    let clean_up = async |searches: usize| {
        assert!(deploy.admin(&["jobs", "enqueue", "clean_up_files", "{}"]).await.status.success());
        let ended = |line: &&String| line.contains("\"job_kind\":\"clean_up_files\"") && line.contains("\"outcome\":\"done\"");
        eventually("the end", async || (worker.lines().iter().filter(ended).count() == searches).then_some(())).await;
    };
    clean_up(1).await;
    let warning = worker.says("2 object(s) belong to no file").await;
    assert_eq!((&warning["level"], &warning["objects"]), (&json!("WARN"), &json!(2)));
    assert_eq!(store::objects(&deploy).await.len(), 3, "strays are reported first, and not deleted");
    sqlx::query("UPDATE stray_objects SET found_at = found_at - interval '23 hours'").execute(&mut database).await.unwrap();
    clean_up(2).await;
    assert_eq!(store::objects(&deploy).await.len(), 3, "less than a day has passed");
    sqlx::query("UPDATE stray_objects SET found_at = found_at - interval '1 hour'").execute(&mut database).await.unwrap();
    clean_up(3).await;
    assert_eq!(store::objects(&deploy).await.len(), 1, "the object with a row is kept");
    clean_up(4).await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM stray_objects").fetch_one(&mut database).await.unwrap();
    assert_eq!(left, 0);
    assert_eq!(worker.lines().iter().filter(|line| line.contains("belong to no file")).count(), 1, "reported once");
}

#[tokio::test]
async fn objects_of_another_deploy_are_never_deleted() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "note.txt", "a note").await;
    let clean_up = async |deploy: &Deploy, worker: &Process| {
        assert!(deploy.admin(&["jobs", "enqueue", "clean_up_files", "{}"]).await.status.success());
        worker.logged("the end", |line| line["job_kind"] == "clean_up_files" && line["outcome"] == "done").await;
    };
    clean_up(&deploy, &worker).await;
    // Another database with the same bucket and prefix.
    let other = Deploy::new().await.with("STORAGE_URL", &deploy.environment["STORAGE_URL"]);
    let its_worker = other.start("worker");
    clean_up(&other, &its_worker).await;
    let warning = its_worker.says("belong to another deploy").await;
    assert_eq!(warning["level"], "WARN");
    let strays: i64 = sqlx::query_scalar("SELECT count(*) FROM stray_objects").fetch_one(&mut other.database().await).await.unwrap();
    assert_eq!(strays, 0);
    assert_eq!(content(&ada, &file).await, b"a note");
}

#[tokio::test]
async fn ended_session_neither_stores_nor_deletes() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let file = stored(&ada, "note.txt", "a note").await;
    ada.ends_unnoticed(&deploy, "").await;
    problem(ada.delete(&path(&file)).await, 401, "unauthenticated").await;
    problem(upload(&ada, "late.txt", "late").await, 401, "unauthenticated").await;
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM files").fetch_all(&mut deploy.database().await).await.unwrap();
    assert_eq!(names, ["note.txt"]);
}

#[tokio::test]
async fn stuck_image_leaves_places_for_mails() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    for number in 0..3 {
        stored(&ada, &format!("{number}.jpg"), photo(64, 48)).await;
    }
    let proxy = Proxy::to(deploy.address_of("AWS_ENDPOINT_URL_S3")).await;
    proxy.stall();
    let far = deploy.clone_with("AWS_ENDPOINT_URL_S3", deploy.through("AWS_ENDPOINT_URL_S3", &proxy)).with("WORKER_CONCURRENCY", 2);
    let worker = far.start("worker");
    let started = |line: &&String| line.contains("\"job_kind\":\"inspect_file\"");
    eventually("two starts", async || (worker.lines().iter().filter(started).count() >= 2).then_some(())).await;
    // The first image waits for the store for thirty seconds, and the second for the first.
    assert_eq!(ada.request_reset().await.status(), 202);
    let mail = deploy.mail.to(&ada.email, "Set a new password");
    timeout(Duration::from_secs(20), mail).await.expect("the mail does not wait for the store");
}

/// An animated WebP of one colour, with an alpha channel. Its one frame is as large as the canvas.
fn animated_webp(width: u32, height: u32) -> Vec<u8> {
    let mut still = Vec::new();
    RgbaImage::from_pixel(width, height, image::Rgba([200, 100, 50, 128]))
        .write_to(&mut Cursor::new(&mut still), ImageFormat::WebP)
        .unwrap();
    let u24 = |number: u32| number.to_le_bytes()[..3].to_vec();
    let chunk =
        |name: &[u8], data: &[u8]| [name, &u32::try_from(data.len()).unwrap().to_le_bytes(), data, &vec![0; data.len() % 2]].concat();
    let size = [u24(width - 1), u24(height - 1)].concat();
    // What follows `RIFF`, the length and `WEBP` is one chunk, VP8L.
    let frame = [&[0; 6][..], &size, &u24(100), &[2], &still[12..]].concat();
    let canvas = [&[0x12, 0, 0, 0][..], &size].concat();
    let chunks = [chunk(b"VP8X", &canvas), chunk(b"ANIM", &[0; 6]), chunk(b"ANMF", &frame)].concat();
    [&b"RIFF"[..], &u32::try_from(chunks.len() + 4).unwrap().to_le_bytes(), b"WEBP", &chunks].concat()
}

#[tokio::test]
async fn costliest_image_fits_the_memory_limit() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::known(&deploy, &web).await;
    // 30 million pixels, the limit.
    let file = stored(&ada, "large.webp", animated_webp(6_000, 5_000)).await;
    let seen = inspected(&ada, &file).await;
    assert_eq!(seen["thumbnails"], json!(["small", "large"]), "{seen}");
    let peak = worker.memory_kib("VmHWM:") / 1024;
    assert!(peak < 440, "of the 512 MiB in deploy/k8s/base/worker.yaml, one image took {peak} MiB");
}
