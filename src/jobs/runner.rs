//! The engine of a worker: claims jobs, runs them, writes back what became of them, and gives them back at the end.
//!
//! No transaction is open while a job runs. A job is a worker's own for as long as its lease, which a heartbeat extends;
//! a worker that is cut off from Postgres stops its jobs before their leases end elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{Instrument, error, info, info_span, warn};
use uuid::Uuid;

use super::queue::{self, Claimed, Failed};
use super::{JobContext, JobError, Registry, Resources};
use crate::lifecycle::Pulse;
use crate::resources::postgres;

/// How often a worker looks for due jobs when nothing wakes it: half of the second that a due job may wait.
const POLL: Duration = Duration::from_millis(500);

/// How long a write-back waits before it is tried again while Postgres is away.
const WRITE_BACK_PAUSE: Duration = Duration::from_millis(250);

/// How many completions one statement deletes: enough that its round trip is small beside the rows.
const COMPLETION_BATCH: usize = 500;

/// What a worker is made of.
pub struct Runner {
    pub registry: Registry,
    pub resources: Resources,
    /// Jobs that run at a time.
    pub concurrency: usize,
    /// How long a job is the worker's own without a heartbeat.
    pub lease: Duration,
    /// Beats with each claim that Postgres has answered.
    pub claims: Pulse,
}

/// A job that runs here: under which token, and the sender of the time when its lease ends.
type Held = HashMap<i64, (Uuid, watch::Sender<Instant>)>;

struct Engine {
    registry: Registry,
    resources: Resources,
    lease: Duration,
    held: Mutex<Held>,
    completions: mpsc::Sender<Completion>,
    hard: CancellationToken,
}

/// A job that is done, and whom to tell when its deletion is written, with whether it was still held.
type Completion = ((i64, Uuid), oneshot::Sender<bool>);

/// Why a job's handler ended.
enum Outcome {
    Done,
    Failed {
        error: String,
        retry: bool,
    },
    /// The lease could not be extended in time.
    Cancelled,
    /// The drain's time is over.
    Interrupted,
}

impl Runner {
    /// Works until `soft`, finishes what runs until `hard`, and gives back the rest.
    ///
    /// # Errors
    /// None that lasts: while Postgres is away it waits.
    pub async fn run(self, soft: CancellationToken, hard: CancellationToken) -> anyhow::Result<()> {
        let kinds = self.registry.kinds();
        let pool = self.resources.postgres.clone();
        let (completions, done) = mpsc::channel(COMPLETION_BATCH);
        let (registry, resources, lease) = (self.registry, self.resources, self.lease);
        let engine = Arc::new(Engine { registry, resources, lease, held: Mutex::default(), completions, hard: hard.clone() });
        let wake = Arc::new(Notify::new());
        // Each ends with this function, whatever ends it.
        let helpers = (
            AbortOnDropHandle::new(tokio::spawn(listen(pool.clone(), wake.clone()))),
            AbortOnDropHandle::new(tokio::spawn(heartbeat(engine.clone(), pool.clone()))),
            AbortOnDropHandle::new(tokio::spawn(write_completions(pool.clone(), done))),
        );

        let slots = Arc::new(Semaphore::new(self.concurrency));
        let running = TaskTracker::new();
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        while !soft.is_cancelled() {
            let mut free = tokio::select! {
                () = soft.cancelled() => break,
                free = free_slots(&slots) => free,
            };
            let token = Uuid::new_v4();
            let ends = Instant::now() + safe_part(self.lease);
            let limit = i64::try_from(free.len()).unwrap_or(i64::MAX);
            match queue::claim(&pool, &kinds, limit, token, self.lease).await {
                Ok(claimed) => {
                    self.claims.beat();
                    away = false;
                    for job in claimed {
                        let (sender, lease_end) = watch::channel(ends);
                        engine.held().insert(job.id, (token, sender));
                        running.spawn(engine.clone().work(job, token, lease_end, free.pop()));
                    }
                }
                // Told once, not at each poll.
                Err(e) if postgres::is_unavailable(&e) => {
                    if !std::mem::replace(&mut away, true) {
                        warn!(error = %e, "no jobs claimed, Postgres is away: {e}");
                    }
                }
                Err(e) => error!(error = %e, "no jobs claimed: {e}"),
            }
            // With every slot filled there may be more at once; else wait for something new or due.
            if !free.is_empty() {
                drop(free);
                tokio::select! {
                    () = soft.cancelled() => break,
                    () = wake.notified() => {}
                    _ = poll.tick() => {}
                }
            }
        }

        running.close();
        running.wait().await;
        let unfinished: Vec<_> = engine.held().drain().map(|(id, (token, _))| (id, token)).collect();
        if !unfinished.is_empty() {
            let released = write_back("release", || queue::release(&pool, &unfinished)).await;
            info!(jobs = released, "{released} unfinished job(s) given back for another worker");
        }
        drop(helpers);
        Ok(())
    }
}

