//! A worker's leases: which jobs it holds, until when, and the heartbeat that extends them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};
use tracing::{error, warn};
use uuid::Uuid;

use super::FIRST_CHECK_DELAY;
use super::queue::{self, Expired};
use crate::resources::postgres::Pool;
use crate::telemetry::metrics::Metrics;

/// The jobs that a worker holds, each with its token and the sender that announces an extended lease.
type Held = HashMap<i64, (Uuid, watch::Sender<Instant>)>;

/// The leases that a worker holds.
#[derive(Clone)]
pub(super) struct Leases {
    length: Duration,
    held: Arc<Mutex<Held>>,
}

/// When a lease ends, by this machine's monotonic clock. The heartbeat moves it.
pub(super) struct LeaseEnd(watch::Receiver<Instant>);

impl Leases {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When leases that are requested now end for this worker. That is a sixth early, which covers a slow scheduler.
    /// The clock starts before the statement does, so a lease always ends here before it ends in the database.
    pub(super) fn end_from_now(&self) -> Instant {
        Instant::now() + self.length * 5 / 6
    }

    pub(super) fn hold(&self, id: i64, token: Uuid, ends: Instant) -> LeaseEnd {
        let (sender, receiver) = watch::channel(ends);
        self.held().insert(id, (token, sender));
        LeaseEnd(receiver)
    }

    /// Drops the lease with this token. Another attempt of the same job has another token and keeps its lease.
    pub(super) fn drop(&self, id: i64, token: Uuid) {
        let mut held = self.held();
        if held.get(&id).is_some_and(|(holder, _)| *holder == token) {
            held.remove(&id);
        }
    }

    /// The jobs that are still held.
    pub(super) fn all(&self) -> Vec<(i64, Uuid)> {
        self.held().iter().map(|(id, (token, _))| (*id, *token)).collect()
    }

    /// Extends the leases of the running jobs. If these hold every connection of the pool, it uses a connection apart.
    pub(super) async fn keep(self, pool: Pool, apart: Pool) {
        let every = self.length / 3;
        let mut beat = interval(every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let jobs = self.all();
            if !jobs.is_empty() {
                let ends = self.end_from_now();
                let extended = match pool.within(every, queue::extend(&pool, &jobs, self.length)).await {
                    Err(sqlx::Error::PoolTimedOut) => apart.within(every, queue::extend(&apart, &jobs, self.length)).await,
                    extended => extended,
                };
                match extended {
                    Ok(extended) => {
                        let held = self.held();
                        for (_, sender) in extended.iter().filter_map(|id| held.get(id)) {
                            sender.send_replace(ends);
                        }
                    }
                    Err(e) => warn!(error = %e, "cannot extend leases: {e}"),
                }
            }
        }
    }

    /// Fails the jobs of workers that are gone. It is a task of its own, so that a delay here cannot cost this worker a
    /// lease.
    pub(super) async fn expire(self, pool: Pool, metrics: Metrics) {
        let every = self.length / 3;
        let mut check = interval_at(Instant::now() + FIRST_CHECK_DELAY, every);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            check.tick().await;
            match pool.within(every, queue::expire(&pool)).await {
                Ok(expired) => expired.iter().for_each(|job| report(job, &metrics)),
                Err(e) => warn!(error = %e, "cannot take back the jobs of lost workers: {e}"),
            }
        }
    }
}

fn report(Expired { id, kind, attempt, dead }: &Expired, metrics: &Metrics) {
    metrics.job_lost(kind);
    if *dead {
        error!(job_id = id, job_kind = kind, attempt, outcome = "dead", "job {id} {kind} is dead: its worker was lost");
    } else {
        warn!(job_id = id, job_kind = kind, attempt, outcome = "expired", "job {id} {kind} is taken back: its worker was lost");
    }
}

impl LeaseEnd {
    /// Returns when the lease has expired.
    pub(super) async fn reached(mut self) {
        loop {
            let end = *self.0.borrow_and_update();
            tokio::select! {
                () = sleep_until(end) => return,
                changed = self.0.changed() => if changed.is_err() { return sleep_until(end).await },
            }
        }
    }
}
