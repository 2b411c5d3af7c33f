//! The `web` process (factor VII: port binding): serves HTTP on `$PORT`.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::routing::get;
use axum::{Router, middleware};
use jiff::Timestamp;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::app::{App, Parts};
use crate::auth::guard::{Guard, guard};
use crate::auth::password::Passwords;
use crate::auth::rules::{self, Rule};
use crate::auth::session::Sessions;
use crate::auth::standing::Standings;
use crate::config;
use crate::features::FEATURES;
use crate::http::probes::{self, Health};
use crate::http::server::{listen, serve};
use crate::http::{self, docs, openapi};
use crate::jobs::Notifier;
use crate::lifecycle::{self, Lifecycle};
use crate::release::Release;
use crate::resources::postgres::{Limits, Pool};
use crate::resources::redis::Redis;
use crate::resources::storage::Storage;

/// How many passwords are hashed at a time where nothing else is set. A container may see all cores of its machine, and
/// has little of its memory.
const HASHES: usize = 4;

pub fn main() -> ExitCode {
    lifecycle::run("web", start)
}

async fn start(process: config::Process, config: config::Web, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let limits = Limits::within(config.http.request_timeout.0);
    let postgres = Pool::attach(&config.database, "web", limits)?;
    postgres.follow(lifecycle, &config.database);
    postgres.count(&lifecycle.metrics);
    let redis = Redis::attach(&config.redis)?;
    redis.follow(lifecycle, &config.redis);
    redis.count(&lifecycle.metrics);
    let storage = Storage::attach(&config.storage, Some(&lifecycle.metrics))?;
    if let Some(storage) = &storage {
        storage.follow(lifecycle, &config.storage);
    }
    let (http, site) = (config.http, config.site.public_url);
    #[expect(clippy::disallowed_methods, reason = "here the clock enters, to be passed on")]
    let now = Timestamp::now;
    let sessions = Sessions::new(redis.clone(), &http, &site, now);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));
    let guard = Guard {
        rules: FEATURES.iter().flat_map(|feature| feature.access).cloned().collect(),
        postgres: postgres.clone(),
        redis: redis.clone(),
        sessions: sessions.clone(),
        standings: Standings::new(postgres.clone()),
        config: http.clone(),
        site: site.clone(),
        unlimited: AtomicBool::new(false),
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let at_a_time = http.hash_concurrency.map_or(cores.min(HASHES), |number| number.get() as usize);
    let passwords = Passwords::new(at_a_time, &site)?;
    let app =
        Parts { postgres: postgres.clone(), storage, sessions, passwords, notifier, features: FEATURES, site: site.clone(), now }.into();

    // Before the first check: a client that reads that it is ready must reach it.
    let listener = listen("web", http.port).await?;
    let health = Health::default().postgres(&postgres).redis(&redis).start(lifecycle);
    let rules = FEATURES.iter().flat_map(|feature| feature.access);
    let streaming = rules.filter(|rule| rule.streams).map(|rule| (rule.method.clone(), rule.path)).collect();
    let routes = routes(app, guard, lifecycle.release.clone(), http.api_docs);
    let routes = http::finish(routes, streaming, &http, &site, lifecycle.metrics.clone(), postgres.clone());
    let delay = http.drain_delay;
    lifecycle.delay_drain(delay);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, probes::with_metrics(health.clone(), &lifecycle.metrics), delay, false, lifecycle);
    }
    // The probes stand outside every limit.
    serve(listener, health.fallback_service(routes), delay, http.trusted_proxies > 0, lifecycle);
    Ok(())
}

/// The operations of the API, which is versioned as a whole.
fn api() -> OpenApiRouter<App> {
    #[derive(OpenApi)]
    #[openapi(info(title = "API", description = "Errors are problems (RFC 9457). Their `type` tells one from another."))]
    struct Document;

    let v1 = FEATURES.iter().fold(OpenApiRouter::new(), |v1, feature| v1.merge((feature.api)()));
    OpenApiRouter::with_openapi(Document::openapi()).nest("/api/v1", v1)
}

/// The `OpenAPI` document.
///
/// # Errors
/// The handlers' annotations cannot be written as JSON.
pub fn document() -> serde_json::Result<serde_json::Value> {
    let rules = || FEATURES.iter().flat_map(|feature| feature.access);
    openapi::complete(&api().into_openapi(), rules::security_schemes(), rules::scopes(rules()), rules().map(Rule::access))
}

/// Every route of the service.
fn routes(app: App, gate: Guard, release: Release, docs: bool) -> Router {
    let pages = FEATURES.iter().fold(Router::new(), |pages, feature| pages.merge((feature.pages)()));
    let guarded = Router::from(api()).merge(pages).with_state(app);
    let guarded = guarded.route_layer(middleware::from_fn_with_state(Arc::new(gate), guard));
    guarded.merge(docs::routes(document, docs)).route("/version", get(async move || axum::Json(release)))
}
