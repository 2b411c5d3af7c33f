//! Runs one job, from its claim until its outcome is written to the queue.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, error_span, field, info, warn};
use uuid::Uuid;

use super::lease::{LeaseEnd, Leases};
use super::queue::{self, Claimed, Failed};
use super::{JobContext, JobError, Registry, Resources};
use crate::resources::postgres::{Limits, Pool};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// How long a write-back waits before a retry while Postgres is unavailable.
const WRITE_BACK_PAUSE: Duration = Duration::from_millis(250);

/// How long a write-back waits for its response. A connection that a firewall has dropped never gives one.
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(10);

/// How many completed jobs one statement deletes. With so many, the round trip costs little compared to the rows.
pub(super) const COMPLETION_BATCH: usize = 500;

/// A job that is done. The sender reports, once its deletion is written, whether this worker still held it.
pub(super) type Completion = ((i64, Uuid), oneshot::Sender<bool>);

/// What all jobs of a worker share.
pub(super) struct Execution {
    pub(super) registry: Registry,
    pub(super) resources: Arc<Resources>,
    pub(super) leases: Leases,
    pub(super) completions: mpsc::Sender<Completion>,
    pub(super) soft: CancellationToken,
    pub(super) hard: CancellationToken,
    pub(super) metrics: Metrics,
}

/// How an attempt ended.
enum Outcome {
    Done,
    Failed {
        error: String,
        retry: bool,
    },
    /// The job waits this long and has not used an attempt.
    Later(Duration),
    /// The lease expired, here or in the database. Another worker has the job.
    Lost,
    /// The drain's time limit has passed.
    Interrupted,
}

