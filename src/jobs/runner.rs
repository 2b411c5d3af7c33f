//! The engine of a worker: claims jobs, has them run, and gives back at the end what is unfinished.
//!
//! No transaction is open while a job runs. A job is a worker's own for as long as its lease, which a heartbeat extends;
//! a worker that is cut off from Postgres stops its jobs before their leases end elsewhere.

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
use super::{CHANNEL, FIRST_LOOK, Registry, Resources, queue};
use crate::lifecycle::Pulse;
use crate::resources::postgres::{self, Pool};
use crate::telemetry::metrics::Metrics;

/// How often a worker looks for due jobs when nothing wakes it: half of the second that a due job may wait.
const POLL: Duration = Duration::from_millis(500);

/// How long a claim waits for more free slots than one.
const SLOTS_PAUSE: Duration = Duration::from_millis(1);

/// How often a worker looks for jobs that nobody may know: a deploy's order, not an emergency.
const UNKNOWN: Duration = Duration::from_secs(30);

/// How long the connection that hears of new jobs is kept.
const LISTENER_LIFE: Duration = Duration::from_mins(1);

/// What a worker is made of.
pub struct Runner {
    pub registry: Registry,
    /// The kinds that it claims.
    pub kinds: Vec<String>,
    pub resources: Resources,
    /// Jobs that run at a time.
    pub concurrency: usize,
    /// How long a job is the worker's own without a heartbeat.
    pub lease: Duration,
    /// Beats with each claim that Postgres has answered, and while there is no slot to claim for.
    pub claims: Pulse,
    pub metrics: Metrics,
}

impl Runner {
    /// Works until `soft`, finishes what runs until `hard`, and gives back the rest.
    ///
    /// # Errors
    /// A part of it has panicked. While Postgres is away it waits.
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
        // They live as long as this function, and it no longer than any of them.
        let mut helpers = JoinSet::new();
        helpers.spawn(listen(pool.clone(), wake.clone()));
        helpers.spawn(leases.clone().keep(pool.clone()));
        helpers.spawn(leases.clone().expire(pool.clone(), self.metrics));
        helpers.spawn(write_completions(pool.clone(), done));
        helpers.spawn(report_unknown(pool.clone(), known));

        let slots = Arc::new(Semaphore::new(self.concurrency));
        let running = TaskTracker::new();
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        while !soft.is_cancelled() {
            let free = tokio::select! {
                () = soft.cancelled() => break,
                ended = helpers.join_next() => anyhow::bail!("a part of the runner has ended: {ended:?}"),
                free = free_slots(&slots, self.concurrency) => free,
                // Every slot works: that is no stall.
                _ = poll.tick() => {
                    self.claims.beat();
                    continue;
                }
            };
            let token = Uuid::new_v4();
            // Whether slots are left over, and so nothing more is due.
            let mut idle = true;
            let (started, ends, (wanted, whole)) = (Instant::now(), leases.end_from_now(), marks.wanted());
            let claim = queue::claim(&pool, &wanted, i64::try_from(free.len())?, token, self.lease);
            match pool.within(self.lease / 3, claim).await {
                Ok(claimed) => {
                    self.claims.beat();
                    away = false;
                    marks.scanned(whole, started, &claimed);
                    idle = claimed.len() < free.len();
                    for (job, slot) in claimed.into_iter().zip(free) {
                        let lease_end = leases.hold(job.id, token, ends);
                        running.spawn(execution.clone().run(job, token, lease_end, slot));
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
            info!(jobs = released, "{released} unfinished job(s) given back for another worker");
        }
        Ok(())
    }
}

/// Waits for a free slot, and takes all that are free. Slots come free many at a time, as completions are written, so it
/// waits a moment for a quarter of them: a statement for each would be most of the work.
async fn free_slots(slots: &Arc<Semaphore>, concurrency: usize) -> Vec<OwnedSemaphorePermit> {
    let mut free: Vec<_> = slots.clone().acquire_owned().await.into_iter().collect();
    let more = u32::try_from(concurrency / 4).unwrap_or(u32::MAX);
    drop(timeout(SLOTS_PAUSE, slots.acquire_many(more)).await);
    while let Ok(slot) = slots.clone().try_acquire_owned() {
        free.push(slot);
    }
    free
}

/// Where the next claim begins to look, for each kind.
///
/// While a transaction elsewhere stays open, as a nightly dump's does, the index keeps the entries of all the jobs that
/// were done since, and a scan from its beginning would wade through them each time. Jobs of a kind come oldest first, so
/// what is left is later than what was claimed; but for jobs whose transaction committed late, which a scan of the whole
/// finds.
struct Marks {
    kinds: Vec<Wanted>,
    /// When the whole was last scanned, and how long that took.
    whole: Option<(Instant, Duration)>,
}

impl Marks {
    fn of(kinds: impl Iterator<Item = (String, i32)>) -> Self {
        Self { kinds: kinds.map(|(kind, rank)| Wanted { kind, rank, since: None }).collect(), whole: None }
    }

    /// What to claim, and whether that scans the whole: each second, or as often as it takes a twentieth of the time, but at
    /// least each five seconds.
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

/// Hears of new jobs. Without it they are found at the next poll, so its failures are no more than a pause.
async fn listen(pool: Pool, wake: Arc<Notify>) {
    loop {
        // A connection of its own, apart from the pool: sqlx says goodbye to a dead one without a limit, and would keep its
        // place meanwhile. It is a new one each time, since none tells whether it is dead or only has nothing to say.
        let own = PgPoolOptions::new().max_connections(1).connect_lazy_with((*pool.connect_options()).clone());
        if let Ok(Ok(mut listener)) = timeout(LISTENER_LIFE, PgListener::connect_with(&own)).await
            && let Ok(Ok(())) = timeout(LISTENER_LIFE, listener.listen(CHANNEL)).await
        {
            // What was enqueued while nobody listened.
            wake.notify_one();
            let hear = async {
                while let Ok(Some(_)) = listener.try_recv().await {
                    wake.notify_one();
                }
            };
            let _ = timeout(LISTENER_LIFE, hear).await;
        } else {
            sleep(POLL).await;
        }
    }
}

/// Tells, once for each, of kinds that wait and that this worker does not know: a newer release enqueues them, or an
/// older one did. They stay in the queue for a worker that knows them.
async fn report_unknown(pool: Pool, mut known: Vec<String>) {
    let mut look = interval_at(Instant::now() + FIRST_LOOK, UNKNOWN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        // While Postgres is away others tell it.
        for kind in pool.within(UNKNOWN, queue::waiting_kinds_but(&pool, &known)).await.unwrap_or_default() {
            warn!(job_kind = kind, "jobs of the kind {kind} wait, which this worker does not know");
            known.push(kind);
        }
    }
}
