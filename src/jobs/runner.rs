//! The main loop of a worker: claims jobs, runs them, and returns unfinished ones to the queue at the end.
//!
//! No transaction is open while a job runs. A worker holds a job for as long as its lease, which a heartbeat extends. A
//! worker that is cut off from Postgres stops its jobs before their leases expire in the database.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::execution::{COMPLETION_BATCH, Execution, write_back, write_completions};
use super::lease::Leases;
use super::queue::{Claimed, Wanted};
use super::{CHANNEL, FIRST_CHECK_DELAY, Registry, Resources, queue};
use crate::lifecycle::Heartbeat;
use crate::resources::postgres::{self, Pool, RECONNECT_TIMEOUT};
use crate::telemetry::metrics::Metrics;

/// How often a worker looks for due jobs if no notification wakes it. A due job may wait one second, and this is half
/// of it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long a claim waits for more free slots than one.
const SLOTS_PAUSE: Duration = Duration::from_millis(1);

/// How often a worker looks for jobs of unknown kinds. They are common during a deploy and never urgent.
const UNKNOWN_KINDS_INTERVAL: Duration = Duration::from_secs(30);

/// How long the connection that listens for notifications is kept.
const LISTENER_MAX_AGE: Duration = Duration::from_mins(1);

/// The parts of a worker.
pub struct Runner {
    pub registry: Registry,
    /// The kinds that it claims.
    pub kinds: Vec<String>,
    pub resources: Resources,
    /// How many jobs run at a time.
    pub concurrency: usize,
    /// How long the worker holds a job without a heartbeat.
    pub lease: Duration,
    /// A connection apart from the pool, from [`Pool::for_probes`].
    pub own_connection: Pool,
    /// Whether it begins a drain as soon as no job is due and none runs.
    pub until_idle: bool,
    /// Beats at each claim that Postgres answers, and while there is no free slot to claim for.
    pub claims: Heartbeat,
    pub metrics: Metrics,
}

impl Runner {
    /// Claims jobs until `soft`, lets the running ones finish until `hard`, and returns the rest to the queue.
    ///
    /// # Errors
    /// A helper task has panicked. An unavailable Postgres is not an error: the runner waits for it.
    pub async fn run(self, soft: CancellationToken, hard: CancellationToken) -> anyhow::Result<()> {
        let known = self.registry.kinds();
        let mut marks = Marks::of(self.kinds.iter().map(|kind| (kind.clone(), self.registry.rank(kind))));
        let pool = self.resources.postgres.clone();
        let leases = Leases::new(self.lease);
        let (completions, done) = mpsc::channel(COMPLETION_BATCH);
        let resources = Arc::new(self.resources);
        let execution = Arc::new(Execution {
            registry: self.registry,
            resources,
            leases: leases.clone(),
            completions,
            soft: soft.clone(),
            hard,
            metrics: self.metrics.clone(),
        });
        let wake = Arc::new(Notify::new());
        // The helpers end with this function, and this function ends with the first of them.
        let mut helpers = JoinSet::new();
        helpers.spawn(listen(pool.clone(), wake.clone()));
        helpers.spawn(leases.clone().keep(pool.clone(), self.own_connection));
        helpers.spawn(leases.clone().expire(pool.clone(), self.metrics));
        helpers.spawn(write_completions(pool.clone(), done));
        helpers.spawn(report_unknown(pool.clone(), known));

        let slots = Arc::new(Semaphore::new(self.concurrency));
        let running = TaskTracker::new();
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unavailable = false;
        while !soft.is_cancelled() {
            let free = tokio::select! {
                () = soft.cancelled() => break,
                ended = helpers.join_next() => anyhow::bail!("a helper task of the runner has ended: {ended:?}"),
                free = free_slots(&slots, self.concurrency) => free,
                // Every slot is in use, which is not a stall.
                _ = poll.tick() => {
                    self.claims.beat();
                    continue;
                }
            };
            let token = Uuid::new_v4();
            // Whether slots are left over, which means that nothing more is due.
            let mut idle = true;
            let (started, ends, (wanted, whole)) = (Instant::now(), leases.end_from_now(), marks.wanted());
            let limit = i64::try_from(free.len())?;
            let claim = async {
                // While Postgres is unavailable this may be an attempt to connect to a server that is gone.
                let limit_to_connect = if unavailable { RECONNECT_TIMEOUT } else { self.lease };
                let mut connection = timeout(limit_to_connect, pool.acquire()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
                queue::claim(&mut *connection, &wanted, limit, token, self.lease).await
            };
            match pool.within(self.lease / 3, claim).await {
                Ok(claimed) => {
                    self.claims.beat();
                    unavailable = false;
                    marks.scanned(whole, started, &claimed);
                    idle = claimed.len() < free.len();
                    if self.until_idle && whole && claimed.is_empty() && free.len() == self.concurrency {
                        info!("no job is due, so the worker exits");
                        soft.cancel();
                    }
                    for (job, slot) in claimed.into_iter().zip(free) {
                        let lease_end = leases.hold(job.id, token, ends);
                        running.spawn(execution.clone().run(job, token, lease_end, slot));
                    }
                }
                // Logged once, not at each poll.
                Err(e) if postgres::is_unavailable(&e) => {
                    if !std::mem::replace(&mut unavailable, true) {
                        warn!(error = %e, "cannot claim jobs: Postgres unavailable: {e}");
                    }
                }
                Err(e) => error!(error = %e, "cannot claim jobs: {e}"),
            }
            // If every slot was filled, more jobs may be due now. Otherwise wait for a notification or the next poll.
            if idle {
                tokio::select! {
                    () = soft.cancelled() => break,
                    () = wake.notified() => {}
                    _ = poll.tick() => {}
                }
            }
        }

        running.close();
        running.wait().await;
        let unfinished = leases.all();
        if !unfinished.is_empty() {
            let released = write_back(&pool, "release", || queue::release(&pool, &unfinished)).await;
            info!(jobs = released, "{released} unfinished job(s) returned to the queue");
        }
        Ok(())
    }
}

/// Waits for a free slot, then takes all that are free. Slots are freed in batches as completions are written, so it
/// waits a moment for a quarter of them. One claim statement for each slot would be most of the work.
async fn free_slots(slots: &Arc<Semaphore>, concurrency: usize) -> Vec<OwnedSemaphorePermit> {
    let mut free: Vec<_> = slots.clone().acquire_owned().await.into_iter().collect();
    let more = u32::try_from(concurrency / 4).unwrap_or(u32::MAX);
    drop(timeout(SLOTS_PAUSE, slots.acquire_many(more)).await);
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        free.push(slot);
    }
    free
}

