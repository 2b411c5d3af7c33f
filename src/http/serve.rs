//! The serving loop: accepts connections until the drain, and then lets the requests in flight finish.

use std::net::{Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::client::Peer;
use crate::lifecycle::Lifecycle;

/// How long a client may take over the head of a request, and so how long an idle connection lives.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest head that a request may have, in bytes; a larger one is 431.
const HEADER_LIMIT: usize = 32 * 1024;

/// How much of an unread body, and for how long, is read after its answer.
const LINGER_LIMIT: usize = 2 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// After a request's end its last bytes may still be on the way to the client; a half-sent request gets no more than this.
const FLUSH: Duration = Duration::from_millis(300);

/// Listens on all interfaces and registers the task that serves; `name` is the listener's in the log.
///
/// At `soft` it goes on accepting for `delay`, and then closes the listener.
///
/// # Errors
/// The port is taken or forbidden.
pub async fn serve(name: &'static str, port: u16, routes: Router, delay: Duration, lifecycle: &mut Lifecycle) -> anyhow::Result<()> {
    let listener = listen(port).await.with_context(|| format!("cannot listen on port {port}"))?;
    let address = listener.local_addr()?;
    info!(listener = name, port = address.port(), "{name} is listening on port {}", address.port());
    lifecycle.spawn(name, accept(name, listener, routes, delay, lifecycle.soft.clone(), lifecycle.hard.clone()));
    Ok(())
}

/// On IPv6 and IPv4 alike; on IPv4 alone where the machine has no IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(e) if e.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        bound => bound,
    }
}

async fn accept(
    name: &'static str,
    listener: TcpListener,
    routes: Router,
    delay: Duration,
    soft: CancellationToken,
    hard: CancellationToken,
) -> anyhow::Result<()> {
    let closing = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut closed = pin!(async {
        soft.cancelled().await;
        sleep(delay).await;
    });
    loop {
        tokio::select! {
            () = &mut closed => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(stream, Peer(peer), routes.clone(), closing.clone(), hard.clone()));
                }
                Err(e) => {
                    // Out of file descriptors, most often: accepting again at once would spin.
                    warn!(error = %e, "cannot accept a connection: {e}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    closing.cancel();
    let mut cut = 0;
    while let Some(ended) = connections.join_next().await {
        cut += usize::from(ended.unwrap_or(false));
    }
    anyhow::ensure!(cut == 0, "{cut} request(s) were still being answered on {name} when the drain's time was over, and were cut off");
    Ok(())
}

/// Serves one connection; says whether it was cut off in mid-answer.
async fn connection(stream: TcpStream, peer: Peer, routes: Router, closing: CancellationToken, hard: CancellationToken) -> bool {
    // Small answers must not wait for the client's acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let answering = Arc::new(AtomicUsize::new(0));
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let guard = Answering::begin(&answering);
        let routes = routes.clone();
        let request = request.map(|body| Lingering(Some(body)));
        async move { routes.oneshot(request).await.map(|response| response.map(|body| Guarded { body, _guard: guard })) }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // A client that hangs up or talks nonsense is its own business.
        ended = connection.as_mut() => {
            if let Err(e) = ended { debug!("connection ended: {e}") }
            return false;
        }
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    if answering.load(Ordering::Relaxed) == 0 {
        // Idle connections close at once; what is left is a half-sent request, or an answer's last bytes.
        let _ = timeout(FLUSH, connection).await;
        return false;
    }
    tokio::select! {
        _ = connection => false,
        () = hard.cancelled() => true,
    }
}

/// Counts a request from its head to the end of its answer.
struct Answering(Arc<AtomicUsize>);

impl Answering {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's body whose rest is read and dropped when nobody asks for it: closing a connection with unread bytes resets
/// it, and who was refused would never read why (RFC 9112, 9.6).
struct Lingering(Option<Incoming>);

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) {
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
        self.0.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.0.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

/// A response's body that keeps its request counted until it has been sent.
struct Guarded {
    body: Body,
    _guard: Answering,
}

impl hyper::body::Body for Guarded {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
