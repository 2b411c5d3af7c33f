//! The `web` process (factor VII: port binding): serves HTTP on `$PORT`. The registry of routes is here, and who may ask
//! for what in `access`.

mod access;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router, middleware};
use jiff::Timestamp;
use tokio::sync::OnceCell;
use tower::ServiceBuilder;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config as SwaggerConfig, SwaggerUi};

use crate::accounts;
use crate::accounts::password::Passwords;
use crate::config;
use crate::http::access::{Guard, guard, scopes};
use crate::http::health::{self, Health};
use crate::http::serve::{listen, serve};
use crate::http::session::Sessions;
use crate::http::{self, App, Parts, Problem, openapi};
use crate::jobs::Notifier;
use crate::lifecycle::{self, Lifecycle};
use crate::release::Release;
use crate::reminders;
use crate::resources::postgres::Pool;
use crate::resources::redis::Redis;

pub use access::ACCESS;

pub fn main() -> ExitCode {
    lifecycle::run("web", start)
}

async fn start(process: config::Process, config: config::Web, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = Pool::attach(&config.database, "web")?;
    postgres.follow(lifecycle, &config.database);
    postgres.count(&lifecycle.metrics);
    let redis = Redis::attach(&config.redis)?;
    redis.follow(lifecycle, &config.redis);
    redis.count(&lifecycle.metrics);
    let (http, site) = (config.http, config.site.public_url);
    #[expect(clippy::disallowed_methods, reason = "here the clock enters, to be passed on")]
    let now = Timestamp::now;
    let sessions = Sessions::new(redis.clone(), &http, &site, now);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run((*postgres).clone(), lifecycle.soft.clone()));
    let guard = Guard {
        table: ACCESS,
        postgres: postgres.clone(),
        redis: redis.clone(),
        sessions: sessions.clone(),
        config: http.clone(),
        site: site.clone(),
        unlimited: AtomicBool::new(false),
    };
    let app = Parts { postgres: postgres.clone(), sessions, notifier, scopes: scopes(ACCESS).into(), now }.into();

    // Before the first look: who reads that it is ready must reach it.
    let listener = listen("web", http.port).await?;
    let probes = Health::default().postgres(&postgres).redis(&redis).start(lifecycle);
    let routes = routes(app, guard, Passwords::new()?, lifecycle.release.clone());
    let routes = http::finish(routes, &http, &site, lifecycle.metrics.clone());
    let delay = http.drain_delay;
    lifecycle.delay_drain(delay);
    if let Some(port) = process.metrics_port {
        serve(listen("metrics", port).await?, health::with_metrics(probes.clone(), &lifecycle.metrics), delay, lifecycle);
    }
    // The probes stand outside every limit.
    serve(listener, probes.fallback_service(routes), delay, lifecycle);
    Ok(())
}

/// The operations of the API, which is versioned as a whole.
fn api() -> OpenApiRouter<App> {
    #[derive(OpenApi)]
    #[openapi(info(title = "API", description = "Errors are problems (RFC 9457); `type` tells one from another."))]
    struct Document;

    let v1 = OpenApiRouter::new().merge(accounts::api());
    let v1 = v1.merge(reminders::api());
    OpenApiRouter::with_openapi(Document::openapi()).nest("/api/v1", v1)
}

/// The `OpenAPI` document.
/// Errors: The handlers' annotations make no JSON.
pub fn document() -> serde_json::Result<serde_json::Value> {
    openapi::complete(&api().into_openapi(), ACCESS)
}

/// The document as it is served: made when first asked for, since it takes a megabyte of memory, and most processes never are.
async fn described(text: &OnceCell<Bytes>) -> http::Result<impl IntoResponse + use<>> {
    let text = text.get_or_try_init(async || serde_json::to_vec(&document()?).map(Bytes::from)).await.map_err(Problem::internal)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text.clone()))
}

/// Every route of the service.
fn routes(app: App, gate: Guard, passwords: Passwords, release: Release) -> Router {
    let guarded = Router::from(api()).merge(accounts::pages()).with_state(app);
    let around = ServiceBuilder::new().layer(middleware::from_fn_with_state(Arc::new(gate), guard)).layer(Extension(passwords));
    let guarded = guarded.route_layer(around);
    let docs = Router::from(SwaggerUi::new("/docs").config(SwaggerConfig::from("/openapi.json")));
    let text = Arc::new(OnceCell::new());
    guarded
        .merge(docs.layer(middleware::map_response(http::page::allow_own_scripts)))
        .route("/openapi.json", get(async move || described(&text).await))
        .route("/version", get(async move || axum::Json(release)))
}
