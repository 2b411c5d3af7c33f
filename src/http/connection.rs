//! How far a request has come on its connection, which decides what a drain waits for and what it may cut off.

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

/// How long a client may take over the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle: longer than balancers keep theirs (60 s at most of them, 90 s at Heroku's router), since
/// one that asks on a connection that is just being closed gets no answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(100);

/// How long a client may take to read an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

/// How much of an answer is handed on at a time, so that what is not yet read is known to be not yet sent.
const PIECE_SIZE: usize = 16 * 1024;

/// How much of an unread body, and for how long, is read after its answer.
const MAX_LINGER_BYTES: usize = 2 * 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    /// Between requests, or in the head of one.
    #[default]
    Idle,
    /// A request's body comes in.
    Receiving,
    /// The request is all there, and worked on.
    Working,
    /// Its answer goes out.
    Sending,
}

/// What a connection is at, and since when.
pub(super) struct Progress(Mutex<State>);

#[derive(Clone, Copy)]
struct State {
    stage: Stage,
    since: Instant,
    /// Since when the head of a request comes in.
    head: Option<Instant>,
    /// Since when the client takes nothing of what is sent.
    stuck: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        let now = Instant::now();
        // Who connects is expected to ask.
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

    /// Nobody waits for an answer, or for the rest of one.
    pub(super) fn is_idle(&self) -> bool {
        self.idle_since().is_some()
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

    /// Returns when the client has taken longer than it may: over a request's head, over an answer, or over nothing.
    pub(super) async fn late(&self) {
        loop {
            let (state, now) = (*self.state(), Instant::now());
            let whole = match state.stage {
                Stage::Sending => Some(state.since + RESPONSE_TIMEOUT),
                Stage::Idle => Some(state.since + IDLE_TIMEOUT),
                Stage::Receiving | Stage::Working => None,
            };
            let ends = [whole, state.head.map(|at| at + HEAD_TIMEOUT), state.stuck.map(|at| at + RESPONSE_TIMEOUT)];
            // What begins later is not late before the next look, so no change needs to wake anybody.
            let next = ends.into_iter().flatten().fold(now + HEAD_TIMEOUT, Instant::min);
            if next <= now {
                return;
            }
            sleep_until(next).await;
        }
    }
}

/// A client's connection, which notes when something comes in and when nothing goes out.
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

/// A request's body, which notes its end, and whose rest is read and dropped when nobody asks for it: closing a connection
/// with unread bytes resets it, and who was refused would never read why (RFC 9112, 9.6).
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
        // Nobody asks for the rest, so nothing is missing.
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
                // What came in was no head of another request.
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
        // Of a body in chunks, only this tells.
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

/// A response's body that goes out piece by piece, and keeps its request counted until it has.
pub(super) struct TrackedBody {
    body: Body,
    rest: Bytes,
    progress: Arc<Progress>,
}

impl TrackedBody {
    pub(super) fn new(body: Body, progress: Arc<Progress>) -> Self {
        progress.set(Stage::Sending);
        Self { body, rest: Bytes::new(), progress }
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.progress.set(Stage::Idle);
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
        // It is asked for the length of the whole, before the first piece.
        self.body.size_hint()
    }
}
