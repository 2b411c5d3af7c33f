//! The HTTP transport that every route uses. Knows no account and no feature.

pub mod assets;
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
mod served_by;
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

// The types that handlers use.
pub use client_address::ClientAddress;
pub use content_digest::ContentDigest;
pub use extract::{Id, Json, Query, mail_address, no_nul, not_null};
pub use paging::{List, Page};
pub use problem::{Problem, Result};
pub use served_by::ServedBy;
pub use streamed::Streamed;

/// Adds the layers that all routes share: limits of time, size and number, CORS, problem bodies, security headers, the
/// name of the process and the access log. A route in `streaming` gets its body as it arrives.
pub fn finish(
    routes: Router,
    streaming: Vec<Route>,
    config: &config::Http,
    site: &PublicUrl,
    metrics: Metrics,
    postgres: Pool,
    served_by: ServedBy,
) -> Router {
    let observer = Arc::new(Observer::new(metrics, config.trusted_proxies.into()));
    let limits = Arc::new(Buffered::new(config.request_timeout.0, streaming, postgres));
    // The outermost layer first. They are combined into one layer, because axum boxes each separate layer and clones it
    // for each request.
    let https = site.is_https();
    let around = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(observer, observe::observe))
        .map_response(move |response| served_by.mark(harden(response, https)))
        .layer(option_layer(cors(config)))
        // The panic hook logs the panic. The client gets a 500, to which `observe` adds the problem body.
        .layer(CatchPanicLayer::custom(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()))
        .layer(middleware::from_fn_with_state(limits, buffered));
    routes.fallback(|| async { Problem::not_found() }).layer(around)
}

/// How long a browser may cache a preflight response.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(1);

/// Allows the listed sites to call the API, with cookies. Without a list no other site may.
fn cors(config: &config::Http) -> Option<CorsLayer> {
    let origins = config.cors_origins.as_ref()?.0.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_credentials(true)
        .max_age(PREFLIGHT_MAX_AGE)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
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

/// Adds the headers that OWASP's HTTP Headers Cheat Sheet recommends. A page that loads anything sets its own policy.
fn harden<B>(mut response: Response<B>, https: bool) -> Response<B> {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        // Nearly every response is personal, so no cache may store it.
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
