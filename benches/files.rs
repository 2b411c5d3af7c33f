//! `bin/bench files`: what an upload through `web` costs, compared with the same upload sent directly to the same store by
//! `object_store`, in alternating rounds. Also measures the memory of uploads, and how they slow down signed-in reads.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it prints figures and fails by panicking"
)]

mod load;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::task::JoinHandle;

use load::{COOKIE, Request, Rounds, Server, ask, people};
use report::{Report, median, spread};
use sqlx::PgPool;

const ROUNDS: usize = 3;
const MIB: usize = 1024 * 1024;
const LARGE_MIB: usize = 256;
const CONCURRENT_UPLOADS: usize = 16;

/// The size of a part.
const PART_BYTES: usize = 5 * MIB;

/// The memory that an upload may use: two parts and 2 MiB.
const MEMORY_PER_UPLOAD_MB: f64 = 12.0 * 1.048_576;

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let web = Arc::new(Server::start(&programs.join("web")));
    let mut report = Report::default();
    std::thread::sleep(Duration::from_secs(2));
    report.figure("web, idle, resident, MB", format!("{:.1}", web.resident_mb()));
    let sessions = people(&pool, &web, load::SESSIONS).await;
    let (store, cookie) = (Arc::new(store()), format!("id={}", sessions[0]));

    // Warm up: open the connections and run every code path once.
    through(&web.url, &cookie, 16).await;
    direct(&store, 16).await;
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = web.cpu();
        ours.push(speed(through(&web.url, &cookie, LARGE_MIB)).await);
        cpu.push((web.cpu() - before) * 1000.0);
        theirs.push(speed(direct(&store, LARGE_MIB)).await);
    }
    report.figure(&format!("upload of {LARGE_MIB} MiB through web, MiB/s"), format!("{:.0}", median(&ours)));
    report.figure("   of three rounds", spread(&ours, 0));
    report.figure("   CPU of web, ms", format!("{:.0}", median(&cpu)));
    report.figure("the same directly to the store, MiB/s", format!("{:.0}", median(&theirs)));
    report.figure("   of three rounds", spread(&theirs, 0));
    let ratio = median(&ours) / median(&theirs);
    report.reach("   through web : direct", ratio, ratio >= 0.8, "0.8");

    let (before, mut most) = (web.resident_mb(), 0.0_f64);
    let uploads = tokio::spawn({
        // Of several accounts, because one may run eight.
        let (url, cookies) = (web.url.clone(), sessions.iter().map(|session| format!("id={session}")).collect::<Vec<_>>());
        async move { join_all(cookies.iter().cycle().take(CONCURRENT_UPLOADS).map(|cookie| through(&url, cookie, 64))).await }
    });
    while !uploads.is_finished() {
        most = most.max(web.resident_mb());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    uploads.await.unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let (growth_mb, limit_mb) = (most - before, CONCURRENT_UPLOADS as f64 * MEMORY_PER_UPLOAD_MB);
    report.reach(
        &format!("{CONCURRENT_UPLOADS} concurrent uploads, web grows by, MB"),
        growth_mb,
        growth_mb <= limit_mb,
        &format!("{limit_mb:.0}"),
    );
    report.figure("   memory afterwards, MB", format!("{:.1}", web.resident_mb()));

    // Compares with uploads that bypass `web` and keep the machine equally busy.
    let read = Request { name: "GET /api/v1/session", method: "GET", path: "/api/v1/session", body: None, credential: Some(COOKIE) };
    let (mut alone, mut beside, mut yardstick) = (Rounds::default(), Rounds::default(), Rounds::default());
    for _ in 0..ROUNDS {
        reads(&web, &read, &sessions, &mut alone);
        let uploads = Uploads::start({
            let (url, cookie) = (web.url.clone(), cookie.clone());
            move || {
                let (url, cookie) = (url.clone(), cookie.clone());
                async move { through(&url, &cookie, 64).await }
            }
        });
        reads(&web, &read, &sessions, &mut beside);
        uploads.stop().await;
        let uploads = Uploads::start({
            let store = store.clone();
            move || {
                let store = store.clone();
                async move { direct(&store, 64).await }
            }
        });
        reads(&web, &read, &sessions, &mut yardstick);
        uploads.stop().await;
    }
    for (what, rounds) in [("alone", &alone), ("during uploads through web", &beside), ("during uploads directly to the store", &yardstick)]
    {
        report.figure(&format!("signed-in read {what}, requests/s"), format!("{:.0}", median(&rounds.rate)));
        report.figure("   p99, ms", format!("{:.2}", median(&rounds.p99_ms)));
    }
    let ratio = median(&beside.rate) / median(&yardstick.rate);
    report.reach("   read, during uploads through web : direct", ratio, ratio >= 0.8, "0.8");
    report.finish("files");
}

/// Runs one upload after another until it is stopped.
struct Uploads {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Uploads {
    fn start<F: Future<Output = ()> + Send>(upload: impl Fn() -> F + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                upload().await;
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

fn reads(web: &Arc<Server>, read: &Request, sessions: &[String], rounds: &mut Rounds) {
    tokio::task::block_in_place(|| ask(web, read, sessions, 8, rounds));
}

/// The speed of an upload of `LARGE_MIB`, in mebibytes per second.
async fn speed(upload: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    upload.await;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let mib = LARGE_MIB as f64;
    mib / started.elapsed().as_secs_f64()
}

fn pieces(mib: usize) -> impl Iterator<Item = Bytes> {
    let piece = Bytes::from((0..MIB).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>());
    (0..mib).map(move |_| piece.clone())
}

/// Uploads this many mebibytes through `web`.
async fn through(url: &str, cookie: &str, mib: usize) {
    let body = reqwest::Body::wrap_stream(stream::iter(pieces(mib).map(Ok::<_, std::io::Error>)));
    let request = reqwest::Client::new().post(format!("{url}/api/v1/files?name=bench")).header("cookie", cookie);
    let request = request.header("origin", "http://localhost").header("content-length", mib * MIB);
    let response = request.body(body).send().await.unwrap();
    assert_eq!(response.status(), 201, "{:?}", response.text().await);
}

/// Uploads this many mebibytes directly to the store, in parts of the same size.
async fn direct(store: &AmazonS3, mib: usize) {
    let path = format!("direct/{}", uuid::Uuid::new_v4()).as_str().into();
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&path).await.unwrap(), PART_BYTES);
    for piece in pieces(mib) {
        upload.wait_for_capacity(1).await.unwrap();
        upload.put(piece);
    }
    upload.finish().await.unwrap();
    store.delete(&path).await.unwrap();
}

fn store() -> AmazonS3 {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is unset: run it with bin/bench"));
    let builder = AmazonS3Builder::new().with_bucket_name("files").with_endpoint(variable("AWS_ENDPOINT_URL_S3")).with_allow_http(true);
    let builder = builder.with_access_key_id(variable("AWS_ACCESS_KEY_ID")).with_secret_access_key(variable("AWS_SECRET_ACCESS_KEY"));
    builder.build().expect("a client")
}
