//! Transport: what every route is built with and served by. It knows no account and no feature.

mod buffered;
pub mod client_address;
mod connection;
pub mod content_digest;
pub mod docs;
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
pub mod streamed;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use crate::config::{self, PublicUrl};
use crate::resources::postgres::Pool;
use crate::telemetry::metrics::Metrics;

use buffered::{Buffered, Route, buffered};
use observe::Observer;

// What handlers are made of.
pub use client_address::ClientAddress;
pub use content_digest::ContentDigest;
pub use extract::{Id, Json, Query, mail_address, no_nul, not_null};
pub use paging::{List, Page};
pub use problem::{Problem, Result};
pub use streamed::Streamed;

/// Puts around the routes what holds for all of them: limits of time, size and number, CORS, problem bodies, the
/// headers that make browsers careful, the access line. The body of a route in `streaming` is handed on as it comes in.
pub fn finish(routes: Router, streaming: Vec<Route>, config: &config::Http, site: &PublicUrl, metrics: Metrics, postgres: Pool) -> Router {
    let observer = Arc::new(Observer::new(metrics, config.trusted_proxies.into()));
    let limits = Arc::new(Buffered::new(config.request_timeout.0, streaming, postgres));
    // The outermost first. One layer for all, since each that is put on routes by itself is boxed, and cloned for each request.
    let https = site.is_https();
    let around = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(observer, observe::observe))
        .map_response(move |response| harden(response, https))
        .layer(option_layer(cors(config)))
        // The panic hook has logged it; the client gets a bare 500, which `observe` gives a body.
        .layer(CatchPanicLayer::custom(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()))
        .layer(middleware::from_fn_with_state(limits, buffered));
    routes.fallback(|| async { Problem::not_found() }).layer(around)
}

/// How long a browser may go by an answer of [`cors`] before it asks again.
const PREFLIGHT: Duration = Duration::from_hours(1);

/// Other sites may call the API if they are listed, with cookies and all; without a list nobody may.
fn cors(config: &config::Http) -> Option<CorsLayer> {
    let origins = config.cors_origins.as_ref()?.0.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_credentials(true)
        .max_age(PREFLIGHT)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            header::IF_MATCH,
            HeaderName::from_static("content-digest"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("traceparent"),
            HeaderName::from_static("x-request-id"),
        ])
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