/// Where the next claim starts in the index, for each kind.
///
/// While another transaction stays open, such as a nightly dump's, the index keeps the entries of all jobs completed
/// since. A scan from the beginning would read them each time. Jobs of a kind are claimed oldest first, so the
/// remaining ones are due later than those already claimed. The exception is a job whose transaction committed late,
/// which a full scan finds.
struct Marks {
    kinds: Vec<Wanted>,
    /// When the last full scan was, and how long it took.
    whole: Option<(Instant, Duration)>,
}

impl Marks {
    fn of(kinds: impl Iterator<Item = (String, i32)>) -> Self {
        Self { kinds: kinds.map(|(kind, rank)| Wanted { kind, rank, since: None }).collect(), whole: None }
    }

    /// What to claim, and whether that is a full scan. There is one each second. If full scans are slow they are rarer,
    /// so that they take a twentieth of the time, but there is one at least every five seconds.
    fn wanted(&self) -> (Vec<Wanted>, bool) {
        let fresh = |(at, took): (Instant, Duration)| at.elapsed() < (took * 20).clamp(Duration::from_secs(1), Duration::from_secs(5));
        if self.whole.is_some_and(fresh) {
            return (self.kinds.clone(), false);
        }
        (self.kinds.iter().map(|kind| Wanted { since: None, ..kind.clone() }).collect(), true)
    }

    fn scanned(&mut self, whole: bool, started: Instant, claimed: &[Claimed]) {
        if whole {
            self.whole = Some((Instant::now(), started.elapsed()));
        }
        for kind in &mut self.kinds {
            let latest = claimed.iter().filter(|job| job.kind == kind.kind).map(|job| job.due_at).max();
            kind.since = latest.or(kind.since);
        }
    }
}

/// Listens for notifications of new jobs. If it fails, the next poll finds the jobs, so it only waits and reconnects.
async fn listen(pool: Pool, wake: Arc<Notify>) {
    loop {
        // A connection outside the pool, because sqlx closes a dead one without a time limit and would block its place
        // in the pool meanwhile. It is replaced regularly, because a silent connection does not show whether it is
        // dead.
        let own = PgPoolOptions::new().max_connections(1).connect_lazy_with((*pool.connect_options()).clone());
        if let Ok(Ok(mut listener)) = timeout(LISTENER_MAX_AGE, PgListener::connect_with(&own)).await
            && let Ok(Ok(())) = timeout(LISTENER_MAX_AGE, listener.listen(CHANNEL)).await
        {
            // For jobs that were enqueued before it listened.
            wake.notify_one();
            let receive = async {
                while let Ok(Some(_)) = listener.try_recv().await {
                    wake.notify_one();
                }
            };
            let _ = timeout(LISTENER_MAX_AGE, receive).await;
        } else {
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Logs each kind of waiting job that this worker does not know, once. A newer or an older release enqueued such jobs.
/// They stay in the queue for a worker that knows the kind.
async fn report_unknown(pool: Pool, mut known: Vec<String>) {
    let mut check = interval_at(Instant::now() + FIRST_CHECK_DELAY, UNKNOWN_KINDS_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        check.tick().await;
        // An unavailable Postgres is logged elsewhere.
        for kind in pool.within(UNKNOWN_KINDS_INTERVAL, queue::waiting_kinds_but(&pool, &known)).await.unwrap_or_default() {
            warn!(job_kind = kind, "this worker does not know the kind {kind}; jobs of it wait for another worker");
            known.push(kind);
        }
    }
}
