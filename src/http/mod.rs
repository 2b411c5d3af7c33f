//! Transport: what every route is built with and served by. It knows no account and no feature.

pub mod client_address;
mod connection;
pub mod extract;
pub mod html;
pub mod idempotency;
pub mod limits;
pub mod observe;
pub mod openapi;
pub mod paging;
pub mod probes;
pub mod problem;
pub mod server;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::timeout::TimeoutLayer;

use crate::config::{self, PublicUrl};
use crate::telemetry::metrics::Metrics;

// What handlers are made of.
pub use client_address::ClientAddress;
pub use extract::{Id, Json, Query, no_nul, not_null};
pub use paging::{List, Page};
pub use problem::{Problem, Result};

/// The largest body that a request may have, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;

/// How many requests are worked on at a time; more would wait for each other until all are too late.
const IN_FLIGHT: usize = 512;

/// Puts around the routes what holds for all of them: limits of time, size and number, CORS, problem bodies, the
/// headers that make browsers careful, the access line.
pub fn finish(routes: Router, config: &config::Http, site: &PublicUrl, metrics: Metrics) -> Router {
    let free = Arc::new(Semaphore::new(IN_FLIGHT));
    // The outermost first. One layer for all, since each that is put on routes by itself is boxed, and cloned for each request.
    let https = site.is_https();
    let around = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(metrics, observe::observe))
        .map_response(move |response| harden(response, https))
        .layer(option_layer(cors(config)))
        // The panic hook has logged it; the client gets a bare 500, which `observe` gives a body.
        .layer(CatchPanicLayer::custom(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()))
        .layer(middleware::from_fn(move |request, next| shed(free.clone(), request, next)))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, config.request_timeout.0))
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    routes.fallback(|| async { Problem::not_found() }).layer(around)
}

async fn shed(free: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let Ok(_permit) = free.try_acquire() else {
        let detail = "too many requests at a time; try again in a moment";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).into_response();
    };
    next.run(request).await
}

/// Other sites may call the API if they are listed, with cookies and all; without a list nobody may.
fn cors(config: &config::Http) -> Option<CorsLayer> {
    let origins = config.cors_origins.as_ref()?.0.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION, header::IF_MATCH, HeaderName::from_static("idempotency-key")])
        .expose_headers(
            ["etag", "link", "location", "ratelimit", "ratelimit-policy", "retry-after", "x-request-id"].map(HeaderName::from_static),
        );
    Some(layer)
}

/// What OWASP's HTTP Headers Cheat Sheet asks for; a page that needs more than nothing brings a policy of its own.
fn harden<B>(mut response: Response<B>, https: bool) -> Response<B> {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        // Nearly everything here is one person's; no cache may keep it.
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=63072000"));
    }
    response
}
