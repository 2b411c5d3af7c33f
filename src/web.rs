//! The `web` process (factor VII: port binding): serves HTTP on `$PORT`. The registry of routes is here.

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use jiff::Timestamp;

use crate::accounts::password::Passwords;
use crate::config;
use crate::http::health::Health;
use crate::http::serve::serve;
use crate::http::session::Sessions;
use crate::http::{self, App};
use crate::jobs::Notifier;
use crate::lifecycle::{self, Lifecycle};
use crate::release::Release;
use crate::resources::postgres;
use crate::resources::redis::Redis;
use crate::{accounts, reminders};

pub fn main() -> ExitCode {
    lifecycle::run("web", start)
}

async fn start(process: config::Process, config: config::Web, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let postgres = postgres::attach(&config.database, "web")?;
    let redis = Redis::attach(&config.redis)?;
    #[expect(clippy::disallowed_methods, reason = "here the clock enters, to be passed on")]
    let now = Timestamp::now;
    let sessions = Sessions::new(redis.clone(), &config.http, &config.site.public_url, now);
    let notifier = Notifier::default();
    lifecycle.spawn("notifier", notifier.clone().run(postgres.clone(), lifecycle.soft.clone()));
    let app = App { postgres: postgres.clone(), sessions, notifier, site: config.site.public_url, now };

    let probes = Health::default().postgres(&postgres).redis(&redis).start(lifecycle);
    let routes = http::finish(routes(app, Passwords::new()?, lifecycle.release.clone()), config.http.request_timeout);
    let delay = config.http.drain_delay;
    lifecycle.delay_drain(delay);
    if let Some(port) = process.metrics_port {
        serve("metrics", port, probes.clone(), delay, lifecycle).await?;
    }
    // The probes stand outside every limit.
    serve("web", config.http.port, probes.fallback_service(routes), delay, lifecycle).await
}

/// Every route of the service.
fn routes(app: App, passwords: Passwords, release: Release) -> Router {
    let (accounts_api, accounts_pages) = accounts::routes(app.clone(), passwords);
    let api = Router::new().merge(accounts_api).merge(reminders::routes(app));
    Router::new().nest("/api/v1", api).merge(accounts_pages).route("/version", get(async move || axum::Json(release)))
}
