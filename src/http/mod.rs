//! What routes are built with: problem responses, extractors, sessions, health, the serving loop.
//!
//! Knows no feature.

pub mod extract;
pub mod health;
pub mod observe;
pub mod page;
pub mod problem;
pub mod serve;
pub mod session;

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use jiff::Timestamp;
use sqlx::PgPool;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::CsrfLayer;
use tower_http::timeout::TimeoutLayer;

use crate::config::PublicUrl;
use crate::jobs::Notifier;
use problem::Problem;
use session::Sessions;

pub use extract::{Id, Json, Query};
pub use problem::Result;
pub use session::Session;

/// The largest body that a request may have, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;

/// What handlers reach: the attached resources and what is passed in instead of being global.
#[derive(Clone)]
pub struct App {
    pub postgres: PgPool,
    pub sessions: Sessions,
    /// Wakes the workers after a commit that enqueued something.
    pub notifier: Notifier,
    pub site: PublicUrl,
    /// The time of day.
    pub now: fn() -> Timestamp,
}

/// Puts around the routes what holds for all of them: time and size limits, the origin check, problem bodies, the access line.
pub fn finish(routes: Router, request_timeout: Duration) -> Router {
    routes
        .fallback(|| async { Problem::not_found() })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(CsrfLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, request_timeout))
        // The panic hook has logged it; the client gets a bare 500, which `observe` gives a body.
        .layer(CatchPanicLayer::custom(|_| axum::response::IntoResponse::into_response(StatusCode::INTERNAL_SERVER_ERROR)))
        .layer(middleware::from_fn(observe::observe))
}
