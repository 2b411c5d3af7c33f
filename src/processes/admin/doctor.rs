//! `admin doctor`: checks this deploy and suggests remedies.
//!
//! There is no check of disks: the free space of Postgres's disk is not visible here, and the processes need none.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use deadpool_redis::redis::pipe;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::{ConnectOptions, Connection, PgPool};
use tokio::time::{Instant, timeout};

use super::Task;
use super::output::say;
use crate::config::{self, SmtpTls};
use crate::jobs::queue;
use crate::processes::clock;
use crate::resources::postgres;
use crate::resources::redis::Redis;
use crate::resources::smtp::Mailer;
use crate::resources::storage::Storage;

/// The major versions that docker-compose.yml pins and this release is tested with.
const PINNED_POSTGRES: u32 = 17;
const PINNED_REDIS: u32 = 8;

/// How long one step of a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// How many seconds after its due time a job or a tick counts as late.
const LATE_AFTER_S: i64 = 60;

/// How far the clocks of two machines may differ. The ages of sessions and limits depend on them.
const MAX_CLOCK_DRIFT: SignedDuration = SignedDuration::from_secs(5);

/// The result of a check: a fact, or what is wrong.
type Finding = anyhow::Result<String>;

/// Prints a check's line, with a remedy if it failed. Returns whether it passed.
fn report(json: bool, check: &str, remedy: &str, finding: Finding) -> bool {
    match &finding {
        Ok(what) if json => say(json!({ "check": check, "ok": true, "finding": what })),
        Ok(what) => say(format_args!("ok    {check:<10} {what}")),
        Err(e) if json => say(json!({ "check": check, "ok": false, "finding": e.to_string(), "remedy": remedy })),
        Err(e) => say(format_args!("FAIL  {check:<10} {e}\n                 do: {remedy}")),
    }
    finding.is_ok()
}

/// Runs every check and prints a line for each. Returns whether all passed.
pub async fn examine(task: &Task) -> anyhow::Result<bool> {
    let report = |check, remedy, finding| report(task.json, check, remedy, finding);
    let all = config::read::<config::All>(&task.env).map(|_| "every variable of every program is set and valid".to_owned());
    let mut well = report("config", "set them in this deploy's environment; `admin env` explains each", all.map_err(Into::into));
    if let Ok(config) = config::read::<config::Database>(&task.env) {
        let pool = super::attach(&config)?;
        let ready = report("postgres", "check DATABASE_URL, and that its user may connect and write", postgres(&config).await)
            && report("schema", "run `admin migrate`", schema(&pool).await);
        let remedy = "run `admin migrate` as the user of DATABASE_URL: it sets the limits as that user's defaults";
        well &= ready
            && report("limits", remedy, limits(task, &pool).await)
                & report("late jobs", "start a worker or more workers, and read the worker's log", late_jobs(&pool).await)
                & report("dead jobs", "see why: `admin jobs list --dead`; then `admin jobs retry` or `discard`", dead_jobs(&pool).await)
                & report("schedule", "start a clock, and read its log", schedule(&pool).await);
    }
    if let Ok(config) = config::read::<config::Redis>(&task.env) {
        well &=
            report("redis", "check REDIS_URL, that its user may connect, and that maxmemory-policy is noeviction", redis(&config).await);
    }
    if let Ok(config) = config::read::<config::Smtp>(&task.env) {
        well &= report("smtp", "check SMTP_URL, that the server runs, and that no firewall is in between", smtp(&config).await);
    }
    if let Ok(config) = config::read::<config::Storage>(&task.env) {
        let remedy = "check STORAGE_URL, AWS_ENDPOINT_URL_S3 and the access key, which must be allowed to write, read and delete objects";
        well &= report("storage", remedy, storage(&config).await);
    }
    Ok(well)
}

async fn postgres(config: &config::Database) -> Finding {
    // Not through the pool, which reports every failure as a time-out.
    let (mut connection, _) = timed(async { postgres::options(config, "admin")?.connect().await }).await?;
    let ((), ms) = timed(connection.ping()).await?;
    let facts = sqlx::query!(
        r#"SELECT current_setting('server_version') AS "version!", current_setting('transaction_read_only') = 'on' AS "read_only!",
               COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS "tls!", clock_timestamp() AS "now!",
               current_setting('max_connections') AS "places!", (SELECT sum(numbackends) FROM pg_stat_database)::bigint AS "taken!""#
    );
    let (facts, _) = timed(facts.fetch_one(&mut connection)).await?;
    ensure!(!facts.read_only, "answers but accepts no writes: default_transaction_read_only is set, or it is not the primary");
    compare_clocks(facts.now.into())?;
    let (version, taken, places) = (facts.version, facts.taken, facts.places);
    Ok(format!("answers in {ms} ms, version {version} ({PINNED_POSTGRES} is pinned), {}, {taken} of {places} connections", tls(facts.tls)))
}

async fn schema(pool: &PgPool) -> Finding {
    let pending = postgres::pending_migrations(pool).await?.len();
    ensure!(pending == 0, "{pending} migration(s) pending");
    Ok("current".to_owned())
}

