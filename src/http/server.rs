//! The serving loop: accepts connections until the drain, and then lets the requests in flight finish.

use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::Request;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::client_address::Peer;
use super::connection::{Guarded, Lingering, Noted, Progress, Stage};
use crate::lifecycle::Lifecycle;

/// The largest head that a request may have, in bytes; a larger one is 431.
const HEADER_LIMIT: usize = 32 * 1024;

/// How often it is told that connections cannot be accepted.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// How many connections a listener holds at a time; who comes after waits in the system's queue.
const CONNECTIONS: usize = 4096;

/// What has come in when a listener closes is read within this time.
const ARRIVED: Duration = Duration::from_millis(5);

/// After an answer's end its last bytes may still be on the way to the client.
const FLUSH: Duration = Duration::from_millis(300);

/// A port that is taken, at which clients wait until it is served.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
}

/// Listens on all interfaces; `name` is the listener's in the log.
///
/// # Errors
/// The port is taken or forbidden.
pub async fn listen(name: &'static str, port: u16) -> anyhow::Result<Listener> {
    let socket = bind(port).await.with_context(|| format!("cannot listen on port {port}"))?;
    let address = socket.local_addr()?;
    info!(listener = name, port = address.port(), "{name} is listening on port {}", address.port());
    Ok(Listener { name, socket })
}

/// On IPv6 and IPv4 alike; on IPv4 alone where the machine has no IPv6.
async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(e) if e.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        bound => bound,
    }
}

/// Registers the task that serves. At `soft` it goes on accepting for `delay`, and then closes the listener.
pub fn serve(listener: Listener, routes: Router, delay: Duration, lifecycle: &mut Lifecycle) {
    lifecycle.spawn(listener.name, accept(listener, routes, delay, lifecycle.soft.clone(), lifecycle.hard.clone()));
}

async fn accept(
    Listener { name, socket }: Listener,
    routes: Router,
    delay: Duration,
    soft: CancellationToken,
    hard: CancellationToken,
) -> anyhow::Result<()> {
    let closing = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut told: Option<Instant> = None;
    let mut closed = pin!(async {
        soft.cancelled().await;
        sleep(delay).await;
    });
    let begin = |stream, peer, slot: Result<OwnedSemaphorePermit, _>, connections: &mut JoinSet<bool>| {
        let connection = connection(stream, Peer(peer), routes.clone(), closing.clone(), hard.clone());
        connections.spawn(async move {
            let _slot = slot;
            connection.await
        });
    };
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, socket.accept().await)
        };
        tokio::select! {
            () = &mut closed => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (slot, accepted) = accept => match accepted {
                Ok((stream, peer)) => begin(stream, peer, slot, &mut connections),
                Err(e) => {
                    // Out of file descriptors, most often: accepting again at once would spin, and telling it each time too.
                    if told.is_none_or(|at| at.elapsed() > TELL_AGAIN) {
                        told = Some(Instant::now());
                        warn!(error = %e, "connections to {name} wait, they cannot be accepted: {e}");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    // Who has connected by now is answered too, all of them: tokio's budget would end this after a hundred.
    while let Ok(slot) = slots.clone().try_acquire_owned()
        && let Some(Ok((stream, peer))) = unconstrained(socket.accept()).now_or_never()
    {
        begin(stream, peer, Ok(slot), &mut connections);
    }
    drop(socket);
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
    let progress = Arc::new(Progress::default());
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (routes, progress) = (routes.clone(), progress.clone());
        let request = request.map(|body| Lingering::new(body, progress.clone()));
        async move { routes.oneshot(request).await.map(|response| response.map(|body| Guarded::new(body, progress))) }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // It would end idle connections too; `progress` tells the two apart.
            .header_read_timeout(None)
            .max_buf_size(HEADER_LIMIT)
            .serve_connection(TokioIo::new(Noted::new(stream, progress.clone())), service)
    );
    tokio::select! {
        biased;
        // A client that hangs up or talks nonsense is its own business.
        ended = connection.as_mut() => {
            if let Err(e) = ended { debug!("connection ended: {e}") }
            return false;
        }
        () = progress.late() => {
            debug!("connection closed: its client takes too long");
            return false;
        }
        () = closing.cancelled() => {}
    }
    // A request may lie in the socket, and to close now would reset it.
    if timeout(ARRIVED, connection.as_mut()).await.is_ok() {
        return false;
    }
    connection.as_mut().graceful_shutdown();
    // Idle connections close at once; what is left is a half-sent first head, whose rest may come, or an answer's last bytes.
    if progress.is_idle() && (timeout(FLUSH, connection.as_mut()).await.is_ok() || progress.is_idle()) {
        return false;
    }
    tokio::select! {
        _ = connection => false,
        // A request that was not all there has not been cut off.
        () = hard.cancelled() => progress.stage() != Stage::Receiving,
    }
}
