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
use uuid::Uuid;

use super::clock;
use crate::app::{App, Feature, Parts};
use crate::auth::access_token::AccessTokens;
use crate::auth::guard::{Guard, guard};
use crate::auth::password::Passwords;
use crate::auth::provider::Provider;
use crate::auth::rules::{self, Rule};
use crate::auth::session::Sessions;
use crate::auth::standing::{self, Standings};
use crate::config;
use crate::features::FEATURES;
use crate::http::probes::{self, Health};
use crate::http::server::{listen, serve};
use crate::http::{self, ServedBy, docs, html, openapi};
use crate::jobs::Notifier;
use crate::lifecycle::{self, Lifecycle};
use crate::release::Release;
use crate::resources::cache::Cache;
use crate::resources::events::Events;
use crate::resources::http_client::HttpClient;
use crate::resources::postgres::{Limits, Pool};
use crate::resources::redis::Redis;
use crate::resources::storage::Storage;
use crate::telemetry::feature_counters::FeatureCounters;

/// How many passwords are hashed at a time by default. The number of cores alone is no guide: a container may see all
/// cores of its machine but have little of its memory.
const DEFAULT_HASH_CONCURRENCY: usize = 4;

pub fn main() -> ExitCode {
    match lifecycle::option(None, "usage: web\nIt takes no arguments, and its config comes from environment variables: see `admin config`")
    {
        Ok(_) => lifecycle::run("web", super::connect, start),
        Err(status) => status,
    }
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
    #[expect(clippy::disallowed_methods, reason = "the clock is passed on from here")]
    let now = Timestamp::now;
    let cache = Cache::new(redis.clone(), Uuid::new_v4);
    cache.count(&lifecycle.metrics);
    let sessions = Sessions::new(redis.clone(), &http, &site, now);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));
    let events = Events::default();
    events.count(&lifecycle.metrics);
    lifecycle.spawn("events", events.clone().run(redis.clone(), lifecycle.soft.clone()));
    lifecycle.spawn("standing", standing::watch(events.clone(), sessions.clone(), postgres.clone(), lifecycle.soft.clone()));
    let client = HttpClient::for_configured_urls(lifecycle.metrics.clone(), super::random)?;
    let on = on(&lifecycle.env);
    let guard = Guard {
        rules: on.iter().flat_map(|feature| feature.access).cloned().collect(),
        postgres: postgres.clone(),
        redis: redis.clone(),
        sessions: sessions.clone(),
        standings: Standings::new(postgres.clone()),
        access_tokens: config.tokens.0.map(|issuer| AccessTokens::new(issuer, client.clone(), postgres.clone(), now)),
        config: http.clone(),
        flags: config.flags.clone(),
        site: site.clone(),
        unlimited: AtomicBool::new(false),
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let at_a_time = http.hash_concurrency.map_or(cores.min(DEFAULT_HASH_CONCURRENCY), |number| number.get() as usize);
    let passwords = Passwords::new(at_a_time, &site)?;
    let provider = Provider::attach(config.oidc, client, lifecycle);
    let parts = Parts {
        postgres: postgres.clone(),
        storage,
        sessions,
        provider,
        passwords,
        cache,
        events,
        notifier,
        features: FEATURES,
        counters: FeatureCounters::register(&lifecycle.metrics, FEATURES.iter().flat_map(|feature| feature.counters)),
        on,
        schedule: clock::schedule,
        flags: config.flags,
        mail_viewer: http.mail_viewer_url.clone(),
        site: site.clone(),
        now,
    };

    // Before the first check, because a process that is ready must accept connections.
    let listener = listen("web", http.port).await?;
    let health = Health::default().postgres(&postgres, &postgres.for_probes()).redis(&redis).start(lifecycle);
    let rules = FEATURES.iter().flat_map(|feature| feature.access);
    let streaming = rules.filter(|rule| rule.streams).map(|rule| (rule.method.clone(), rule.path)).collect();
    let routes = routes(parts.into(), guard, lifecycle.release.clone(), http.api_docs);
    let served_by = ServedBy::new(&lifecycle.release, lifecycle.soft.clone());
    let routes = http::finish(routes, streaming, &http, &site, lifecycle.metrics.clone(), postgres.clone(), served_by);
    let delay = http.drain_delay;
    lifecycle.delay_drain(delay);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, probes::with_metrics(health.clone(), &lifecycle.metrics), delay, false, lifecycle);
    }
    // The probes are outside every limit.
    serve(listener, health.fallback_service(routes), delay, http.trusted_proxies > 0, lifecycle);
    Ok(())
}

/// The features that a deploy has on.
pub fn on(env: &config::Env) -> Vec<&'static Feature> {
    FEATURES.iter().filter(|feature| (feature.is_on)(env)).collect()
}

/// The operations of the API. The whole API has one version.
fn api(on: &[&Feature]) -> OpenApiRouter<App> {
    #[derive(OpenApi)]
    #[openapi(info(title = "API", description = "Errors are problem details (RFC 9457). Their `type` identifies the problem."))]
    struct Document;

    let v1 = on.iter().fold(OpenApiRouter::new(), |v1, feature| v1.merge((feature.api)()));
    OpenApiRouter::with_openapi(Document::openapi()).nest("/api/v1", v1)
}

/// The `OpenAPI` document.
///
/// # Errors
/// The handlers' annotations cannot be serialized to JSON.
pub fn document(on: &[&Feature]) -> serde_json::Result<serde_json::Value> {
    let rules = || on.iter().flat_map(|feature| feature.access);
    openapi::complete(&api(on).into_openapi(), rules::security_schemes(), rules::scopes(rules()), rules().map(Rule::access))
}

/// Every route of the features that are on.
fn routes(app: App, gate: Guard, release: Release, docs: bool) -> Router {
    let on = app.on.clone();
    let pages = on.iter().fold(Router::new(), |pages, feature| pages.merge((feature.pages)()));
    let guarded = Router::from(api(&on)).merge(pages).with_state(app);
    let guarded = guarded.route_layer(middleware::from_fn_with_state(Arc::new(gate), guard));
    let docs = docs::routes(move || document(&on), docs);
    guarded.merge(docs).merge(html::routes()).route("/version", get(async move || axum::Json(release)))
}
