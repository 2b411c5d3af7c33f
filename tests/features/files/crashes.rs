//! Rows, objects and jobs stay consistent when processes are killed at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{PART_BYTES, content, metadata, noise, path, photo, sha256};
use crate::support::deploy::Web;
use crate::support::person::Person;
use crate::support::{Deploy, Process, eventually, free_port, store};

/// How many files are uploaded, and how many images are inspected.
const FILES: u64 = 200;

/// How often the process is killed meanwhile, at most. Otherwise the test might not end on a slow machine.
const KILLS: usize = 20;

async fn count(deploy: &Deploy, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&mut deploy.database().await).await.unwrap()
}

/// Ages unfinished uploads by two hours, and runs the clean-up until nothing is left to do.
async fn clean_up(deploy: &Deploy, worker: &Process) {
    sqlx::query("UPDATE files SET moved_at = moved_at - interval '2 hours'").execute(&mut deploy.database().await).await.unwrap();
    for search in 1..=2 {
        assert!(deploy.admin(&["jobs", "enqueue", "clean_up_files", "{}"]).await.status.success());
        let ended = |line: &&String| line.contains("\"job_kind\":\"clean_up_files\"") && line.contains("\"outcome\":\"done\"");
        eventually("the clean-up", async || (worker.lines().iter().filter(ended).count() == search).then_some(())).await;
        // Ages the stray objects that it found.
        sqlx::query("UPDATE stray_objects SET found_at = found_at - interval '2 days'")
            .execute(&mut deploy.database().await)
            .await
            .unwrap();
    }
    eventually("an empty queue", async || {
        let skip_backoff = "UPDATE jobs SET run_at = now() WHERE token IS NULL AND run_at > now()";
        sqlx::query(skip_backoff).execute(&mut deploy.database().await).await.unwrap();
        (count(deploy, "SELECT count(*) FROM jobs WHERE dead_at IS NULL").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn killed_web_loses_no_acknowledged_file() {
    let port = free_port();
    let deploy = Deploy::new().await.with("PORT", port).with("RATE_LIMIT_REQUESTS", 1_000_000).with("FILE_QUOTA", "10GiB");
    let web = deploy.web().await;
    let ada = Arc::new(Person::known(&deploy, &web).await);
    let (web, done) = (Arc::new(Mutex::new(web)), Arc::new(AtomicBool::new(false)));
    let uploads = (0..FILES).map(|seed| {
        let ada = ada.clone();
        async move {
            // One in eight is large enough for a multipart upload.
            let length = if seed % 8 == 0 { PART_BYTES + 4321 } else { 100_000 };
            let bytes = noise(seed, length);
            loop {
                let request = ada.request(Method::POST, &format!("/files?name={seed}")).body(bytes.clone());
                // Fails while no `web` listens, or when it is killed.
                if let Ok(response) = request.send().await
                    && response.status() == 201
                    && let Ok(file) = response.json::<Value>().await
                {
                    assert_eq!(file["sha256"].as_str().unwrap(), sha256(&bytes));
                    return file;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let uploading = futures_util::stream::iter(uploads);
    let uploading = futures_util::StreamExt::buffer_unordered(uploading, 8);
    let killing = tokio::spawn({
        let (web, deploy, done) = (web.clone(), deploy.clone(), done.clone());
        async move {
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) && kills < KILLS {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1500))).await;
                let mut web = web.lock().await;
                web.process.signal(Signal::SIGKILL);
                web.process.exit().await;
                *web = Web::of(deploy.start("web")).await;
                kills += 1;
            }
            kills
        }
    });
    let acknowledged: Vec<Value> = futures_util::StreamExt::collect(uploading).await;
    done.store(true, Ordering::Relaxed);
    let kills = killing.await.unwrap();
    let left = count(&deploy, "SELECT count(*) FROM files WHERE state = 'receiving'").await;
    println!("{kills} kills, {left} rows left behind");
    assert!(kills >= 5, "{kills} kills");

    let worker = deploy.start("worker");
    clean_up(&deploy, &worker).await;
    for file in &acknowledged {
        assert_eq!(sha256(&content(&ada, file).await), file["sha256"].as_str().unwrap(), "{file}");
    }
    assert_consistent(&deploy).await;
}

/// Each row has an object of the same size, and each object has a row.
async fn assert_consistent(deploy: &Deploy) {
    assert_eq!(count(deploy, "SELECT count(*) FROM files WHERE state = 'receiving'").await, 0);
    let rows = "SELECT 'files/' || id || '/content', size FROM files";
    let rows: Vec<(String, i64)> = sqlx::query_as(rows).fetch_all(&mut deploy.database().await).await.unwrap();
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(key, size)| (key, size.unsigned_abs())).collect();
    let objects = store::objects(deploy).await.into_iter().filter(|(key, _)| key.ends_with("/content")).collect();
    assert_eq!(rows, objects);
    let usage = "SELECT (SELECT sum(bytes) FROM file_usage)::bigint - (SELECT sum(size) FROM files)::bigint";
    assert_eq!(count(deploy, usage).await, 0, "the quota counts the stored bytes");
}

#[tokio::test]
async fn killed_worker_loses_no_thumbnail_and_repeats_no_step() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_REQUESTS", 1_000_000).with("JOB_LEASE", "10s");
    let web = deploy.web().await;
    let ada = Person::known(&deploy, &web).await;
    let image = photo(400, 300);
    let mut files = Vec::new();
    for number in 0..FILES {
        files.push(super::stored(&ada, &number.to_string(), image.clone()).await);
    }
    let (mut lines, mut kills) = (Vec::new(), 0);
    let left = "SELECT count(*) FROM jobs WHERE kind = 'inspect_file'";
    while kills < KILLS && count(&deploy, left).await > 0 {
        let mut worker = deploy.start("worker");
        worker.logged("a start", |line| line["job_kind"] == "inspect_file").await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..400))).await;
        worker.signal(Signal::SIGKILL);
        worker.exit().await;
        lines.extend(worker.lines());
        kills += 1;
        // Ends the killed worker's leases and skips the backoff.
        let expire = "UPDATE jobs SET token = NULL, run_at = now() WHERE dead_at IS NULL";
        sqlx::query(expire).execute(&mut deploy.database().await).await.unwrap();
    }
    let mut worker = deploy.start("worker");
    for _ in 0..600 {
        if count(&deploy, left).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(worker.terminate().await, Some(0));
    lines.extend(worker.lines());
    println!("{kills} kills");
    assert!(kills >= 5, "{kills} kills");
    let mut steps = BTreeMap::<_, usize>::new();
    for line in lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["step"].is_string()) {
        *steps.entry((line["file_id"].as_str().unwrap().to_owned(), line["step"].as_str().unwrap().to_owned())).or_default() += 1;
    }
    let twice: Vec<_> = steps.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "saved steps were repeated: {twice:?}");
    for file in &files {
        assert_eq!(metadata(&ada, file).await["thumbnails"], serde_json::json!(["small", "large"]), "{}", path(file));
    }
    assert_eq!(store::objects(&deploy).await.len(), files.len() * 3);
}
