//! Accepts connections until the drain and then finishes the requests in flight.

use std::collections::hash_map::{Entry, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{HeaderValue, Request, header};
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::coop::unconstrained;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::client_address::Peer;
use super::connection::{LingeringBody, Progress, Stage, TrackedBody, TrackedStream};
use crate::lifecycle::Lifecycle;

/// How many bytes of a head are read. That is more than a head may have, so that a larger one gets a 431 response.
const READ_BUFFER_SIZE: usize = 64 * 1024;

/// How often a failure to accept connections is logged.
const ACCEPT_ERROR_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many connections a listener holds at a time. At the limit the longest idle ones are closed for new ones. While
/// none is idle, new connections wait in the operating system's queue.
const MAX_CONNECTIONS: usize = 4096;

/// How many connections one address may hold.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 1024;

/// How many idle connections are closed at a time. Searching for them takes longer than closing them.
const MAX_CLOSED_FOR_ROOM: usize = 64;

/// How long a request that has already arrived may take to be read when a listener closes.
const ARRIVED_REQUEST_TIMEOUT: Duration = Duration::from_millis(5);

/// How long the last bytes of a response may take to reach the client.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// The connections of a listener.
#[derive(Default)]
struct Connections {
    running: JoinSet<bool>,
    open: HashMap<task::Id, Open>,
    /// How many connections each address holds, without those that are being closed.
    of_one: HashMap<IpAddr, usize>,
    /// How many connections are being closed for new ones.
    leaving: usize,
}

struct Open {
    peer: IpAddr,
    progress: Arc<Progress>,
    closing: CancellationToken,
    leaves: bool,
}

impl Connections {
    /// Serves a connection. It closes idle ones if a limit is reached.
    fn begin(&mut self, stream: TcpStream, peer: SocketAddr, server: &Server) {
        let one = peer.ip().to_canonical();
        let of_one = self.of_one.get(&one).copied().unwrap_or_default();
        if server.limits_peers && of_one >= MAX_CONNECTIONS_PER_ADDRESS && self.make_room(Some(one)) == 0 {
            debug!("connection refused: its address has too many");
            return;
        }
        let (progress, closing) = (Arc::new(Progress::default()), server.closing.child_token());
        let served = connection(stream, Peer(peer), server.routes.clone(), progress.clone(), closing.clone(), server.hard.clone());
        let id = self.running.spawn(served).id();
        *self.of_one.entry(one).or_default() += 1;
        self.open.insert(id, Open { peer: one, progress, closing, leaves: false });
        if self.open.len() - self.leaving >= MAX_CONNECTIONS {
            self.make_room(None);
        }
    }

    /// Closes the connections that have been idle for longest, of one address or of all. Returns how many.
    fn make_room(&mut self, of: Option<IpAddr>) -> usize {
        let open = self.open.values_mut().filter(|open| of.is_none_or(|of| of == open.peer) && !open.leaves);
        let mut idle: Vec<_> = open.filter_map(|open| Some((open.progress.idle_since()?, open))).collect();
        idle.sort_by_key(|(since, _)| *since);
        idle.truncate(MAX_CLOSED_FOR_ROOM);
        for (_, open) in &mut idle {
            open.closing.cancel();
            open.leaves = true;
            leave(&mut self.of_one, open.peer);
        }
        self.leaving += idle.len();
        idle.len()
    }

    /// Waits until a connection has ended. Returns whether it was cut off, or None if there is no connection.
    async fn ended(&mut self) -> Option<bool> {
        let (id, cut) = self.running.join_next_with_id().await?.unwrap_or_else(|panicked| (panicked.id(), false));
        match self.open.remove(&id) {
            Some(open) if open.leaves => self.leaving -= 1,
            Some(open) => leave(&mut self.of_one, open.peer),
            None => {}
        }
        Some(cut)
    }
}

/// Decrements the number of an address's connections.
fn leave(of_one: &mut HashMap<IpAddr, usize>, peer: IpAddr) {
    if let Entry::Occupied(mut held) = of_one.entry(peer) {
        *held.get_mut() -= 1;
        if *held.get() == 0 {
            held.remove();
        }
    }
}

/// The values that all connections of a listener share.
struct Server {
    routes: Router,
    /// Whether the connections of one address are limited. Behind a proxy they are not, because all clients share its
    /// address.
    limits_peers: bool,
    closing: CancellationToken,
    hard: CancellationToken,
}

/// A bound port. Clients that connect wait until it is served.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
}

