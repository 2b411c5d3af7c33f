//! A faulty network: a TCP proxy that can delay, cut, stall and heal its connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Everything arrives this much later.
    Slow(Duration),
    /// Connections are accepted and stay open, but transmit nothing.
    Stalled,
    /// Connections are closed and refused.
    Cut,
}

/// The state of the network, and how many times the resource has moved to another machine.
type NetworkState = (State, usize);

/// Called with each piece that a client sends.
type Watch = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Forwards connections to an address. Its own port never changes.
pub struct Proxy {
    pub address: SocketAddr,
    target: Arc<Mutex<String>>,
    state: Arc<watch::Sender<NetworkState>>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn to(target: String) -> Self {
        Self::keeping(("127.0.0.1", super::free_port()), target).await
    }

    /// As if the target were on another machine: the same port of another address.
    pub async fn another_machine(target: String) -> Self {
        let port = target.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self::keeping(("127.0.0.2", port), target).await
    }

    /// Listens on IPv6. Returns `None` if this machine has no IPv6.
    pub async fn on_ipv6(target: String) -> Option<Self> {
        let has_any = std::net::TcpListener::bind("[::1]:0").is_ok();
        if has_any { Some(Self::keeping(("::1", super::free_port()), target).await) } else { None }
    }

    async fn keeping(address: (&str, u16), target: String) -> Self {
        let sent = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let keep = sent.clone();
        let proxy = Self::at(address, target, move |piece| keep.lock().expect("no panic while locked").push(piece.to_vec())).await;
        Self { sent, ..proxy }
    }

    /// Passes each piece that clients send to `watch` instead of storing it.
    pub async fn watched(target: String, watch: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self::at(("127.0.0.1", super::free_port()), target, watch).await
    }

    /// Listens at this address, and again after each cut.
    async fn at(address: (&str, u16), target: String, watch: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, state) = watch::channel((State::Open, 0));
        let (target, connections) = (Arc::new(Mutex::new(target)), Arc::default());
        tokio::spawn(forward(listener, address, target.clone(), state, Arc::new(watch), Arc::clone(&connections)));
        Self { address, target, state: Arc::new(sender), sent: Arc::default(), connections }
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The pieces that clients have sent so far. A client that waits for a response between two commands sends two pieces.
    pub fn sent(&self) -> Vec<String> {
        let sent = self.sent.lock().expect("no panic while locked");
        sent.iter().map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
    }

    /// Delays everything in both directions.
    pub fn delay(&self, by: Duration) {
        self.set(State::Slow(by));
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.set(State::Cut);
    }

    /// Transmits nothing any more, as a network does that drops packets.
    pub fn stall(&self) {
        self.set(State::Stalled);
    }

    pub fn heal(&self) {
        self.set(State::Open);
    }

    /// As if the resource had moved to another machine and the old one were off: new connections work. Existing ones transmit
    /// nothing any more, but are not closed.
    pub fn fail_over(&self) {
        self.state.send_modify(|(state, moves)| (*state, *moves) = (State::Open, *moves + 1));
    }

    /// Connects new clients to another target. Existing connections stay with the old one.
    pub fn turn_to(&self, target: String) {
        *self.target.lock().expect("no panic while locked") = target;
    }

    fn set(&self, new: State) {
        self.state.send_modify(|(state, _)| *state = new);
    }
}

async fn forward(
    listener: TcpListener,
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    mut state: watch::Receiver<NetworkState>,
    watch: Watch,
    connections: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    loop {
        if state.borrow_and_update().0 == State::Cut {
            listener = None;
            if state.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listening = listener.get_or_insert_with(|| bind(address));
        tokio::select! {
            accepted = listening.accept() => {
                if let Ok((stream, _)) = accepted {
                    let target = target.lock().expect("no panic while locked").clone();
                    let (passing, connections) = (pass(stream, target, state.clone(), watch.clone()), connections.clone());
                    tokio::spawn(async move {
                        connections.fetch_add(1, Ordering::Relaxed);
                        passing.await;
                        connections.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

fn bind(address: SocketAddr) -> TcpListener {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).and_then(|()| socket.listen(128)).expect("the port is still ours")
}

async fn pass(from: TcpStream, target: String, mut state: watch::Receiver<NetworkState>, watch: Watch) {
    let Ok(to) = TcpStream::connect(&target).await else { return };
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    tokio::select! {
        () = pump(from_read, to_write, state.clone(), &*watch) => {}
        () = pump(to_read, from_write, state.clone(), |_| {}) => {}
        _ = state.wait_for(|(state, _)| *state == State::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<NetworkState>,
    see: impl Fn(&[u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    let here = state.borrow().1;
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        see(&buffer[..count]);
        let delay = match state.borrow().0 {
            State::Slow(by) => by,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(delay).await;
        let passes = |(state, moves): &NetworkState| *state != State::Stalled && *moves == here;
        if state.wait_for(passes).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
