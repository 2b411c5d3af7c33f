//! The `worker` process (factor VIII: concurrency): runs jobs. With `--until-idle` it exits as soon as no job is due.

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
use crate::lifecycle::{self, Heartbeat, Lifecycle};
use crate::resources::postgres::{Limits, Pool};
use crate::resources::redis::Redis;
use crate::resources::smtp::Mailer;
use crate::resources::storage::Storage;
use crate::telemetry::feature_counters::FeatureCounters;

/// A worker without a successful claim for this long is not ready. An empty claim counts as successful.
const CLAIMS_STALL_TIMEOUT: Duration = Duration::from_secs(5);

pub fn main() -> ExitCode {
    run(registry())
}

/// Every kind of job, of the core and of the features.
pub fn registry() -> Registry {
    FEATURES.iter().fold(Registry::default().with::<PurgeExpired>(), |registry, feature| (feature.jobs)(registry))
}

/// Runs a worker for the kinds of a registry.
pub fn run(registry: Registry) -> ExitCode {
    let usage = "usage: worker [--until-idle]\n--until-idle exits as soon as no job is due";
    let until_idle = match lifecycle::option(Some("--until-idle"), usage) {
        Ok(given) => given,
        Err(status) => return status,
    };
    let start = async move |process, config, lifecycle: &mut Lifecycle| start(registry, until_idle, process, config, lifecycle).await;
    lifecycle::run("worker", super::connect, start)
}

async fn start(
    registry: Registry,
    until_idle: bool,
    process: config::Process,
    config: config::Worker,
    lifecycle: &mut Lifecycle,
) -> anyhow::Result<()> {
    let postgres = Pool::attach(&config.database, "worker", Limits::within(CLAIMS_STALL_TIMEOUT))?;
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

    let claims = Heartbeat::default();
    let own_connection = postgres.for_probes();
    let health = Health::default().postgres(&postgres, &own_connection).redis(&redis).heartbeat("claims", &claims, CLAIMS_STALL_TIMEOUT);
    let probes = health.start(lifecycle);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, probes::with_metrics(probes, &lifecycle.metrics), Duration::ZERO, false, lifecycle);
    }
    let kinds = registry.choose(config.jobs.worker_kinds.as_ref().map(|names| names.0.as_slice()));
    let kinds = kinds.map_err(|problem| Problems::of("WORKER_KINDS", problem))?;
    let concurrency = config.jobs.worker_concurrency.get() as usize;
    let counters = FeatureCounters::register(&lifecycle.metrics, FEATURES.iter().flat_map(|feature| feature.counters));
    let resources = Resources { postgres, redis, storage, mailer, site, notifier, counters, heavy: Arc::new(Semaphore::new(1)) };
    let (lease, metrics) = (config.jobs.job_lease.0, lifecycle.metrics.clone());
    let runner = Runner { registry, kinds, resources, concurrency, lease, own_connection, until_idle, claims, metrics };
    lifecycle.spawn("runner", runner.run(lifecycle.soft.clone(), lifecycle.hard.clone()));
    Ok(())
}