/// Waits for a free slot, and takes all that are free.
async fn free_slots(slots: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    let mut free: Vec<_> = slots.clone().acquire_owned().await.into_iter().collect();
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        free.push(slot);
    }
    free
}

/// The part of a lease that a worker relies on: the rest covers the time that its claim was under way and a slow scheduler.
fn safe_part(lease: Duration) -> Duration {
    lease * 5 / 6
}

impl Engine {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one job to its written end. The slot is free again when this returns.
    async fn work(self: Arc<Self>, job: Claimed, token: Uuid, lease_end: watch::Receiver<Instant>, _slot: Option<OwnedSemaphorePermit>) {
        let request_id = job.trace_context.as_ref().and_then(|context| context.get("request_id")?.as_str());
        let span = info_span!("job", job_id = job.id, job_kind = job.kind, request_id);
        let (id, kind, attempt) = (job.id, job.kind.clone(), job.attempt);
        async {
            info!(attempt, wait_ms = job.wait_ms, "job {id} {kind} starts");
            let started = Instant::now();
            let outcome = self.run_handler(job, token, lease_end).await;
            let run_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            match outcome {
                Outcome::Done => info!(attempt, run_ms, outcome = "done", "job {id} {kind} is done"),
                Outcome::Cancelled => {
                    warn!(attempt, run_ms, outcome = "lost", "job {id} {kind} was stopped, its lease could not be extended");
                }
                Outcome::Interrupted => return info!(attempt, run_ms, outcome = "interrupted", "job {id} {kind} is unfinished"),
                Outcome::Failed { error, retry } => {
                    match write_back("failure", || queue::fail(&self.resources.postgres, id, token, &error, retry)).await {
                        Failed::Waits => warn!(attempt, run_ms, outcome = "failed", error, "job {id} {kind} failed: {error}"),
                        Failed::Dead => error!(attempt, run_ms, outcome = "dead", error, "job {id} {kind} is dead: {error}"),
                        Failed::Lost => {
                            warn!(attempt, run_ms, outcome = "lost", error, "job {id} {kind} failed, and is another worker's: {error}");
                        }
                    }
                }
            }
            self.held().remove(&id);
        }
        .instrument(span)
        .await;
    }

    async fn run_handler(&self, job: Claimed, token: Uuid, lease_end: watch::Receiver<Instant>) -> Outcome {
        let id = job.id;
        let Some(kind) = self.registry.0.get(job.kind.as_str()) else {
            return Outcome::Failed { error: "this worker does not know the kind".to_owned(), retry: true };
        };
        let (handler, limit) = (kind.handler, kind.timeout);
        let mut context = JobContext { resources: self.resources.clone(), id, token, completed: false };
        // A task of its own, so that a panic is the job's alone; dropped, it is stopped at its next await.
        let mut task = AbortOnDropHandle::new(tokio::spawn(
            async move {
                let result = timeout(limit, handler(&job.payload, &mut context)).await;
                (result, context.completed)
            }
            .in_current_span(),
        ));
        let ended = tokio::select! {
            ended = &mut task => ended,
            () = expired(lease_end) => return Outcome::Cancelled,
            () = self.hard.cancelled() => return Outcome::Interrupted,
        };
        match ended {
            Ok((Ok(Ok(())), true)) => Outcome::Done,
            Ok((Ok(Ok(())), false)) => self.complete(id, token).await,
            Ok((Ok(Err(JobError::GiveUp(e))), _)) => Outcome::Failed { error: format!("{e:#}"), retry: false },
            Ok((Ok(Err(JobError::Retry(e))), _)) => Outcome::Failed { error: format!("{e:#}"), retry: true },
            Ok((Err(_), _)) => Outcome::Failed { error: format!("took longer than {limit:?}"), retry: true },
            Err(panic) => Outcome::Failed { error: format!("panicked: {panic}"), retry: true },
        }
    }

