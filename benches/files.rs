//! `bin/bench files`: what an upload through `web` costs, beside the same upload straight to the same store with
//! `object_store`, measured in turns; what uploads take of memory, and what they leave of a signed-in read.
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

use load::{Request, Rounds, Server, ask, people};
use report::{Report, median, spread};
use sqlx::PgPool;

const ROUNDS: usize = 3;
const MIB: usize = 1024 * 1024;
const LARGE: usize = 256;
const AT_ONCE: u32 = 16;

/// What a part has, and what an upload may take: two parts and 2 MiB.
const PART: usize = 5 * MIB;
const SHARE_MB: f64 = 12.0 * 1.048_576;

#[tokio::main]
async fn main() {
    let programs = PathBuf::from(std::env::var("PROGRAMS").expect("run it with bin/bench"));
    let pool = PgPool::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let web = Arc::new(Server::start(&programs.join("web")));
    let mut report = Report::default();
    std::thread::sleep(Duration::from_secs(2));
    report.figure("web, idle, resident, MB", format!("{:.1}", web.resident_mb()));
    let sessions = people(&pool, &web).await;
    let (store, cookie) = (Arc::new(store()), format!("id={}", sessions[0]));

    // Warm: connections are there, and every code path has been taken.
    through(&web.url, &cookie, 16).await;
    straight(&store, 16).await;
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = web.cpu();
        ours.push(speed(through(&web.url, &cookie, LARGE)).await);
        cpu.push((web.cpu() - before) * 1000.0);
        theirs.push(speed(straight(&store, LARGE)).await);
    }
    report.figure(&format!("upload of {LARGE} MiB through web, MiB/s"), format!("{:.0}", median(&ours)));
    report.figure("   of three rounds", spread(&ours, 0));
    report.figure("   CPU of web, ms", format!("{:.0}", median(&cpu)));
    report.figure("the same straight to the store, MiB/s", format!("{:.0}", median(&theirs)));
    report.figure("   of three rounds", spread(&theirs, 0));
    let ratio = median(&ours) / median(&theirs);
    report.reach("   through web : straight", ratio, ratio >= 0.8, "0.8");

    let (before, mut most) = (web.resident_mb(), 0.0_f64);
    let uploads = tokio::spawn({
        let (url, cookie) = (web.url.clone(), cookie.clone());
        async move { join_all((0..AT_ONCE).map(|_| through(&url, &cookie, 64))).await }
    });
    while !uploads.is_finished() {
        most = most.max(web.resident_mb());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    uploads.await.unwrap();
    let (grown, bar) = (most - before, f64::from(AT_ONCE) * SHARE_MB);
    report.reach(&format!("{AT_ONCE} uploads at once, web grows by, MB"), grown, grown <= bar, &format!("{bar:.0}"));
    report.figure("   and has afterwards, MB", format!("{:.1}", web.resident_mb()));

    // The same machine is as busy with uploads that pass `web` by.
    let read = Request { name: "GET /api/v1/session", method: "GET", path: "/api/v1/session", body: None, signed_in: true };
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
                async move { straight(&store, 64).await }
            }
        });
        reads(&web, &read, &sessions, &mut yardstick);
        uploads.stop().await;
    }
    for (what, rounds) in [("alone", &alone), ("beside uploads through web", &beside), ("beside uploads straight to the store", &yardstick)]
    {
        report.figure(&format!("signed-in read {what}, requests/s"), format!("{:.0}", median(&rounds.rate)));
        report.figure("   p99, ms", format!("{:.2}", median(&rounds.p99_ms)));
    }
    let ratio = median(&beside.rate) / median(&yardstick.rate);
    report.reach("   read, beside uploads through web : straight", ratio, ratio >= 0.8, "0.8");
    report.finish("files");
}

/// One upload after the other, until it is stopped.
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

/// Mebibytes a second.
async fn speed(upload: impl Future<Output = ()>) -> f64 {
    let started = Instant::now();
    upload.await;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let mib = LARGE as f64;
    mib / started.elapsed().as_secs_f64()
}

fn pieces(mib: usize) -> impl Iterator<Item = Bytes> {
    let piece = Bytes::from((0..MIB).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>());
    (0..mib).map(move |_| piece.clone())
}

/// Uploads so many mebibytes through `web`.
async fn through(url: &str, cookie: &str, mib: usize) {
    let body = reqwest::Body::wrap_stream(stream::iter(pieces(mib).map(Ok::<_, std::io::Error>)));
    let request = reqwest::Client::new().post(format!("{url}/api/v1/files?name=bench")).header("cookie", cookie);
    let request = request.header("origin", "http://localhost").header("content-length", mib * MIB);
    let answer = request.body(body).send().await.unwrap();
    assert_eq!(answer.status(), 201, "{:?}", answer.text().await);
}

/// Uploads so many mebibytes straight to the store, in parts of the same size.
async fn straight(store: &AmazonS3, mib: usize) {
    let path = format!("straight/{}", uuid::Uuid::new_v4()).as_str().into();
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&path).await.unwrap(), PART);
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
