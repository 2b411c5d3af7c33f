//! Streams request bodies to the handler as they arrive, without buffering. A client that sends too little for too long is
//! cut off.
//!
//! An access rule marks the routes that stream (`Rule::streaming`). `REQUEST_TIMEOUT` does not apply to them.

use std::pin::Pin;
use std::task::{self, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::problem::{self, Problem};

/// How long a client may take for [`MIN_PROGRESS`] while the handler waits for more of the body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How many bytes count as progress. A client that sends a byte now and then would hold its place for ever.
const MIN_PROGRESS: usize = 32 * 1024;

/// The client sent too little for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client sent less than {MIN_PROGRESS} bytes in {STALL_TIMEOUT:?}")]
struct Stalled;

/// A body that fails if the client sends less than [`MIN_PROGRESS`] in [`STALL_TIMEOUT`]. Time counts only while the handler waits
/// for more.
pub(super) struct StallTimeoutBody<S> {
    body: Body,
    /// When the handler began to wait for more, if it does.
    waits_since: Option<Instant>,
    /// How long it waited before, since the last progress.
    waited: Duration,
    /// How many bytes arrived since the last progress.
    arrived: usize,
    /// When the wait times out.
    deadline: Pin<Box<Sleep>>,
    /// Held until the body is dropped, because it counts towards the limits of streams.
    _permit: S,
}

impl<S> StallTimeoutBody<S> {
    pub(super) fn new(body: Body, permit: S) -> Self {
        Self { body, waits_since: None, waited: Duration::ZERO, arrived: 0, deadline: Box::pin(sleep(STALL_TIMEOUT)), _permit: permit }
    }
}

impl<S: Unpin> hyper::body::Body for StallTimeoutBody<S> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let waited = self.waits_since.take().map(|since| since.elapsed()).unwrap_or_default();
            self.waited += waited;
            self.arrived += frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            if self.arrived >= MIN_PROGRESS {
                (self.arrived, self.waited) = (0, Duration::ZERO);
            }
            return Poll::Ready(frame);
        }
        if self.waits_since.is_none() {
            let now = Instant::now();
            self.waits_since = Some(now);
            let left = STALL_TIMEOUT.saturating_sub(self.waited);
            self.deadline.as_mut().reset(now + left);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(Stalled))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, which arrives in pieces.
pub struct Streamed {
    body: Body,
    /// The length in bytes, if the client declared it.
    pub length: Option<u64>,
}

impl<S: Send + Sync> FromRequest<S> for Streamed {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> problem::Result<Self> {
        let body = request.into_body();
        Ok(Self { length: body.size_hint().exact(), body })
    }
}

impl Streamed {
    /// Returns the next piece, or none at the end.
    ///
    /// # Errors
    /// 408 if the client sends too little for too long, 400 if the body ends before it is complete.
    pub async fn next(&mut self) -> problem::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| {
                let stalled = anyhow::Error::new(error).chain().any(<dyn std::error::Error>::is::<Stalled>);
                if stalled {
                    Problem::from_status(StatusCode::REQUEST_TIMEOUT)
                } else {
                    Problem::malformed("The body ended before it was complete.")
                }
            })?;
            // Trailers are ignored.
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}
