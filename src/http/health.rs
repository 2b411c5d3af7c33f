//! `/livez` and `/readyz`: what a platform asks a process.
//!
//! Live means that the process runs. Ready means that its resources answer and no drain has begun. A background task
//! looks often enough that an answer is never older than a second; load on the routes cannot fail a probe.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use deadpool_redis::redis::pipe;
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lifecycle::{Lifecycle, Pulse};
use crate::resources::{postgres, redis::Redis};

/// Two looks and a time-out fit into the second that an answer may be old.
const EVERY: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_millis(500);

/// What clients may know: a name and one word, no address and no error's text.
type Failed = BTreeMap<&'static str, &'static str>;

type Look = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Why a check fails: a word for the probe, and the whole for the log.
type Failure = (&'static str, String);

/// The checks of one process type.
#[derive(Default)]
pub struct Health(Vec<(&'static str, Look)>);

impl Health {
    /// Adds a check.
    pub fn check<F>(mut self, name: &'static str, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.0.push((name, Box::new(move || Box::pin(look()))));
        self
    }

    /// Postgres answers, and no migration is pending.
    pub fn postgres(self, pool: &PgPool) -> Self {
        let (pool, probes) = (pool.clone(), postgres::for_probes(pool));
        self.check("postgres", move || {
            let probes = probes.clone();
            // The password may have changed since.
            probes.set_connect_options(pool.connect_options().as_ref().clone());
            async move {
                match postgres::pending_migrations(&probes).await {
                    Ok(pending) if pending.is_empty() => Ok(()),
                    Ok(pending) => Err(("migrations pending", format!("{} migration(s) pending: run `admin migrate`", pending.len()))),
                    Err(e) => Err(("unavailable", e.to_string())),
                }
            }
        })
    }

    /// Redis answers.
    pub fn redis(self, redis: &Redis) -> Self {
        let redis = redis.clone();
        self.check("redis", move || {
            let redis = redis.clone();
            async move {
                let mut ping = pipe();
                ping.cmd("PING").ignore();
                redis.run::<()>(&ping).await.map_err(|e| ("unavailable", e.to_string()))
            }
        })
    }

    /// Something that must keep happening has happened not longer ago than `limit`.
    pub fn pulse(self, name: &'static str, pulse: &Pulse, limit: Duration) -> Self {
        let pulse = pulse.clone();
        self.check(name, move || {
            let age = pulse.age();
            async move { if age <= limit { Ok(()) } else { Err(("stalled", format!("nothing for {age:.1?}"))) } }
        })
    }

    /// Starts the task that looks, and gives the probes' routes.
    pub fn start(self, lifecycle: &mut Lifecycle) -> Router {
        let (result, latest) = watch::channel((Instant::now(), Failed::from([("start", "no look yet")])));
        lifecycle.spawn("health", keep_looking(self, result, lifecycle.soft.clone()));
        let soft = lifecycle.soft.clone();
        Router::new()
            .route("/livez", get(|| async { "live\n" }))
            .route("/readyz", get(async move || ready(&latest.borrow(), soft.is_cancelled())))
    }
}

fn ready((at, failed): &(Instant, Failed), draining: bool) -> Response {
    let mut failed = failed.clone();
    if draining {
        failed.insert("drain", "has begun");
    }
    if at.elapsed() > EVERY + PATIENCE + Duration::from_millis(100) {
        failed.insert("health", "no fresh look");
    }
    #[derive(Serialize)]
    struct Body {
        ready: bool,
        failed: Failed,
    }
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(Body { ready: failed.is_empty(), failed })).into_response()
}

async fn keep_looking(health: Health, result: watch::Sender<(Instant, Failed)>, soft: CancellationToken) -> anyhow::Result<()> {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Failed> = None;
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let looks = health.0.iter().map(|(name, look)| async move {
            let outcome = timeout(PATIENCE, look()).await.unwrap_or_else(|_| Err(("unavailable", "no answer in time".to_owned())));
            (*name, outcome)
        });
        let failures: Vec<_> = join_all(looks).await.into_iter().filter_map(|(name, outcome)| Some((name, outcome.err()?))).collect();
        let failed: Failed = failures.iter().map(|(name, failure)| (*name, failure.0)).collect();
        result.send_replace((Instant::now(), failed.clone()));
        // Told when it changes, not at each look.
        if before.as_ref() != Some(&failed) {
            for (name, failure) in &failures {
                warn!(check = name, "not ready: {name}: {}", failure.1);
            }
            if failed.is_empty() {
                info!("ready");
            }
            before = Some(failed);
        }
    }
}
