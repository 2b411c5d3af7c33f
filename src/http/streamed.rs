//! Requests whose body is handed on as it comes in: nothing of it is kept here, and a client that sends nothing is cut off.
//!
//! A rule says which routes stream ([`crate::auth::rules::Rule::streaming`]). They are not bound by `REQUEST_TIMEOUT`.

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

/// How long a client may send nothing while its body is waited for.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Nothing has come in for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing came in for {STALL_LIMIT:?}")]
struct Stalled;

/// A body that ends with an error when nothing moves. While nobody asks for more, no time counts.
pub(super) struct Moving<S> {
    body: Body,
    /// Whether somebody waits for more, and for how long still.
    waiting: bool,
    end: Pin<Box<Sleep>>,
    /// What this takes of the listener's limits, until it is dropped.
    _share: S,
}

impl<S> Moving<S> {
    pub(super) fn new(body: Body, share: S) -> Self {
        Self { body, waiting: false, end: Box::pin(sleep(STALL_LIMIT)), _share: share }
    }
}

impl<S: Unpin> hyper::body::Body for Moving<S> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waiting = false;
            return Poll::Ready(frame);
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.end.as_mut().reset(Instant::now() + STALL_LIMIT);
        }
        ready!(self.end.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(Stalled))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, piece by piece.
pub struct Streamed {
    body: Body,
    /// How many bytes it will have, if the client has said.
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
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// 408 when nothing came for too long, 400 when the body ended before it was whole.
    pub async fn next(&mut self) -> problem::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| {
                let stalled = anyhow::Error::new(error).chain().any(<dyn std::error::Error>::is::<Stalled>);
                if stalled { Problem::from_status(StatusCode::REQUEST_TIMEOUT) } else { Problem::malformed("the body ended early") }
            })?;
            // Trailers say nothing here.
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}
