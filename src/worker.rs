//! The `worker` process (factor VIII: concurrency): runs jobs. The registry of their kinds is here.

use std::process::ExitCode;
use std::time::Duration;

use crate::accounts::jobs::{EndSessions, PurgeExpired, SendNotice, SendPasswordReset, SendVerification};
use crate::config;
use crate::http::health::{self, Health};
use crate::http::serve::{listen, serve};
use crate::jobs::runner::Runner;
use crate::jobs::{Notifier, Registry, Resources};
use crate::lifecycle::{self, Lifecycle, Pulse};
use crate::reminders::{SendDigest, SendDigests, SendReminder};
use crate::resources::postgres::Pool;
use crate::resources::redis::Redis;
use crate::resources::smtp::Mailer;

/// Without a claim for this long, answered with a job or without, a worker is not ready.
const CLAIMS_STALL: Duration = Duration::from_secs(5);

pub fn main() -> ExitCode {
    run(registry())
}

/// Every kind of job.
pub fn registry() -> Registry {
    Registry::default()
        .with::<SendVerification>()
        .with::<SendPasswordReset>()
        .with::<SendNotice>()
        .with::<EndSessions>()
        .with::<PurgeExpired>()
        .with::<SendReminder>()
        .with::<SendDigests>()
        .with::<SendDigest>()
}

/// A worker for the kinds of a registry.
pub fn run(registry: Registry) -> ExitCode {
    lifecycle::run("worker", async move |process, config, lifecycle: &mut Lifecycle| start(registry, process, config, lifecycle).await)
}

async fn start(registry: Registry, process: config::Process, config: config::Worker, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = Pool::attach(&config.database, "worker")?;
    postgres.follow(lifecycle, &config.database);
    postgres.count(&lifecycle.metrics);
    let redis = Redis::attach(&config.redis)?;
    redis.follow(lifecycle, &config.redis);
    redis.count(&lifecycle.metrics);
    let site = config.site.public_url;
    let mut mailer = Mailer::attach(&config.smtp, site.host())?;
    mailer.count(&lifecycle.metrics);
    mailer.follow(lifecycle, &config.smtp);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run((*postgres).clone(), lifecycle.soft.clone()));

    let claims = Pulse::default();
    let health = Health::default().postgres(&postgres).redis(&redis).pulse("claims", &claims, CLAIMS_STALL);
    let probes = health.start(lifecycle);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, health::with_metrics(probes, &lifecycle.metrics), Duration::ZERO, lifecycle);
    }
    let concurrency = config.jobs.worker_concurrency.get() as usize;
    let resources = Resources { postgres, redis, mailer, site, notifier };
    let runner = Runner { registry, resources, concurrency, lease: config.jobs.job_lease.0, claims, metrics: lifecycle.metrics.clone() };
    lifecycle.spawn("runner", runner.run(lifecycle.soft.clone(), lifecycle.hard.clone()));
    Ok(())
}