    async fn complete(&self, id: i64, token: Uuid) -> Outcome {
        let (tell, told) = oneshot::channel();
        // Neither end of the channels is dropped while a job runs.
        let _ = self.completions.send(((id, token), tell)).await;
        match told.await {
            Ok(true) => Outcome::Done,
            _ => Outcome::Cancelled,
        }
    }
}

/// Returns when the lease has ended without being extended.
async fn expired(mut lease_end: watch::Receiver<Instant>) {
    loop {
        let end = *lease_end.borrow_and_update();
        tokio::select! {
            () = sleep_until(end) => return,
            changed = lease_end.changed() => if changed.is_err() { sleep_until(end).await },
        }
    }
}

/// Extends the leases of what runs here, and fails what ran on workers that are gone.
async fn heartbeat(engine: Arc<Engine>, pool: PgPool) {
    let mut tick = interval(engine.lease / 3);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let jobs: Vec<_> = engine.held().iter().map(|(id, (token, _))| (*id, *token)).collect();
        if !jobs.is_empty() {
            let ends = Instant::now() + safe_part(engine.lease);
            match timeout(engine.lease / 3, queue::extend(&pool, &jobs, engine.lease)).await {
                Ok(Ok(extended)) => {
                    let held = engine.held();
                    for (_, sender) in extended.iter().filter_map(|id| held.get(id)) {
                        sender.send_replace(ends);
                    }
                }
                Ok(Err(e)) => warn!(error = %e, "leases not extended: {e}"),
                Err(_) => warn!("leases not extended: Postgres gave no answer in time"),
            }
        }
        match queue::expire(&pool).await {
            Ok(expired) => {
                for job in expired {
                    let queue::Expired { id, kind, attempt, dead } = job;
                    if dead {
                        error!(job_id = id, job_kind = kind, attempt, outcome = "dead", "job {id} {kind} is dead: its worker was lost");
                    } else {
                        warn!(
                            job_id = id,
                            job_kind = kind,
                            attempt,
                            outcome = "expired",
                            "job {id} {kind} is taken back: its worker was lost"
                        );
                    }
                }
            }
            Err(e) => warn!(error = %e, "lost jobs not taken back: {e}"),
        }
    }
}

/// Deletes jobs that are done, as many at a time as have come in while the last were written.
async fn write_completions(pool: PgPool, mut done: mpsc::Receiver<Completion>) {
    let mut batch = Vec::new();
    while done.recv_many(&mut batch, COMPLETION_BATCH).await > 0 {
        let jobs: Vec<_> = batch.iter().map(|(job, _)| *job).collect();
        let deleted = write_back("completion", || queue::complete_all(&pool, &jobs)).await;
        for ((id, _), tell) in batch.drain(..) {
            let _ = tell.send(deleted.contains(&id));
        }
    }
}

/// Writes until it is written: what became of a job must outlive a restart of Postgres.
async fn write_back<T, F: Future<Output = sqlx::Result<T>>>(what: &str, write: impl Fn() -> F) -> T {
    let mut failures = 0_u32;
    loop {
        match write().await {
            Ok(written) => return written,
            Err(e) => {
                if failures == 0 {
                    warn!(error = %e, "{what} not written yet, trying on: {e}");
                }
                failures += 1;
                sleep(WRITE_BACK_PAUSE).await;
            }
        }
    }
}

/// Hears of new jobs. Without it they are found at the next poll, so its failures are no more than a pause.
async fn listen(pool: PgPool, wake: Arc<Notify>) {
    // It keeps a connection for itself; a pool of one is needed for the claims.
    while pool.options().get_max_connections() > 1 {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(queue::CHANNEL).await.is_ok()
        {
            // What was enqueued while nobody listened.
            wake.notify_one();
            while let Ok(Some(_)) = listener.try_recv().await {
                wake.notify_one();
            }
        }
        sleep(POLL).await;
    }
}
