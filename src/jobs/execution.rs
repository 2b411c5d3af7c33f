//! One job from its claim to its written end.

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

/// How long a write-back waits before it is tried again while Postgres is away.
const WRITE_BACK_PAUSE: Duration = Duration::from_millis(250);

/// How long a write-back waits for its answer: a connection that a firewall has forgotten never gives one.
const WRITE_BACK_PATIENCE: Duration = Duration::from_secs(10);

/// How many completions one statement deletes: enough that its round trip is small beside the rows.
pub(super) const COMPLETION_BATCH: usize = 500;

/// A job that is done, and whom to tell when its deletion is written, with whether it was still held.
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
    /// It waits so long, and has spent no attempt.
    Later(Duration),
    /// The lease ended, here or in the database: the job is another worker's.
    Lost,
    /// The drain's time is over.
    Interrupted,
}

impl Execution {
    /// Runs one job to its written end. The slot is free again when this returns.
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
                    warn!(attempt, run_ms, outcome = "lost", "job {id} {kind} is given up here, its lease has ended");
                    "lost"
                }
                Outcome::Interrupted => {
                    info!(attempt, run_ms, outcome = "interrupted", "job {id} {kind} is unfinished");
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
                            warn!(attempt, run_ms, outcome = "lost", error, "job {id} {kind} failed, and is another worker's: {error}");
                            "lost"
                        }
                    }
                }
            };
            self.metrics.job_ends(&kind, outcome, took);
            // What was interrupted is still held, so that it is given back with the rest.
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
        // A panic is the job's alone. The context is not looked at after one, so it cannot be seen broken.
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
        let (tell, told) = oneshot::channel();
        // Neither end of the channels is dropped while a job runs.
        let _ = self.completions.send(((id, token), tell)).await;
        if told.await == Ok(true) { Outcome::Done } else { Outcome::Lost }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Deletes jobs that are done, as many at a time as have come in while the last were written.
pub(super) async fn write_completions(pool: Pool, mut done: mpsc::Receiver<Completion>) {
    let mut batch = Vec::new();
    while done.recv_many(&mut batch, COMPLETION_BATCH).await > 0 {
        let jobs: Vec<_> = batch.iter().map(|(job, _)| *job).collect();
        let deleted: std::collections::HashSet<_> =
            write_back(&pool, "completion", || queue::complete_all(&pool, &jobs)).await.into_iter().collect();
        for ((id, _), tell) in batch.drain(..) {
            let _ = tell.send(deleted.contains(&id));
        }
    }
}

/// Writes until it is written: what became of a job must outlive a restart of Postgres.
pub(super) async fn write_back<T, F: Future<Output = sqlx::Result<T>>>(pool: &Pool, what: &str, write: impl Fn() -> F) -> T {
    let mut told = false;
    loop {
        match pool.within(WRITE_BACK_PATIENCE, write()).await {
            Ok(written) => return written,
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(error = %e, "{what} not written yet, trying on: {e}");
                }
                sleep(WRITE_BACK_PAUSE).await;
            }
        }
    }
}