/// Checks the time limits. A statement that never ends would occupy its connection forever.
async fn limits(task: &Task, pool: &PgPool) -> Finding {
    let time = config::read::<config::Http>(&task.env)?.request_timeout.0;
    let limits = sqlx::query!(
        r#"SELECT min(setting::bigint) AS "least!", min(setting::bigint) FILTER (WHERE name = 'statement_timeout') AS "statement!"
           FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"#
    );
    let limits = limits.fetch_one(pool).await?;
    ensure!(limits.least > 0, "statements, locks or idle transactions have no time limit");
    let statement = Duration::from_millis(limits.statement.unsigned_abs());
    ensure!(statement <= time, "a statement may take {statement:?}, longer than REQUEST_TIMEOUT");
    Ok(format!("a statement may take {statement:?}"))
}

async fn late_jobs(pool: &PgPool) -> Finding {
    // The first of each kind, which the index finds however long the queue is.
    let kinds = queue::waiting_kinds_but(pool, &[]).await?;
    let first = sqlx::query!(
        r#"SELECT known.kind AS "kind!", EXTRACT(epoch FROM now() - run_at)::bigint AS "late!"
           FROM UNNEST($1::text[]) AS known (kind) CROSS JOIN LATERAL
               (SELECT run_at FROM jobs WHERE jobs.kind = known.kind AND token IS NULL AND dead_at IS NULL ORDER BY run_at LIMIT 1) AS first
           ORDER BY run_at LIMIT 1"#,
        &kinds
    );
    if let Some(job) = first.fetch_optional(pool).await? {
        ensure!(job.late <= LATE_AFTER_S, "a job {} has been due for {} s", job.kind, job.late);
    }
    Ok("none".to_owned())
}

async fn dead_jobs(pool: &PgPool) -> Finding {
    let dead = sqlx::query_scalar!(r#"SELECT count(*) AS "dead!" FROM jobs WHERE dead_at IS NOT NULL"#).fetch_one(pool).await?;
    ensure!(dead == 0, "{dead} dead job(s)");
    Ok("none".to_owned())
}

async fn schedule(pool: &PgPool) -> Finding {
    let ticks = sqlx::query!(r#"SELECT name, last_tick, now() AS "now!" FROM schedules"#).fetch_all(pool).await?;
    for schedule in clock::schedule()? {
        let row = ticks.iter().find(|row| row.name == schedule.name);
        let row = row.ok_or_else(|| anyhow!("no clock of this release has run: the schedule {} is unknown", schedule.name))?;
        let now = Timestamp::from(row.now);
        let due = schedule.latest_tick(now)?;
        let late = Timestamp::from(row.last_tick) < due && now.duration_since(due).as_secs() > LATE_AFTER_S;
        ensure!(!late, "the tick of {} at {due} is missing", schedule.name);
        ensure!(
            Timestamp::from(row.last_tick) <= now,
            "the last tick of {} is in the future: the clock of Postgres was changed",
            schedule.name
        );
    }
    Ok("no tick is missing".to_owned())
}

async fn redis(config: &config::Redis) -> Finding {
    let redis = Redis::attach(config)?;
    let ((), ms) = timed(redis.check()).await?;
    let (mut ask, mut time) = (pipe(), pipe());
    ask.cmd("INFO");
    time.cmd("TIME");
    // The service itself does not need INFO, so a user without the permission is no failure.
    let info = timed(redis.run::<(String,)>(&ask)).await.map_or_else(|_| String::new(), |((info,), _)| info);
    let (((seconds, _),), _) = timed(redis.run::<((i64, i64),)>(&time)).await?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("unknown");
    let policy = field("maxmemory_policy");
    ensure!(
        ["0", "unknown"].contains(&field("maxmemory")) || policy == "noeviction",
        "drops sessions when its memory is full: its maxmemory-policy is {policy}"
    );
    compare_clocks(Timestamp::from_second(seconds)?)?;
    let tls = tls(config.redis_url.0.expose_secret().starts_with("rediss"));
    Ok(format!("answers in {ms} ms, version {} ({PINNED_REDIS} is pinned), {tls}", field("redis_version")))
}

async fn smtp(config: &config::Smtp) -> Finding {
    let ((), ms) = timed(Mailer::attach(config, "localhost").check()).await?;
    let tls = tls(matches!(config.smtp_url.server.tls, SmtpTls::Implicit | SmtpTls::Required));
    Ok(format!("answers in {ms} ms, {tls}"))
}

async fn storage(config: &config::Storage) -> Finding {
    let Some(storage) = Storage::attach(config, None)? else { return Ok("off: STORAGE_URL is unset".to_owned()) };
    let ((), ms) = timed(storage.check()).await?;
    Ok(format!("writes, reads and deletes in {ms} ms"))
}

/// Waits for an answer with a time limit. Returns it with the milliseconds that it took.
async fn timed<T, E: Into<anyhow::Error>>(answer: impl Future<Output = Result<T, E>>) -> anyhow::Result<(T, u128)> {
    let started = Instant::now();
    let answer = timeout(CHECK_TIMEOUT, answer).await.map_err(|_| anyhow!("no answer in {CHECK_TIMEOUT:?}"))?;
    Ok((answer.map_err(Into::into)?, started.elapsed().as_millis()))
}

/// Compares another clock with this machine's.
///
/// # Errors
/// The clocks differ too much.
fn compare_clocks(theirs: Timestamp) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this machine's clock is being checked")]
    let apart = Timestamp::now().duration_since(theirs);
    ensure!(apart.abs() <= MAX_CLOCK_DRIFT, "its clock and this machine's differ by {apart:#}: synchronize both with NTP");
    Ok(())
}

fn tls(on: bool) -> &'static str {
    if on { "TLS" } else { "no TLS" }
}
