//! A worker for tests and benchmarks. Its jobs misbehave on purpose. The production worker does not know their kinds.

use std::path::PathBuf;
use std::time::Duration;

use app::jobs::{Job, JobContext, JobError, Priority, Registry};
use app::release::{COMMIT, Release};
use app::resources::http_client::HttpClient;
use app::resources::token_file::TokenFile;
use app::telemetry::metrics::Metrics;
use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Writes a row into the table `effects`, in the transaction that also completes the job.
#[derive(Serialize, Deserialize)]
struct Count {
    number: i32,
    millis: u64,
}

impl Job for Count {
    const KIND: &'static str = "count";
    const MAX_ATTEMPTS: i32 = 1000;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        sleep(Duration::from_millis(self.millis)).await;
        let mut transaction = context.postgres.begin().await?;
        sqlx::query("INSERT INTO effects (number) VALUES ($1)").bind(self.number).execute(&mut *transaction).await?;
        context.complete(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }
}

/// Goes through steps. Each leaves a row in the table `effects`, in the transaction that saves it.
#[derive(Serialize, Deserialize)]
struct Steps {
    count: i32,
    millis: u64,
    /// Fails whenever it comes to this step.
    #[serde(default)]
    stuck_at: Option<i32>,
    /// Fails after each step that it saved.
    #[serde(default)]
    fails: bool,
}

impl Job for Steps {
    const KIND: &'static str = "steps";
    const MAX_ATTEMPTS: i32 = 2;

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let mut done: i32 = context.progress()?.unwrap_or_default();
        while done < self.count {
            if context.draining() {
                return Err(JobError::DRAINED);
            }
            sleep(Duration::from_millis(self.millis)).await;
            if self.stuck_at == Some(done) {
                context.save(&done).await?;
                return Err(anyhow::anyhow!("stuck at step {done}").into());
            }
            let mut transaction = context.postgres.begin().await?;
            sqlx::query("INSERT INTO effects (number) VALUES ($1)").bind(done).execute(&mut *transaction).await?;
            done += 1;
            context.save_in(&mut transaction, &done).await?;
            transaction.commit().await?;
            if self.fails && done < self.count {
                return Err(anyhow::anyhow!("failed after step {done}").into());
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Noop {}

impl Job for Noop {
    const KIND: &'static str = "noop";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Sleep {
    millis: u64,
}

impl Job for Sleep {
    const KIND: &'static str = "sleep";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        sleep(Duration::from_millis(self.millis)).await;
        Ok(())
    }
}

/// A job that a person waits for.
#[derive(Serialize, Deserialize)]
struct Awaited {}

impl Job for Awaited {
    const KIND: &'static str = "awaited";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

/// One of very many jobs.
#[derive(Serialize, Deserialize)]
struct Bulk {
    millis: u64,
}

impl Job for Bulk {
    const KIND: &'static str = "bulk";
    const PRIORITY: Priority = Priority::Bulk;

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        sleep(Duration::from_millis(self.millis)).await;
        Ok(())
    }
}

/// Aborts the whole process.
#[derive(Serialize, Deserialize)]
struct Abort {}

impl Job for Abort {
    const KIND: &'static str = "abort";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        std::process::abort()
    }
}

#[derive(Serialize, Deserialize)]
struct Panic {}

impl Job for Panic {
    const KIND: &'static str = "panic";

    #[expect(clippy::panic, reason = "that is what it is for")]
    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        panic!("on purpose")
    }
}

#[derive(Serialize, Deserialize)]
struct Fail {}

impl Job for Fail {
    const KIND: &'static str = "fail";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Err(anyhow::anyhow!("an error of its own").into())
    }
}

#[derive(Serialize, Deserialize)]
struct GiveUp {}

impl Job for GiveUp {
    const KIND: &'static str = "give_up";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Err(JobError::GiveUp(anyhow::anyhow!("no retry can help")))
    }
}

#[derive(Serialize, Deserialize)]
struct TooSlow {}

impl Job for TooSlow {
    const KIND: &'static str = "too_slow";
    const TIMEOUT: Duration = Duration::from_millis(100);

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        std::future::pending().await
    }
}

/// Locks its own row for a while, like a job that completes in a long transaction.
#[derive(Serialize, Deserialize)]
struct HoldRow {
    millis: u64,
}

impl Job for HoldRow {
    const KIND: &'static str = "hold_row";

    async fn run(&self, context: &mut JobContext) -> Result<(), JobError> {
        let mut transaction = context.postgres.begin().await?;
        context.complete(&mut transaction).await?;
        sleep(Duration::from_millis(self.millis)).await;
        Ok(transaction.commit().await?)
    }
}

/// Calls another service, which must answer 200. Each call is 100 milliseconds after the one before.
#[derive(Serialize, Deserialize)]
struct Call {
    url: String,
    /// The file with the token that the calls send.
    token_file: Option<PathBuf>,
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

impl Job for Call {
    const KIND: &'static str = "call";

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        let release = Release { service: "app".to_owned(), commit: COMMIT, release: None, process: "worker" };
        let client = HttpClient::for_configured_urls(Metrics::new(&release), || 0)?;
        let token = self.token_file.clone().map(TokenFile::new);
        for _ in 0..self.times {
            let mut request = Request::get(&self.url).body(Bytes::new())?;
            if let Some(token) = &token {
                token.authorize(&mut request).await?;
            }
            let status = client.send(request).await?.status();
            if status != StatusCode::OK {
                return Err(anyhow::anyhow!("the other service answered {status}").into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn main() -> std::process::ExitCode {
    let registry = Registry::default().with::<Count>().with::<Steps>().with::<Noop>().with::<Sleep>().with::<Abort>().with::<Panic>();
    let registry = registry.with::<Awaited>().with::<Bulk>().with::<Call>();
    app::processes::worker::run(registry.with::<Fail>().with::<GiveUp>().with::<TooSlow>().with::<HoldRow>())
}