/// Listens on all interfaces. The log shows `name`.
///
/// # Errors
/// The port is taken, or this process may not use it.
pub async fn listen(name: &'static str, port: u16) -> anyhow::Result<Listener> {
    let socket = bind(port).await.with_context(|| format!("cannot listen on port {port}"))?;
    let address = socket.local_addr()?;
    info!(listener = name, port = address.port(), "{name} is listening on port {}", address.port());
    Ok(Listener { name, socket })
}

/// Binds to IPv6 and IPv4, or to IPv4 alone if the machine has no IPv6.
async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(e) if e.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
        bound => bound,
    }
}

/// Registers the task that serves. After `soft` it keeps accepting for `delay` and then closes the listener.
/// Set `behind_proxy` if a proxy makes the connections.
pub fn serve(listener: Listener, routes: Router, delay: Duration, behind_proxy: bool, lifecycle: &mut Lifecycle) {
    let (closing, hard) = (CancellationToken::new(), lifecycle.hard.clone());
    let server = Server { routes, limits_peers: !behind_proxy, closing, hard };
    lifecycle.spawn(listener.name, accept(listener, server, delay, lifecycle.soft.clone()));
}

async fn accept(Listener { name, socket }: Listener, server: Server, delay: Duration, soft: CancellationToken) -> anyhow::Result<()> {
    let mut connections = Connections::default();
    let mut logged: Option<Instant> = None;
    let mut closed = pin!(async {
        soft.cancelled().await;
        sleep(delay).await;
    });
    loop {
        tokio::select! {
            () = &mut closed => break,
            Some(_) = connections.ended() => {}
            accepted = socket.accept(), if connections.open.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, peer)) => connections.begin(stream, peer, &server),
                Err(e) => {
                    // Mostly because there are no free file descriptors. Without the pause this loop would spin.
                    if logged.is_none_or(|at| at.elapsed() > ACCEPT_ERROR_LOG_INTERVAL) {
                        logged = Some(Instant::now());
                        warn!(error = %e, "cannot accept connections to {name}, which wait: {e}");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    // Accepts every connection that has already been made. Without `unconstrained`, tokio's budget would end this after
    // a hundred.
    while connections.open.len() < MAX_CONNECTIONS
        && let Some(Ok((stream, peer))) = unconstrained(socket.accept()).now_or_never()
    {
        connections.begin(stream, peer, &server);
    }
    drop(socket);
    server.closing.cancel();
    let mut cut = 0;
    while let Some(ended) = connections.ended().await {
        cut += usize::from(ended);
    }
    anyhow::ensure!(cut == 0, "{cut} request(s) on {name} were cut off at the end of the drain's time limit");
    Ok(())
}

/// Serves one connection. Returns whether a request or its response was cut off.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    routes: Router,
    progress: Arc<Progress>,
    closing: CancellationToken,
    hard: CancellationToken,
) -> bool {
    // Small responses must not wait for the client's acknowledgement of the previous one.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (routes, progress) = (routes.clone(), progress.clone());
        let request = request.map(|body| LingeringBody::new(body, progress.clone()));
        async move {
            let mut response = routes.oneshot(request).await?;
            let streams = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
            if streams {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, streams, progress)))
        }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's time limit would end idle connections too. `progress` distinguishes the two.
            .header_read_timeout(None)
            .max_buf_size(READ_BUFFER_SIZE)
            .serve_connection(TokioIo::new(TrackedStream::new(stream, progress.clone())), service)
    );
    tokio::select! {
        biased;
        // A client that disconnects or violates the protocol is not an error of this service.
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
    // A request may already be in the socket, and closing now would reset the connection.
    if timeout(ARRIVED_REQUEST_TIMEOUT, connection.as_mut()).await.is_ok() {
        return false;
    }
    connection.as_mut().graceful_shutdown();
    // Idle connections close at once. The others have an incomplete first head, or the last bytes of a response.
    if progress.is_idle() && (timeout(FLUSH_TIMEOUT, connection.as_mut()).await.is_ok() || progress.is_idle()) {
        return false;
    }
    tokio::select! {
        _ = connection => return false,
        () = progress.late() => {}
        () = hard.cancelled() => {}
    }
    // A request that was not complete does not count as cut off.
    progress.stage() != Stage::Receiving
}
