//! `admin doctor`: what is wrong with this deploy, and what to do about it.

use std::fmt::Display;
use std::time::Duration;

use deadpool_redis::redis::pipe;
use sqlx::PgPool;
use tokio::time::timeout;

use super::say;
use crate::config::{self, Env};
use crate::resources::postgres;
use crate::resources::redis::Redis;
use crate::resources::smtp::Mailer;

const PATIENCE: Duration = Duration::from_secs(5);

fn fine(check: &str, what: impl Display) {
    say(format_args!("ok    {check:<10} {what}"));
}

/// Whether a check has failed so far.
struct Report {
    healthy: bool,
}

impl Report {
    fn wrong(&mut self, check: &str, what: impl Display, remedy: &str) {
        self.healthy = false;
        say(format_args!("FAIL  {check:<10} {what}\n                 do: {remedy}"));
    }
}

/// Makes every check, prints a line for each, and says whether all is well.
pub async fn examine(env: &Env) -> anyhow::Result<bool> {
    let mut report = Report { healthy: true };
    match config::read::<config::All>(env) {
        Ok(_) => fine("config", "every variable of every program is there and right"),
        Err(problems) => report.wrong("config", problems, "set them in this deploy's environment; .env.example explains each"),
    }
    if let Ok(config) = config::read::<config::Database>(env) {
        let pool = postgres::attach(&config, "admin")?;
        if postgres(&mut report, &pool).await {
            schema(&mut report, &pool).await;
        }
    }
    if let Ok(config) = config::read::<config::Redis>(env) {
        redis(&mut report, &Redis::attach(&config)?).await;
    }
    if let Ok(config) = config::read::<config::Smtp>(env) {
        let mailer = Mailer::attach(&config, "localhost")?;
        match timeout(PATIENCE, mailer.check()).await {
            Ok(Ok(())) => fine("smtp", "answers"),
            Ok(Err(e)) => report.wrong("smtp", e, "check SMTP_URL, and that the server runs and takes mail from here"),
            Err(_) => report.wrong("smtp", "no answer in 5 s", "check SMTP_URL, and that a firewall lets you through"),
        }
    }
    Ok(report.healthy)
}

async fn postgres(report: &mut Report, pool: &PgPool) -> bool {
    let version = sqlx::query_scalar::<_, String>("SHOW server_version").fetch_one(pool).await;
    match version {
        Ok(version) => fine("postgres", format_args!("answers, version {version}")),
        Err(e) => report.wrong("postgres", &e, "check DATABASE_URL, and that the server runs and lets you in"),
    }
    report.healthy
}

async fn schema(report: &mut Report, pool: &PgPool) {
    match postgres::pending_migrations(pool).await {
        Ok(pending) if pending.is_empty() => queue(report, pool).await,
        Ok(pending) => report.wrong("schema", format_args!("{} migration(s) pending", pending.len()), "run `admin migrate`"),
        Err(e) => report.wrong("schema", e, "run `admin migrate`"),
    }
}

async fn queue(report: &mut Report, pool: &PgPool) {
    fine("schema", "current");
    let queue = sqlx::query!(
        r#"SELECT count(*) FILTER (WHERE dead_at IS NOT NULL) AS "dead!",
               COALESCE(EXTRACT(epoch FROM now() - min(run_at) FILTER (WHERE token IS NULL AND dead_at IS NULL)), 0)::bigint AS "late!"
           FROM jobs"#
    );
    match queue.fetch_one(pool).await {
        Ok(queue) if queue.late > 60 => {
            let what = format!("a job has been due for {} s", queue.late);
            report.wrong("queue", what, "start a worker, or more of them, and read the worker's log");
        }
        Ok(queue) if queue.dead > 0 => {
            let what = format!("{} dead job(s)", queue.dead);
            report.wrong("queue", what, "read why with `admin jobs list --dead`, then `admin jobs retry` or `discard` them");
        }
        Ok(_) => fine("queue", "no job is late, none is dead"),
        Err(e) => report.wrong("queue", e, "check that the database user may read the table `jobs`"),
    }
}

async fn redis(report: &mut Report, redis: &Redis) {
    let mut info = pipe();
    info.cmd("INFO").arg("server");
    match redis.run::<(String,)>(&info).await {
        Ok((info,)) => {
            let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
            fine("redis", format_args!("answers, version {version}"));
        }
        Err(e) => report.wrong("redis", e, "check REDIS_URL, and that the server runs and lets you in"),
    }
}
