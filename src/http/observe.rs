//! Gives every request an id, a span, a problem body if it fails, and one log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, Span, error, error_span, field, info, warn};
use uuid::Uuid;

use super::client_address::{ClientAddress, FORWARDED_FOR, Peer};
use super::html;
use super::problem::Problem;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// The largest head that a request may have, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The settings and state for observing the requests of one listener.
pub(super) struct Observer {
    metrics: Metrics,
    trusted_proxies: usize,
    /// Whether the warning about a proxy has been logged, which happens once.
    warned: AtomicBool,
}

impl Observer {
    pub(super) fn new(metrics: Metrics, trusted_proxies: usize) -> Self {
        Self { metrics, trusted_proxies, warned: AtomicBool::new(false) }
    }

    fn client(&self, request: &Request) -> Option<ClientAddress> {
        let forwarded = self.trusted_proxies == 0 && request.headers().contains_key(FORWARDED_FOR);
        if forwarded && !self.warned.swap(true, Ordering::Relaxed) {
            warn!("ignoring X-Forwarded-For because TRUSTED_PROXIES is 0; behind a proxy, all clients share one rate limit");
        }
        let Peer(peer) = request.extensions().get()?;
        Some(ClientAddress::of(request.headers(), peer.ip(), self.trusted_proxies))
    }
}

/// The outermost layer of the routes.
pub(super) async fn observe(State(observer): State<Arc<Observer>>, mut request: Request, next: Next) -> Response {
    // Always a new id. The caller's id is a separate field, because callers could give two requests the same id.
    let id = Uuid::new_v4().to_string();
    let callers = request.headers().get(&REQUEST_ID).and_then(|value| callers_id(value.as_bytes())).map(field::display);
    // The route's template, never the path itself, because paths contain ids and queries contain tokens.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    // A level that no log filter drops, because jobs and the audit trail use the span's fields.
    let span = error_span!("request", request_id = %id, caller_request_id = callers, traceparent = field::Empty,
        account_id = field::Empty, otel.name = route, otel.kind = "server", otel.status_code = field::Empty);
    // Only a trusted proxy may name the trace that a request belongs to.
    let traceparent = request.headers().get("traceparent").filter(|_| observer.trusted_proxies > 0);
    traces::join(&span, traceparent.and_then(|value| value.to_str().ok()));
    if let Some(client) = observer.client(&request) {
        request.extensions_mut().insert(client);
    }
    serve(request, next, &id, &route, &observer.metrics).instrument(span).await
}

/// Logs and counts a request when it ends, also if its connection ends before the response is ready.
struct Report<'a> {
    method: Method,
    route: &'a str,
    status: StatusCode,
    started: Instant,
    metrics: &'a Metrics,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let Self { method, route, status, started, metrics } = self;
        metrics.request(method, route, *status, started.elapsed());
        let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(method = %method, route, status = status.as_u16(), latency_ms, "{method} {route} {}", status.as_u16());
    }
}

async fn serve(request: Request, next: Next, id: &str, route: &str, metrics: &Metrics) -> Response {
    let _in_flight = metrics.request_begins();
    let method = request.method().clone();
    // 499 is nginx's status for a request whose client did not wait.
    let status = StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT);
    let mut report = Report { method: method.clone(), route, status, started: Instant::now(), metrics };
    let prefers_html = html::is_preferred(request.headers());
    let mut response = match refuse(&request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let status = response.status();
    // An HTML page explains the problem itself.
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    if !is_page && (status.is_client_error() || status.is_server_error()) {
        let problem = response.extensions_mut().remove::<Arc<Problem>>().unwrap_or_else(|| Arc::new(Problem::from_status(status)));
        if let Some(source) = &problem.source {
            error!(error = format!("{source:#}"), "{method} {route} failed: {source:#}");
        }
        let mut rendered = problem.render(id);
        if prefers_html && let Ok(page) = html::refusal(&problem, id) {
            rendered.headers_mut().extend(page.headers().clone());
            *rendered.body_mut() = page.into_body();
        }
        // Headers such as `Allow` stay. The problem replaces the body and the headers that describe it.
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
    report.status = status;
    response
}

/// Checks the head of a request, whatever its route. Returns a problem if it is invalid.
fn refuse(request: &Request) -> Option<Problem> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    // RFC 9112, 3.2.
    if request.version() == Version::HTTP_11 && hosts != 1 || hosts > 1 {
        return Some(Problem::malformed("The request must have exactly one `Host` header."));
    }
    let size: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (size > MAX_HEAD_BYTES).then(|| Problem::from_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))
}

/// The caller's `X-Request-Id`, if it is short and contains only safe characters.
fn callers_id(id: &[u8]) -> Option<&str> {
    let sane = (1..=64).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    str::from_utf8(id).ok().filter(|_| sane)
}
