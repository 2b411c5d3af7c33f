//! The `clock` process: turns the schedule into jobs, and does no work itself. The schedule is here.

use std::process::ExitCode;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::accounts::jobs::PurgeExpired;
use crate::config;
use crate::http::health::Health;
use crate::http::serve::serve;
use crate::jobs::Notifier;
use crate::jobs::schedule::Schedule;
use crate::lifecycle::{self, Lifecycle, Pulse};
use crate::reminders::SendDigests;
use crate::resources::postgres;

/// How often the clock looks; a tick's job is that much late at most.
const LOOK: Duration = Duration::from_secs(1);

/// Without an answered look for this long a clock is not ready.
const TICKS_STALL: Duration = Duration::from_secs(10);

/// What happens by itself, in UTC.
pub fn schedule() -> anyhow::Result<Vec<Schedule>> {
    Ok(vec![
        Schedule::new("daily-digest", "0 6 * * *", SendDigests::of)?,
        Schedule::new("purge-expired", "15 * * * *", |_| PurgeExpired {})?,
    ])
}

pub fn main() -> ExitCode {
    lifecycle::run("clock", start)
}

async fn start(process: config::Process, config: config::Clock, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = postgres::attach(&config.database, "clock")?;
    postgres::follow(lifecycle, &config.database, &postgres);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));
    let looks = Pulse::default();
    if let Some(port) = process.metrics_port {
        let probes = Health::default().postgres(&postgres).pulse("ticks", &looks, TICKS_STALL).start(lifecycle);
        serve("metrics", port, probes, Duration::ZERO, lifecycle).await?;
    }
    lifecycle.spawn("schedule", keep_ticking(schedule()?, postgres, notifier, looks, lifecycle.soft.clone()));
    Ok(())
}

async fn keep_ticking(
    schedules: Vec<Schedule>,
    pool: PgPool,
    notifier: Notifier,
    looks: Pulse,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut away = false;
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = look.tick() => {}
        }
        match tick_all(&schedules, &pool, &notifier).await {
            Ok(()) => {
                looks.beat();
                away = false;
            }
            // Told once, not at each look.
            Err(e) if e.downcast_ref().is_some_and(postgres::is_unavailable) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(error = format!("{e:#}"), "the schedule waits for Postgres: {e:#}");
                }
            }
            Err(e) => error!(error = format!("{e:#}"), "the schedule failed: {e:#}"),
        }
    }
}

/// Looks at every schedule; one that fails does not hold up the others.
async fn tick_all(schedules: &[Schedule], pool: &PgPool, notifier: &Notifier) -> anyhow::Result<()> {
    let mut result = Ok(());
    for schedule in schedules {
        match schedule.tick(pool).await {
            Ok(Some(wake)) => wake.fire(notifier),
            Ok(None) => {}
            Err(e) => result = Err(e),
        }
    }
    result
}
