//! Reads a request's whole body before the handler runs, within limits of size, time and number.
//!
//! A request counts as in flight only once its body is complete, so slow clients cannot use up the limit of requests in
//! flight. A route that streams gets its body as it arrives (`streamed.rs`) and has a limit of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::ClientAddress;
use super::problem::{Problem, Result};
use super::streamed::StallTimeoutBody;
use crate::resources::postgres::{self, Pool};

/// The largest body that a request may have, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;

/// How long a client may pause while it sends a body.
const STALL: Duration = Duration::from_secs(3);

/// The limits for all incomplete bodies: their bytes in total, and the bytes and the number from one client address.
const BYTES: usize = 64 * 1024 * 1024;
const BYTES_OF_ONE: usize = 8 * 1024 * 1024;
const BODIES_OF_ONE: usize = 64;

/// How many requests may stream at a time, in total and for one client address. Each may hold about ten megabytes.
const MAX_STREAMS: usize = 32;
const MAX_STREAMS_PER_CLIENT: usize = 16;

/// How many requests are in flight at a time. More would delay each other until all of them time out.
const IN_FLIGHT: usize = 512;

/// The limits of one listener.
pub(super) struct Buffered {
    /// The time limit of a request, and of receiving a body.
    pub(super) limit: Duration,
    free: Semaphore,
    bodies: Arc<Bodies>,
    /// The routes that stream.
    streaming: Vec<Route>,
    free_streams: Arc<Semaphore>,
    streams: Arc<Bodies>,
    postgres: Pool,
}

/// A route: its method and its path template.
pub type Route = (Method, &'static str);

impl Buffered {
    pub(super) fn new(limit: Duration, streaming: Vec<Route>, postgres: Pool) -> Self {
        let (free, free_streams) = (Semaphore::new(IN_FLIGHT), Arc::new(Semaphore::new(MAX_STREAMS)));
        let (bodies, streams) = (Arc::new(Bodies::new(BODIES_OF_ONE)), Arc::new(Bodies::new(MAX_STREAMS_PER_CLIENT)));
        Self { limit, free, bodies, streaming, free_streams, streams, postgres }
    }

    async fn answer(&self, request: Request, next: Next) -> Result<Response> {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        if self.streaming.iter().any(|(method, template)| method == request.method() && *template == path) {
            return self.stream(request, next).await;
        }
        let (parts, body) = request.into_parts();
        let address = parts.extensions.get::<ClientAddress>().copied();
        let body = if body.is_end_stream() { Bytes::new() } else { self.receive(body, address).await? };
        let Ok(_place) = self.free.try_acquire() else { return Err(overloaded()) };
        let safe = parts.method.is_safe();
        let again = Request::from_parts(parts.clone(), Body::from(body.clone()));
        let work = async {
            let response = next.clone().run(Request::from_parts(parts, Body::from(body))).await;
            // The request has changed nothing yet, and it succeeds on a new connection.
            if self.met_changed_type(&response) { next.run(again).await } else { response }
        };
        timeout(self.limit, work).await.map_err(|_| {
            let problem = Problem::from_status(StatusCode::SERVICE_UNAVAILABLE);
            // The change may have been made, so the response must not ask the client to repeat it.
            if safe { problem } else { Problem::timed_out() }
        })
    }

    /// Passes the body to the handler as it arrives.
    async fn stream(&self, request: Request, next: Next) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let address = parts.extensions.get::<ClientAddress>().map(|address| address.bucket()).unwrap_or_default();
        let share = Share::take(&self.streams, address)?;
        let Ok(permit) = self.free_streams.clone().try_acquire_owned() else { return Err(overloaded()) };
        let body = Body::new(StallTimeoutBody::new(body, (share, permit)));
        Ok(next.run(Request::from_parts(parts, body)).await)
    }

    /// Reads a body to its end.
    async fn receive(&self, mut body: Body, address: Option<ClientAddress>) -> Result<Bytes> {
        if body.size_hint().lower() > BODY_LIMIT as u64 {
            return Err(Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        let mut share = Share::take(&self.bodies, address.map(ClientAddress::bucket).unwrap_or_default())?;
        let end = Instant::now() + self.limit;
        let mut whole = Vec::new();
        loop {
            let frame = timeout_at(end.min(Instant::now() + STALL), body.frame()).await;
            let frame = frame.map_err(|_| Problem::from_status(StatusCode::REQUEST_TIMEOUT))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Problem::malformed("The body ended early."))?;
            let Ok(piece) = frame.into_data() else { continue };
            share.grow(piece.len())?;
            if share.bytes > BODY_LIMIT {
                return Err(Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE));
            }
            // Copied, because each piece keeps the buffer alive that it was read into, and a client chooses their number.
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    /// Whether the request failed because a migration has changed a type under a prepared statement. The pool also
    /// examines the error, because it may affect the connections.
    fn met_changed_type(&self, response: &Response) -> bool {
        let source = response.extensions().get::<Arc<Problem>>().and_then(|problem| problem.source.as_ref());
        let error = source.and_then(|source| source.chain().find_map(|cause| cause.downcast_ref::<sqlx::Error>()));
        error.is_some_and(|error| {
            self.postgres.note(error);
            postgres::is_stale(error)
        })
    }
}

/// The middleware.
pub(super) async fn buffered(State(buffered): State<Arc<Buffered>>, request: Request, next: Next) -> Response {
    buffered.answer(request, next).await.unwrap_or_else(IntoResponse::into_response)
}

fn overloaded() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many concurrent requests. Please retry shortly.")
}

/// Counts incomplete bodies: their bytes in total, and their number and bytes by client address.
struct Bodies {
    /// How many bodies one client may have.
    max_per_client: usize,
    bytes: AtomicUsize,
    clients: Mutex<HashMap<String, (usize, usize)>>,
}

impl Bodies {
    fn new(max_per_client: usize) -> Self {
        Self { max_per_client, bytes: AtomicUsize::new(0), clients: Mutex::default() }
    }
}

/// One body's share of these counts, until it is dropped.
struct Share {
    bodies: Arc<Bodies>,
    client: String,
    bytes: usize,
}

impl Share {
    /// # Errors
    /// 429: the client is sending too many bodies at a time.
    fn take(bodies: &Arc<Bodies>, client: String) -> Result<Self> {
        let share = Self { bodies: bodies.clone(), client, bytes: 0 };
        share.of_client(|(number, _)| {
            *number += 1;
            *number <= bodies.max_per_client
        })?;
        Ok(share)
    }

    /// # Errors
    /// 503 if all bodies together are too large, 429 if the client's are.
    fn grow(&mut self, more: usize) -> Result<()> {
        self.bytes += more;
        let all = self.bodies.bytes.fetch_add(more, Ordering::Relaxed) + more;
        self.of_client(|(_, bytes)| {
            *bytes += more;
            *bytes <= BYTES_OF_ONE
        })?;
        if all > BYTES { Err(overloaded()) } else { Ok(()) }
    }

    fn of_client(&self, change: impl FnOnce(&mut (usize, usize)) -> bool) -> Result<()> {
        let mut clients = self.bodies.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = change(clients.entry(self.client.clone()).or_default());
        let detail = "This address is sending too much at once. Please retry shortly.";
        if fits { Ok(()) } else { Err(Problem::too_many(detail, 1)) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.bodies.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let mut clients = self.bodies.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, bytes)) = clients.get_mut(&self.client) {
            (*number, *bytes) = (number.saturating_sub(1), bytes.saturating_sub(self.bytes));
            if *number == 0 {
                clients.remove(&self.client);
            }
        }
    }
}
