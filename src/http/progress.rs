//! How far a request has come on its connection, which decides what a drain waits for and what it may cut off.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a client may take to read an answer.
const READ_LIMIT: Duration = Duration::from_mins(1);

/// How much of an answer is handed on at a time, so that what is not yet read is known to be not yet sent.
const PIECE: usize = 16 * 1024;

/// How much of an unread body, and for how long, is read after its answer.
const LINGER_LIMIT: usize = 2 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

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
pub(super) struct Progress(Mutex<(Stage, Instant)>);

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new((Stage::Idle, Instant::now())))
    }
}

impl Progress {
    pub(super) fn stage(&self) -> Stage {
        self.get().0
    }

    pub(super) fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (stage, Instant::now());
    }

    fn get(&self) -> (Stage, Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when an answer has been going out for longer than a client may take.
    pub(super) async fn unread(&self) {
        loop {
            // An answer that begins later is not late before the next look, so no change needs to wake anybody.
            let begun = match self.get() {
                (Stage::Sending, since) if since.elapsed() >= READ_LIMIT => return,
                (Stage::Sending, since) => since,
                _ => Instant::now(),
            };
            sleep_until(begun + READ_LIMIT).await;
        }
    }
}

/// A request's body, which notes its end, and whose rest is read and dropped when nobody asks for it: closing a connection
/// with unread bytes resets it, and who was refused would never read why (RFC 9112, 9.6).
pub(super) struct Lingering {
    body: Option<Incoming>,
    progress: Arc<Progress>,
}

impl Lingering {
    pub(super) fn new(body: Incoming, progress: Arc<Progress>) -> Self {
        progress.set(Stage::Receiving);
        let body = Self { body: Some(body), progress };
        body.note_end();
        body
    }

    fn note_end(&self) {
        if self.is_end_stream() && self.progress.stage() == Stage::Receiving {
            self.progress.set(Stage::Working);
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) {
            tokio::spawn(timeout(LINGER, async move {
                let mut left = LINGER_LIMIT;
                while let Some(Ok(frame)) = body.frame().await {
                    left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                    if left == 0 {
                        return;
                    }
                }
            }));
        }
    }
}

impl hyper::body::Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context));
        self.note_end();
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
pub(super) struct Guarded {
    body: Body,
    rest: Bytes,
    progress: Arc<Progress>,
}

impl Guarded {
    pub(super) fn new(body: Body, progress: Arc<Progress>) -> Self {
        progress.set(Stage::Sending);
        Self { body, rest: Bytes::new(), progress }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.progress.set(Stage::Idle);
    }
}

impl hyper::body::Body for Guarded {
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
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
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
