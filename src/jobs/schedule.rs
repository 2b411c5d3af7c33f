//! The schedule: cron expressions in UTC. Each tick enqueues a job.
//!
//! Any number of clocks may run. A schedule's last tick is a row that only one of them can advance.

use croner::Cron;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use tracing::info;
use utoipa::ToSchema;

use super::{EnqueueError, Enqueued, Job, Wake, enqueue};
use crate::resources::postgres::{self, Pool};
use crate::telemetry::metrics::Metrics;

type Enqueue = Box<dyn for<'a> Fn(&'a mut PgConnection, Timestamp) -> BoxFuture<'a, Result<Enqueued, EnqueueError>> + Send + Sync>;

/// A line of the schedule.
pub struct Schedule {
    pub name: &'static str,
    pub cron: Cron,
    enqueue: Enqueue,
}

impl Schedule {
    /// Every tick of the expression (`minute hour day month weekday`, UTC) enqueues the job that `job` returns for it.
    ///
    /// # Errors
    /// The expression is invalid or never ticks. A test builds every line of the schedule.
    pub fn new<J: Job>(name: &'static str, expression: &str, job: fn(Timestamp) -> J) -> anyhow::Result<Self> {
        let cron =
            expression.parse::<Cron>().map_err(|e| anyhow::anyhow!("schedule {name}: `{expression}` is not a cron expression: {e}"))?;
        let enqueue: Enqueue = Box::new(move |connection, tick| async move { enqueue(connection, &job(tick)).await }.boxed());
        let schedule = Self { name, cron, enqueue };
        schedule.latest_tick(Timestamp::UNIX_EPOCH)?;
        Ok(schedule)
    }

    /// The latest tick that is not after `now`.
    ///
    /// # Errors
    /// There is no such tick, which [`Self::new`] rules out.
    pub fn latest_tick(&self, now: Timestamp) -> anyhow::Result<Timestamp> {
        let tick = self.cron.find_previous_occurrence(&now.to_zoned(TimeZone::UTC), true);
        Ok(tick.map_err(|e| anyhow::anyhow!("schedule {} never ticks: {e}", self.name))?.timestamp())
    }

    /// How many ticks were missed between two. It counts at most a thousand.
    fn ticks_between(&self, before: Timestamp, tick: Timestamp) -> u64 {
        let ticks = self.cron.iter_after(before.to_zoned(TimeZone::UTC)).take(1000);
        ticks.take_while(|between| between.timestamp() < tick).count() as u64
    }

    /// Enqueues the job of the latest tick, unless that is already done. If several ticks were missed, only the latest
    /// one fires. A new schedule first fires at its next tick.
    ///
    /// # Errors
    /// Postgres is unavailable, and nothing has changed.
    pub async fn tick(&self, pool: &Pool, metrics: &Metrics) -> anyhow::Result<Option<Wake>> {
        let mut transaction = pool.begin().await?;
        let now: Timestamp = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *transaction).await?.into();
        let tick = self.latest_tick(now)?;
        let first = sqlx::query!(
            "INSERT INTO schedules (name, last_tick) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            self.name,
            postgres::Timestamp::from(tick) as _
        );
        if first.execute(&mut *transaction).await?.rows_affected() == 1 {
            transaction.commit().await?;
            info!(schedule = self.name, "schedule {} is new; it first fires at its next tick", self.name);
            return Ok(None);
        }
        let moved = sqlx::query_scalar!(
            r#"WITH before AS (
                   SELECT last_tick FROM schedules
                   -- A tick of the future comes from a clock that was wrong, and would stop the schedule until then.
                   WHERE name = $1 AND (last_tick < $2 OR last_tick > now() + interval '1 hour') FOR UPDATE)
               UPDATE schedules SET last_tick = $2 FROM before WHERE name = $1 RETURNING before.last_tick"#,
            self.name,
            postgres::Timestamp::from(tick) as _
        );
        let Some(before) = moved.fetch_optional(&mut *transaction).await? else { return Ok(None) };
        let enqueued = (self.enqueue)(&mut transaction, tick).await?;
        transaction.commit().await?;
        let missed = self.ticks_between(before.into(), tick);
        metrics.tick(self.name, missed);
        info!(schedule = self.name, tick = %tick, missed, "schedule {} ticked for {tick}", self.name);
        Ok(match enqueued {
            Enqueued::New(wake) => Some(wake),
            Enqueued::Duplicate => None,
        })
    }
}

/// A line of the schedule as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleTicks {
    pub name: &'static str,
    /// In UTC: minute, hour, day, month, weekday.
    pub cron: String,
    /// The last tick that enqueued a job, or that lay in the past when a clock first saw the schedule. Null if no clock
    /// has run.
    pub last_tick: Option<postgres::Timestamp>,
    /// Null if it never ticks again.
    pub next_tick: Option<postgres::Timestamp>,
}

/// The last and the next tick of each line.
///
/// # Errors
/// Postgres is unavailable.
pub async fn ticks(executor: impl PgExecutor<'_>, schedules: &[Schedule]) -> sqlx::Result<Vec<ScheduleTicks>> {
    let names: Vec<_> = schedules.iter().map(|schedule| schedule.name.to_owned()).collect();
    let rows = sqlx::query!(
        r#"SELECT last_tick AS "last_tick?", now() AS "now!"
           FROM UNNEST($1::text[]) WITH ORDINALITY AS line (name, number) LEFT JOIN schedules USING (name) ORDER BY number"#,
        &names
    );
    let lines = schedules.iter().zip(rows.fetch_all(executor).await?);
    let ticks = lines.map(|(Schedule { name, cron, .. }, row)| {
        let next = cron.find_next_occurrence(&Timestamp::from(row.now).to_zoned(TimeZone::UTC), false);
        let next_tick = next.ok().map(|next| next.timestamp().into());
        ScheduleTicks { name, cron: cron.as_str().to_owned(), last_tick: row.last_tick, next_tick }
    });
    Ok(ticks.collect())
}
