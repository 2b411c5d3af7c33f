//! Requests whose whole body is read before work on them begins, within limits of size, time and number.
//!
//! A request takes one of the places for work only when its body is there, so slow clients take none. A route that streams
//! gets its body as it comes in (`streamed.rs`), and has places of its own.

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
use super::streamed::Moving;
use crate::resources::postgres::{self, Pool};

/// The largest body that a request may have, in bytes.
const BODY_LIMIT: usize = 1024 * 1024;

/// How long a client may send nothing of a body.
const STALL: Duration = Duration::from_secs(3);

/// What all bodies that are not yet complete may take, in bytes; and those of one client address, and their number.
const BYTES: usize = 64 * 1024 * 1024;
const BYTES_OF_ONE: usize = 8 * 1024 * 1024;
const BODIES_OF_ONE: usize = 64;

/// How many requests stream at a time, and how many of one client address: each may hold some ten megabytes.
const STREAMS: usize = 32;
const STREAMS_OF_ONE: usize = 16;

/// How many requests are worked on at a time; more would wait for each other until all are too late.
const IN_FLIGHT: usize = 512;

/// The limits of one listener.
pub(super) struct Buffered {
    /// A request's time, and a body's.
    pub(super) limit: Duration,
    free: Semaphore,
    bodies: Arc<Bodies>,
    /// The routes that stream.
    streaming: Vec<Route>,
    free_streams: Arc<Semaphore>,
    streams: Arc<Bodies>,
    postgres: Pool,
}

/// A route: its method, and its template.
pub type Route = (Method, &'static str);

impl Buffered {
    pub(super) fn new(limit: Duration, streaming: Vec<Route>, postgres: Pool) -> Self {
        let (free, free_streams) = (Semaphore::new(IN_FLIGHT), Arc::new(Semaphore::new(STREAMS)));
        let (bodies, streams) = (Arc::new(Bodies::of_one(BODIES_OF_ONE)), Arc::new(Bodies::of_one(STREAMS_OF_ONE)));
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
            // Nothing was done, and on a new connection it will be.
            if self.met_changed_type(&response) { next.run(again).await } else { response }
        };
        timeout(self.limit, work).await.map_err(|_| {
            let problem = Problem::from_status(StatusCode::SERVICE_UNAVAILABLE);
            // Of a change it is not known whether it was made, so nobody is told to ask for it again.
            if safe { problem } else { Problem::timed_out() }
        })
    }

    /// Hands the body on as it comes in.
    async fn stream(&self, request: Request, next: Next) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let address = parts.extensions.get::<ClientAddress>().map(|address| address.bucket()).unwrap_or_default();
        let share = Share::take(&self.streams, address)?;
        let Ok(place) = self.free_streams.clone().try_acquire_owned() else { return Err(overloaded()) };
        let body = Body::new(Moving::new(body, (share, place)));
        Ok(next.run(Request::from_parts(parts, body)).await)
    }

    /// Reads a body to its end.
    async fn receive(&self, mut body: Body, address: Option<ClientAddress>) -> Result<Bytes> {
        if body.size_hint().lower() > BODY_LIMIT as u64 {
            return Err(Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        let mut share = Share::take(&self.bodies, address.map(ClientAddress::bucket).unwrap_or_default())?;
        let end = Instant::now() + self.limit;
        let mut pieces = Vec::new();
        loop {
            let frame = timeout_at(end.min(Instant::now() + STALL), body.frame()).await;
            let frame = frame.map_err(|_| Problem::from_status(StatusCode::REQUEST_TIMEOUT))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Problem::malformed("the body ended early"))?;
            let Ok(piece) = frame.into_data() else { continue };
            share.grow(piece.len())?;
            if share.bytes > BODY_LIMIT {
                return Err(Problem::from_status(StatusCode::PAYLOAD_TOO_LARGE));
            }
            pieces.push(piece);
        }
        Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
    }

    /// Whether the request failed because a migration has changed a type under a prepared statement. What other errors
    /// say of the connections is noted.
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
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests at a time; try again in a moment")
}

/// The bodies that are not yet complete: all bytes, and by client address their number and bytes.
struct Bodies {
    /// How many one client may have.
    of_one: usize,
    bytes: AtomicUsize,
    clients: Mutex<HashMap<String, (usize, usize)>>,
}

impl Bodies {
    fn of_one(of_one: usize) -> Self {
        Self { of_one, bytes: AtomicUsize::new(0), clients: Mutex::default() }
    }
}

/// What one of them takes, until it is dropped.
struct Share {
    bodies: Arc<Bodies>,
    client: String,
    bytes: usize,
}

impl Share {
    /// # Errors
    /// 429: the client is sending too many.
    fn take(bodies: &Arc<Bodies>, client: String) -> Result<Self> {
        let share = Self { bodies: bodies.clone(), client, bytes: 0 };
        share.of_client(|(number, _)| {
            *number += 1;
            *number <= bodies.of_one
        })?;
        Ok(share)
    }

    /// # Errors
    /// 503 where all bodies together are too large, 429 where the client's are.
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
        let detail = "this address is sending too much at a time; try again in a moment";
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
