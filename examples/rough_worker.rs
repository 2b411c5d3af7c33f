//! A worker for tests and measurements: its kinds misbehave on purpose. The production worker knows none of them.

use std::time::Duration;

use app::jobs::{Job, JobContext, JobError, Priority, Registry};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Writes a row into the table `effects`, in the transaction that is also the job's end.
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
                return Err(JobError::PUT_DOWN);
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

/// Somebody waits for it.
#[derive(Serialize, Deserialize)]
struct Awaited {}

impl Job for Awaited {
    const KIND: &'static str = "awaited";
    const PRIORITY: Priority = Priority::Awaited;

    async fn run(&self, _: &mut JobContext) -> Result<(), JobError> {
        Ok(())
    }
}

/// One of very many.
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

/// Takes its whole process down.
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

/// Locks its own row for a while, as a job does that completes in a long transaction.
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

fn main() -> std::process::ExitCode {
    let registry = Registry::default().with::<Count>().with::<Steps>().with::<Noop>().with::<Sleep>().with::<Abort>().with::<Panic>();
    let registry = registry.with::<Awaited>().with::<Bulk>();
    app::processes::worker::run(registry.with::<Fail>().with::<GiveUp>().with::<TooSlow>().with::<HoldRow>())
}
