//! `/livez` and `/readyz`: the probes of a platform.
//!
//! Live means that the process runs. Ready means that its resources answer and no drain has begun. A background task
//! runs the checks, so that a result is never older than a second and load on the routes cannot fail a probe.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lifecycle::{Heartbeat, Lifecycle};
use crate::resources::postgres::{self, Pool};
use crate::resources::redis::Redis;
use crate::telemetry::metrics::Metrics;

/// A result may be one second old. Two checks and a time-out fit into that.
const CHECK_INTERVAL: Duration = Duration::from_millis(400);
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// The reason of a failed check if no other is known.
const NO_ANSWER: &str = "no answer in time";

/// The failed checks, as clients see them: a name and a word each, without addresses or error texts.
type Failed = BTreeMap<&'static str, &'static str>;

type Look = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Why a check fails: a word for the probe, and a text for the log.
type Failure = (&'static str, String);

/// The checks of one process type.
#[derive(Default)]
pub struct Health(Vec<Check>);

struct Check {
    name: &'static str,
    look: Look,
    running: Option<JoinHandle<Result<(), Failure>>>,
}

impl Check {
    /// Runs the check with a time limit. A check that takes longer continues, and the next round uses its result. So a
    /// slow connection attempt is not abandoned.
    async fn outcome(&mut self) -> Result<(), Failure> {
        let running = self.running.get_or_insert_with(|| tokio::spawn((self.look)()));
        let Ok(ended) = timeout(CHECK_TIMEOUT, running).await else { return Err(("unavailable", NO_ANSWER.to_owned())) };
        self.running = None;
        ended.unwrap_or_else(|panic| Err(("unavailable", panic.to_string())))
    }
}

impl Health {
    /// Adds a check. It must end without being cancelled.
    pub fn check<F>(mut self, name: &'static str, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.0.push(Check { name, look: Box::new(move || Box::pin(look())), running: None });
        self
    }

    /// Checks that Postgres answers and accepts writes, and that no migration is pending.
    /// `probes` comes from [`Pool::for_probes`].
    pub fn postgres(self, pool: &Pool, probes: &Pool) -> Self {
        let (pool, probes) = (pool.clone(), probes.clone());
        self.check("postgres", move || {
            let (pool, probes) = (pool.clone(), probes.clone());
            // The password may have changed since.
            probes.set_connect_options(pool.connect_options().as_ref().clone());
            async move {
                let look = async {
                    let mut connection = probes.acquire().await?;
                    let answer = async {
                        Ok((postgres::is_read_only(&mut connection).await?, postgres::pending_migrations(&mut *connection).await?))
                    };
                    timeout(CHECK_TIMEOUT, answer).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
                };
                let mut look = std::pin::pin!(look);
                // Doubts the pool before callers time out and return their connections.
                let ended = if let Ok(ended) = timeout(CHECK_TIMEOUT, &mut look).await {
                    ended
                } else {
                    pool.doubt();
                    look.await
                };
                match ended {
                    Ok((true, _)) => {
                        pool.replace();
                        Err(("read-only", "it accepts no writes: it is a standby, or default_transaction_read_only is set".to_owned()))
                    }
                    Ok((false, pending)) if pending.is_empty() => Ok(()),
                    Ok((false, pending)) => {
                        Err(("migrations pending", format!("{} migration(s) pending: run `admin migrate`", pending.len())))
                    }
                    Err(e) => {
                        pool.doubt();
                        let reason = if let sqlx::Error::PoolTimedOut = e { NO_ANSWER.to_owned() } else { e.to_string() };
                        Err(("unavailable", reason))
                    }
                }
            }
        })
    }

    /// Checks that Redis answers.
    pub fn redis(self, redis: &Redis) -> Self {
        let redis = redis.clone();
        self.check("redis", move || {
            let redis = redis.clone();
            async move { redis.check().await.map_err(|e| ("unavailable", e.to_string())) }
        })
    }

    /// Checks that something still happens: the last beat, or this call, is at most `limit` ago.
    pub fn heartbeat(self, name: &'static str, heartbeat: &Heartbeat, limit: Duration) -> Self {
        let heartbeat = heartbeat.clone();
        heartbeat.beat();
        self.check(name, move || {
            let age = heartbeat.age();
            async move { if age <= limit { Ok(()) } else { Err(("stalled", format!("no heartbeat for more than {limit:?}"))) } }
        })
    }

    /// Starts the task that runs the checks and returns the probes' routes.
    pub fn start(self, lifecycle: &mut Lifecycle) -> Router {
        let (result, latest) = watch::channel((Instant::now(), Failed::from([("start", "no check yet")])));
        lifecycle.spawn("health", keep_looking(self, result, lifecycle.metrics.clone(), lifecycle.soft.clone()));
        let soft = lifecycle.soft.clone();
        Router::new()
            .route("/livez", get(|| async { "live\n" }))
            .route("/readyz", get(async move || ready(&latest.borrow(), soft.is_cancelled())))
    }
}

/// Adds the metrics, which only the platform may read.
pub fn with_metrics(probes: Router, metrics: &Metrics) -> Router {
    let metrics = metrics.clone();
    let content_type = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let answer = async move || metrics.text().map(|text| (content_type, text)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR);
    probes.route("/metrics", get(answer))
}

fn ready((at, failed): &(Instant, Failed), draining: bool) -> Response {
    let mut failed = failed.clone();
    if draining {
        failed.insert("drain", "has begun");
    }
    if at.elapsed() > CHECK_INTERVAL + CHECK_TIMEOUT + Duration::from_millis(100) {
        failed.insert("health", "no recent check");
    }
    #[derive(Serialize)]
    struct Body {
        ready: bool,
        failed: Failed,
    }
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(Body { ready: failed.is_empty(), failed })).into_response()
}

async fn keep_looking(
    mut health: Health,
    result: watch::Sender<(Instant, Failed)>,
    metrics: Metrics,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, mut logged) = (None, HashSet::new());
    loop {
        tokio::select! {
            () = soft.cancelled() => {
                metrics.ready(false);
                return Ok(());
            }
            _ = tick.tick() => {}
        }
        let looks = health.0.iter_mut().map(async |check| (check.name, check.outcome().await));
        let failures: Vec<_> = join_all(looks).await.into_iter().filter_map(|(name, outcome)| Some((name, outcome.err()?))).collect();
        let failed: Failed = failures.iter().map(|(name, failure)| (*name, failure.0)).collect();
        metrics.ready(failed.is_empty());
        result.send_replace((Instant::now(), failed.clone()));
        // Each reason is logged once, not at each check.
        for (name, (_, reason)) in &failures {
            if logged.insert(format!("{name}: {reason}")) {
                warn!(check = name, "not ready: {name}: {reason}");
            }
        }
        if failed.is_empty() && before != Some(true) {
            info!("ready");
            logged.clear();
        }
        before = Some(failed.is_empty());
    }
}
