//! The `clock` process: enqueues jobs by the schedule. It runs no jobs itself.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::retention::PurgeExpired;
use crate::config;
use crate::features::FEATURES;
use crate::http::probes::{self, Health};
use crate::http::server::{listen, serve};
use crate::jobs::schedule::Schedule;
use crate::jobs::{Notifier, operator};
use crate::lifecycle::{self, Heartbeat, Lifecycle};
use crate::resources::postgres::{self, Limits, Pool, RECONNECT_TIMEOUT};
use crate::telemetry::metrics::Metrics;

/// How often the clock checks the schedule. A tick's job is at most this late.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the clock counts the queue for the metrics.
const QUEUE_COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// How long Postgres may take to handle one schedule.
const SCHEDULE_TIMEOUT: Duration = Duration::from_secs(2);

/// A clock without a successful check for this long is not ready.
const TICKS_STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The schedule, in UTC: the lines of the core and of the features.
///
/// # Errors
/// A cron expression is invalid or never ticks.
pub fn schedule() -> anyhow::Result<Vec<Schedule>> {
    // The name is the key that the last tick is stored under.
    let mut schedule = vec![Schedule::new("purge-expired", "15 * * * *", |_| PurgeExpired {})?];
    for feature in FEATURES {
        schedule.extend((feature.schedule)()?);
    }
    Ok(schedule)
}

pub fn main() -> ExitCode {
    match lifecycle::option(
        None,
        "usage: clock\nIt takes no arguments, and its config comes from environment variables: see `admin config`",
    ) {
        Ok(_) => lifecycle::run("clock", super::connect, start),
        Err(status) => status,
    }
}

async fn start(process: config::Process, config: config::Clock, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = Pool::attach(&config.database, "clock", Limits::within(SCHEDULE_TIMEOUT))?;
    postgres.follow(lifecycle, &config.database);
    postgres.count(&lifecycle.metrics);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));
    let looks = Heartbeat::default();
    let probes =
        Health::default().postgres(&postgres, &postgres.for_probes()).heartbeat("ticks", &looks, TICKS_STALL_TIMEOUT).start(lifecycle);
    if let Some(port) = process.metrics_port {
        lifecycle.spawn("queue count", keep_counting(postgres.clone(), lifecycle.metrics.clone(), lifecycle.soft.clone()));
        serve(listen("metrics", port).await?, probes::with_metrics(probes, &lifecycle.metrics), Duration::ZERO, false, lifecycle);
    }
    let clock = Clock { schedules: schedule()?, postgres, notifier, looks, metrics: lifecycle.metrics.clone() };
    lifecycle.spawn("schedule", clock.run(lifecycle.soft.clone()));
    Ok(())
}

struct Clock {
    schedules: Vec<Schedule>,
    postgres: Pool,
    notifier: Notifier,
    looks: Heartbeat,
    metrics: Metrics,
}

impl Clock {
    async fn run(self, soft: CancellationToken) -> anyhow::Result<()> {
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unavailable = false;
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                _ = check.tick() => {}
            }
            match self.tick_all(unavailable).await {
                Ok(()) => {
                    self.looks.beat();
                    self.metrics.looked();
                    unavailable = false;
                }
                // Logged once, not at each check.
                Err(e) if e.downcast_ref().is_some_and(postgres::is_unavailable) => {
                    if !std::mem::replace(&mut unavailable, true) {
                        warn!(error = format!("{e:#}"), "cannot check the schedule: Postgres unavailable: {e:#}");
                    }
                }
                Err(e) => error!(error = format!("{e:#}"), "cannot check the schedule: {e:#}"),
            }
        }
    }

    /// Checks every schedule. One that fails does not delay the others. With `reconnect` it first makes sure of a connection.
    async fn tick_all(&self, reconnect: bool) -> anyhow::Result<()> {
        if reconnect {
            drop(timeout(RECONNECT_TIMEOUT, self.postgres.acquire()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?);
        }
        let mut result = Ok(());
        for schedule in &self.schedules {
            let tick = timeout(SCHEDULE_TIMEOUT, schedule.tick(&self.postgres, &self.metrics));
            match tick.await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into())) {
                Ok(Some(wake)) => wake.fire(&self.notifier),
                Ok(None) => {}
                Err(e) => {
                    e.chain().filter_map(|cause| cause.downcast_ref()).for_each(|error| self.postgres.note(error));
                    result = Err(e);
                }
            }
        }
        result
    }
}

/// Counts the queue for the metrics. The clock does it, because a worker that has stopped cannot report that its jobs
/// wait.
async fn keep_counting(postgres: Pool, metrics: Metrics, soft: CancellationToken) -> anyhow::Result<()> {
    let mut count = interval(QUEUE_COUNT_INTERVAL);
    count.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = count.tick() => {}
        }
        match postgres.within(QUEUE_COUNT_INTERVAL, operator::count(&*postgres)).await {
            Ok(counts) => metrics.queue(counts.iter().map(|count| (count.kind.as_str(), count.state.as_str(), count.jobs, count.late_s))),
            // The earlier numbers stay, and the metric of their age grows.
            Err(e) => warn!(error = %e, "cannot count the queue: {e}"),
        }
    }
}
