//! The serving loop: accepts connections until the drain, and then lets the requests in flight finish.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
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
use tokio::task::coop::unconstrained;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::client_address::Peer;
use super::connection::{LingeringBody, Progress, Stage, TrackedBody, TrackedStream};
use crate::lifecycle::Lifecycle;

/// How much of a head is read: more than it may have, so that a larger one is 431 and no broken connection.
const READ_BUFFER_SIZE: usize = 64 * 1024;

/// How often it is told that connections cannot be accepted.
const ACCEPT_ERROR_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many connections a listener holds at a time. The longest idle ones make room for those that come after; while none
/// is idle they wait in the system's queue.
const MAX_CONNECTIONS: usize = 4096;

/// How many of them one address may hold.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 1024;

/// How many make room at a time: to look for them takes longer than to close them.
const MAX_CLOSED_FOR_ROOM: usize = 64;

/// What has come in when a listener closes is read within this time.
const ARRIVED_REQUEST_TIMEOUT: Duration = Duration::from_millis(5);

/// After an answer's end its last bytes may still be on the way to the client.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// The connections of a listener.
#[derive(Default)]
struct Connections {
    running: JoinSet<bool>,
    open: HashMap<task::Id, Open>,
    /// How many each address holds, without those that make room.
    of_one: HashMap<IpAddr, usize>,
    /// How many make room, and have not ended yet.
    leaving: usize,
}

struct Open {
    peer: IpAddr,
    progress: Arc<Progress>,
    closing: CancellationToken,
    leaves: bool,
}

impl Connections {
    /// Serves a connection, once there is room for it.
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

    /// Closes the connections that have been idle for longest, of one address or of all; says how many.
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

    /// Waits for the end of one; says whether it was cut off, or nothing if there is none.
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

/// Counts one connection less of an address.
fn leave(of_one: &mut HashMap<IpAddr, usize>, peer: IpAddr) {
    if let Entry::Occupied(mut held) = of_one.entry(peer) {
        *held.get_mut() -= 1;
        if *held.get() == 0 {
            held.remove();
        }
    }
}

/// What all connections of a listener share.
struct Server {
    routes: Router,
    /// Whether an address's number of connections is limited: not behind a proxy, whose address is everybody's.
    limits_peers: bool,
    closing: CancellationToken,
    hard: CancellationToken,
}

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
/// `behind_proxy` says that the connections are those of a proxy.
pub fn serve(listener: Listener, routes: Router, delay: Duration, behind_proxy: bool, lifecycle: &mut Lifecycle) {
    let (closing, hard) = (CancellationToken::new(), lifecycle.hard.clone());
    let server = Server { routes, limits_peers: !behind_proxy, closing, hard };
    lifecycle.spawn(listener.name, accept(listener, server, delay, lifecycle.soft.clone()));
}

async fn accept(Listener { name, socket }: Listener, server: Server, delay: Duration, soft: CancellationToken) -> anyhow::Result<()> {
    let mut connections = Connections::default();
    let mut told: Option<Instant> = None;
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
                    // Out of file descriptors, most often: accepting again at once would spin, and telling it each time too.
                    if told.is_none_or(|at| at.elapsed() > ACCEPT_ERROR_LOG_INTERVAL) {
                        told = Some(Instant::now());
                        warn!(error = %e, "connections to {name} wait, they cannot be accepted: {e}");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    // Who has connected by now is answered too, all of them: tokio's budget would end this after a hundred.
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
    anyhow::ensure!(cut == 0, "{cut} request(s) were still being answered on {name} when the drain's time was over, and were cut off");
    Ok(())
}

/// Serves one connection; says whether it was cut off in mid-answer.
async fn connection(
    stream: TcpStream,
    peer: Peer,
    routes: Router,
    progress: Arc<Progress>,
    closing: CancellationToken,
    hard: CancellationToken,
) -> bool {
    // Small answers must not wait for the client's acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (routes, progress) = (routes.clone(), progress.clone());
        let request = request.map(|body| LingeringBody::new(body, progress.clone()));
        async move { routes.oneshot(request).await.map(|response| response.map(|body| TrackedBody::new(body, progress))) }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // It would end idle connections too; `progress` tells the two apart.
            .header_read_timeout(None)
            .max_buf_size(READ_BUFFER_SIZE)
            .serve_connection(TokioIo::new(TrackedStream::new(stream, progress.clone())), service)
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
    if timeout(ARRIVED_REQUEST_TIMEOUT, connection.as_mut()).await.is_ok() {
        return false;
    }
    connection.as_mut().graceful_shutdown();
    // Idle connections close at once; what is left is a half-sent first head, whose rest may come, or an answer's last bytes.
    if progress.is_idle() && (timeout(FLUSH_TIMEOUT, connection.as_mut()).await.is_ok() || progress.is_idle()) {
        return false;
    }
    tokio::select! {
        _ = connection => return false,
        () = progress.late() => {}
        () = hard.cancelled() => {}
    }
    // A request that was not all there has not been cut off.
    progress.stage() != Stage::Receiving
}
