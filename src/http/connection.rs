//! Tracks the stage of the request on a connection. A drain waits for some stages and may cut off others.
//!
//! With the time limits of hyper and tower-http instead, four tests of `tests/outages/slow_clients.rs` fail.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle. Load balancers close theirs sooner (most after 60 s, Heroku's router after 90 s),
/// because a request on a connection that is just being closed gets no response.
const IDLE_TIMEOUT: Duration = Duration::from_secs(100);

/// How long a client may take to read a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

/// How many bytes of a response are passed on at a time, so that the bytes not yet passed on are known to be unsent.
const PIECE_SIZE: usize = 16 * 1024;

/// How many bytes of an unread request body are read after the response, and for how long.
const MAX_LINGER_BYTES: usize = 16 * 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// The stage of the request on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    /// Between requests, or in the head of one.
    #[default]
    Idle,
    /// The request's body is being received.
    Receiving,
    /// The request is complete and being handled.
    Working,
    /// The response is being sent.
    Sending,
    /// The response is a stream of events, which has no end that anybody waits for.
    Streaming,
}

/// The connection's stage, and since when.
pub(super) struct Progress(Mutex<State>);

#[derive(Clone, Copy)]
struct State {
    stage: Stage,
    since: Instant,
    /// Since when the head of a request is being received.
    head: Option<Instant>,
    /// Since when the client reads nothing of the response.
    stuck: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        let now = Instant::now();
        // A new connection must send a request head in time.
        Self(Mutex::new(State { stage: Stage::Idle, since: now, head: Some(now), stuck: None }))
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stage(&self) -> Stage {
        self.state().stage
    }

    /// Whether no client waits for a response or the rest of one. An event stream ends when the drain begins, so what is
    /// left of it at this time is for a client that does not read.
    pub(super) fn is_idle(&self) -> bool {
        self.stage() == Stage::Streaming || self.idle_since().is_some()
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.stage == Stage::Idle && state.stuck.is_none()).then_some(state.since)
    }

    fn set(&self, stage: Stage) {
        let mut state = self.state();
        (state.stage, state.since, state.head) = (stage, Instant::now(), None);
    }

    fn heard(&self) {
        let mut state = self.state();
        if state.stage == Stage::Idle && state.head.is_none() {
            state.head = Some(Instant::now());
        }
    }

    /// Returns when the client has exceeded a time limit: for a request's head, for reading a response, or for being
    /// idle.
    pub(super) async fn late(&self) {
        loop {
            let (state, now) = (*self.state(), Instant::now());
            let whole = match state.stage {
                Stage::Sending => Some(state.since + RESPONSE_TIMEOUT),
                Stage::Idle => Some(state.since + IDLE_TIMEOUT),
                Stage::Receiving | Stage::Working | Stage::Streaming => None,
            };
            let ends = [whole, state.head.map(|at| at + HEAD_TIMEOUT), state.stuck.map(|at| at + RESPONSE_TIMEOUT)];
            // A stage that begins later cannot be late before the next check, so changes need not wake this loop.
            let next = ends.into_iter().flatten().fold(now + HEAD_TIMEOUT, Instant::min);
            if next <= now {
                return;
            }
            sleep_until(next).await;
        }
    }
}

/// A client's connection that records when bytes arrive and when writes are stuck.
pub(super) struct TrackedStream {
    stream: TcpStream,
    progress: Arc<Progress>,
    stuck: bool,
}

impl TrackedStream {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>) -> Self {
        Self { stream, progress, stuck: false }
    }

    fn sent(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() != self.stuck {
            self.stuck = written.is_pending();
            self.progress.state().stuck = self.stuck.then(Instant::now);
        }
        written
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut task::Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.heard();
        }
        read
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut task::Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.sent(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut task::Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A request body that records its end. If the handler does not read all of it, the rest is read and discarded. Closing a
/// connection with unread bytes resets it, and the client might never read the response (RFC 9112, 9.6).
pub(super) struct LingeringBody {
    body: Option<Incoming>,
    progress: Arc<Progress>,
}

impl LingeringBody {
    pub(super) fn new(body: Incoming, progress: Arc<Progress>) -> Self {
        progress.set(Stage::Receiving);
        let body = Self { body: Some(body), progress };
        body.note_end(false);
        body
    }

    fn note_end(&self, ended: bool) {
        if (ended || self.is_end_stream()) && self.progress.stage() == Stage::Receiving {
            self.progress.set(Stage::Working);
        }
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        // The handler does not need the rest, so the request counts as complete.
        self.note_end(true);
        if let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) {
            let progress = self.progress.clone();
            tokio::spawn(async move {
                let rest = async {
                    let mut left = MAX_LINGER_BYTES;
                    while let Some(Ok(frame)) = body.frame().await {
                        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                        if left == 0 {
                            return;
                        }
                    }
                };
                let _ = timeout(LINGER_TIMEOUT, rest).await;
                // The bytes that were read were not the head of another request.
                if progress.stage() == Stage::Idle {
                    progress.set(Stage::Idle);
                }
            });
        }
    }
}

impl hyper::body::Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context));
        // The end of a chunked body shows only here.
        self.note_end(matches!(frame, Poll::Ready(None)));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

/// A response body that is sent piece by piece. The connection stays in [`Stage::Sending`] or
/// [`Stage::Streaming`] until it is dropped.
pub(super) struct TrackedBody {
    body: Body,
    rest: Bytes,
    /// The stage after it. The connection of a stream ends with it, and what is left is for a client that does not read.
    after: Stage,
    progress: Arc<Progress>,
}

impl TrackedBody {
    pub(super) fn new(body: Body, streams: bool, progress: Arc<Progress>) -> Self {
        let (stage, after) = if streams { (Stage::Streaming, Stage::Streaming) } else { (Stage::Sending, Stage::Idle) };
        progress.set(stage);
        Self { body, rest: Bytes::new(), after, progress }
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.progress.set(self.after);
    }
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_SIZE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        // hyper asks for the whole length, before the first piece.
        self.body.size_hint()
    }
}