impl Execution {
    /// Runs one job until its outcome is written. The slot is free again when this returns.
    pub(super) async fn run(self: Arc<Self>, job: Claimed, token: Uuid, lease_end: LeaseEnd, _slot: OwnedSemaphorePermit) {
        let span = error_span!("job", job_id = job.id, job_kind = job.kind, request_id = field::Empty, traceparent = field::Empty);
        traces::resume(&span, job.trace_context.as_ref());
        let (id, kind, attempt) = (job.id, job.kind.clone(), job.attempt);
        async {
            self.metrics.job_begins(&kind, Duration::from_millis(job.wait_ms.try_into().unwrap_or_default()));
            info!(attempt, wait_ms = job.wait_ms, "job {id} {kind} starts");
            let started = Instant::now();
            let ended = self.attempt(job, token, lease_end).await;
            let took = started.elapsed();
            let run_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let pool = &self.resources.postgres;
            let outcome = match ended {
                Outcome::Done => {
                    info!(attempt, run_ms, outcome = "done", "job {id} {kind} is done");
                    "done"
                }
                Outcome::Lost => {
                    warn!(attempt, run_ms, outcome = "lost", "job {id} {kind}: lease expired; abandoning job");
                    "lost"
                }
                Outcome::Interrupted => {
                    info!(attempt, run_ms, outcome = "interrupted", "job {id} {kind} was interrupted by the end of the drain");
                    "interrupted"
                }
                Outcome::Later(delay) => {
                    write_back(pool, "postponement", || queue::postpone(pool, id, token, delay)).await;
                    info!(attempt, run_ms, outcome = "later", "job {id} {kind} waits for {delay:?}");
                    "later"
                }
                Outcome::Failed { error, retry } => {
                    match write_back(pool, "failure", || queue::fail(pool, id, token, &error, retry)).await {
                        Failed::Waits => {
                            warn!(attempt, run_ms, outcome = "failed", error, "job {id} {kind} failed: {error}");
                            "failed"
                        }
                        Failed::Dead => {
                            error!(attempt, run_ms, outcome = "dead", error, "job {id} {kind} is dead: {error}");
                            "dead"
                        }
                        Failed::Lost => {
                            warn!(attempt, run_ms, outcome = "lost", error, "job {id} {kind} failed after its lease expired: {error}");
                            "lost"
                        }
                    }
                }
            };
            self.metrics.job_ends(&kind, outcome, took);
            // An interrupted job stays held, so that the runner returns it to the queue with the rest.
            if outcome != "interrupted" {
                self.leases.drop(id, token);
            }
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, job: Claimed, token: Uuid, lease_end: LeaseEnd) -> Outcome {
        let id = job.id;
        let Some(kind) = self.registry.0.get(job.kind.as_str()) else {
            return Outcome::Failed { error: "this worker does not know the kind".to_owned(), retry: true };
        };
        let (handler, limit) = (kind.handler, kind.timeout);
        let postgres = self.resources.postgres.with_limits(Limits::within(limit));
        let (resources, soft) = (self.resources.clone(), self.soft.clone());
        let mut context = JobContext { postgres, resources, id, token, progress: job.progress, soft, completed: false };
        // A panic fails only this job. Nothing reads the context after a panic, so its state cannot be observed broken.
        let handler = AssertUnwindSafe(timeout(limit, handler(&job.payload, &mut context))).catch_unwind();
        let ended = tokio::select! {
            ended = handler => ended,
            () = lease_end.reached() => return Outcome::Lost,
            () = self.hard.cancelled() => return Outcome::Interrupted,
        };
        match ended {
            Ok(Ok(Ok(()))) if context.completed => Outcome::Done,
            Ok(Ok(Ok(()))) => self.complete(id, token).await,
            Ok(Ok(Err(JobError::GiveUp(e)))) => Outcome::Failed { error: format!("{e:#}"), retry: false },
            Ok(Ok(Err(JobError::Retry(e)))) => {
                e.chain().filter_map(|cause| cause.downcast_ref()).for_each(|error| self.resources.postgres.note(error));
                Outcome::Failed { error: format!("{e:#}"), retry: true }
            }
            Ok(Ok(Err(JobError::Later(delay)))) => Outcome::Later(delay),
            Ok(Err(_)) => Outcome::Failed { error: format!("took longer than {limit:?}"), retry: true },
            Err(panic) => Outcome::Failed { error: format!("panicked: {}", message(panic.as_ref())), retry: true },
        }
    }

    async fn complete(&self, id: i64, token: Uuid) -> Outcome {
        let (sender, deleted) = oneshot::channel();
        // Neither end of the channels is dropped while a job runs.
        let _ = self.completions.send(((id, token), sender)).await;
        if deleted.await == Ok(true) { Outcome::Done } else { Outcome::Lost }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Deletes completed jobs in batches. Each batch is what has come in while the last one was written.
pub(super) async fn write_completions(pool: Pool, mut done: mpsc::Receiver<Completion>) {
    let mut batch = Vec::new();
    while done.recv_many(&mut batch, COMPLETION_BATCH).await > 0 {
        let jobs: Vec<_> = batch.iter().map(|(job, _)| *job).collect();
        let deleted: std::collections::HashSet<_> =
            write_back(&pool, "completion", || queue::complete_all(&pool, &jobs)).await.into_iter().collect();
        for ((id, _), sender) in batch.drain(..) {
            let _ = sender.send(deleted.contains(&id));
        }
    }
}

/// Retries a write until it succeeds, because a job's outcome must survive a restart of Postgres.
pub(super) async fn write_back<T, F: Future<Output = sqlx::Result<T>>>(pool: &Pool, what: &str, write: impl Fn() -> F) -> T {
    let mut logged = false;
    loop {
        match pool.within(WRITE_BACK_TIMEOUT, write()).await {
            Ok(written) => return written,
            Err(e) => {
                if !std::mem::replace(&mut logged, true) {
                    warn!(error = %e, "cannot write a job's {what} yet, retrying: {e}");
                }
                sleep(WRITE_BACK_PAUSE).await;
            }
        }
    }
}
