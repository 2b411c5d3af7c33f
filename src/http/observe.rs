//! What every request gets: an id, a span, a body for its problem, and one line in the log.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span, error, error_span, field, info};
use uuid::Uuid;

use super::problem::Problem;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer of the routes.
pub async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // The template, never the path itself: paths hold ids, and queries hold tokens.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    // Of all levels the one that no filter of the log leaves out: the fields go on into jobs and the audit trail.
    let span = error_span!("request", request_id = %id, traceparent = field::Empty, account_id = field::Empty,
        otel.name = route, otel.kind = "server", otel.status_code = field::Empty);
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    traces::join(&span, traceparent);
    serve(request, next, &id, route, metrics).instrument(span).await
}

async fn serve(request: Request, next: Next, id: &str, route: String, metrics: Metrics) -> Response {
    let started = Instant::now();
    let _in_flight = metrics.request_begins();
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    // A page for people says itself what is wrong.
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    if !is_page && (status.is_client_error() || status.is_server_error()) {
        let problem = response.extensions_mut().remove::<Arc<Problem>>().unwrap_or_else(|| Arc::new(Problem::from_status(status)));
        if let Some(source) = &problem.source {
            error!(error = format!("{source:#}"), "{method} {route} failed: {source:#}");
        }
        let rendered = problem.render(id);
        // Headers such as `Allow` stay; the body and what describes it are the problem's.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().extend(rendered.headers().clone());
        *response.body_mut() = rendered.into_body();
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    if status.is_server_error() {
        Span::current().record("otel.status_code", "error");
    }
    metrics.request(&method, &route, status, started.elapsed());
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    info!(method = %method, route, status = status.as_u16(), latency_ms, "{method} {route} {}", status.as_u16());
    response
}

/// The caller's `X-Request-Id` if it is a sane one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (8..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
        .map_or_else(|| Uuid::new_v4().to_string(), ToOwned::to_owned)
}
