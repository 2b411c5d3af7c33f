//! The `worker` process (factor VIII: concurrency): runs jobs.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::retention::PurgeExpired;
use crate::config::{self, Problems};
use crate::features::FEATURES;
use crate::http::probes::{self, Health};
use crate::http::server::{listen, serve};
use crate::jobs::runner::Runner;
use crate::jobs::{Notifier, Registry, Resources};
use crate::lifecycle::{self, Lifecycle, Pulse};
use crate::resources::postgres::{Limits, Pool};
use crate::resources::redis::Redis;
use crate::resources::smtp::Mailer;
use crate::resources::storage::Storage;

/// A worker is not ready when it has claimed nothing, not even an empty batch, for this long.
const CLAIMS_STALL: Duration = Duration::from_secs(5);

pub fn main() -> ExitCode {
    run(registry())
}

/// Every kind of job: the core's, and those of the features.
pub fn registry() -> Registry {
    FEATURES.iter().fold(Registry::default().with::<PurgeExpired>(), |registry, feature| (feature.jobs)(registry))
}

/// A worker for the kinds of a registry.
pub fn run(registry: Registry) -> ExitCode {
    lifecycle::run("worker", async move |process, config, lifecycle: &mut Lifecycle| start(registry, process, config, lifecycle).await)
}

async fn start(registry: Registry, process: config::Process, config: config::Worker, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = Pool::attach(&config.database, "worker", Limits::within(CLAIMS_STALL))?;
    postgres.follow(lifecycle, &config.database);
    postgres.count(&lifecycle.metrics);
    let redis = Redis::attach(&config.redis)?;
    redis.follow(lifecycle, &config.redis);
    redis.count(&lifecycle.metrics);
    let storage = Storage::attach(&config.storage, Some(&lifecycle.metrics))?;
    if let Some(storage) = &storage {
        storage.follow(lifecycle, &config.storage);
    }
    let site = config.site.public_url;
    let mut mailer = Mailer::attach(&config.smtp, site.host());
    mailer.count(&lifecycle.metrics);
    mailer.follow(lifecycle, &config.smtp);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));

    let claims = Pulse::default();
    let health = Health::default().postgres(&postgres).redis(&redis).pulse("claims", &claims, CLAIMS_STALL);
    let probes = health.start(lifecycle);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, probes::with_metrics(probes, &lifecycle.metrics), Duration::ZERO, false, lifecycle);
    }
    let kinds = registry.choose(config.jobs.worker_kinds.as_ref().map(|names| names.0.as_slice()));
    let kinds = kinds.map_err(|problem| Problems::of("WORKER_KINDS", problem))?;
    let concurrency = config.jobs.worker_concurrency.get() as usize;
    let resources = Resources { postgres, redis, storage, mailer, site, notifier, heavy: Arc::new(Semaphore::new(1)) };
    let runner =
        Runner { registry, kinds, resources, concurrency, lease: config.jobs.job_lease.0, claims, metrics: lifecycle.metrics.clone() };
    lifecycle.spawn("runner", runner.run(lifecycle.soft.clone(), lifecycle.hard.clone()));
    Ok(())
}
