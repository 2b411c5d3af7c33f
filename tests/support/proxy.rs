//! A network that breaks: a TCP proxy that can be cut, stalled and healed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Connections are taken and kept, and nothing goes through.
    Stalled,
    /// Connections are broken and refused.
    Cut,
}

/// Forwards to an address for as long as nobody interferes. It is reached at the same port all its life.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    pub async fn to(target: String) -> Self {
        // It must be free again after each cut.
        let listener = TcpListener::bind(("127.0.0.1", super::free_port())).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, state) = watch::channel(State::Open);
        let sent = Arc::default();
        tokio::spawn(forward(listener, address, target, state, Arc::clone(&sent)));
        Self { address, state: Arc::new(sender), sent }
    }

    /// What clients have sent so far, as it came in: who waits for an answer before the next question sends two pieces.
    pub fn sent(&self) -> Vec<String> {
        let sent = self.sent.lock().expect("no panic while locked");
        sent.iter().map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Lets nothing through any more, as a network does that drops packets.
    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    pub fn heal(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn forward(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut state: watch::Receiver<State>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
) {
    let mut listener = Some(listener);
    loop {
        if *state.borrow_and_update() == State::Cut {
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
                    tokio::spawn(pass(stream, target.clone(), state.clone(), sent.clone()));
                }
            }
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

fn bind(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).and_then(|()| socket.listen(128)).expect("the port is still ours")
}

async fn pass(from: TcpStream, target: String, mut state: watch::Receiver<State>, sent: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(to) = TcpStream::connect(&target).await else { return };
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    tokio::select! {
        () = pump(from_read, to_write, state.clone(), |piece| sent.lock().expect("no panic while locked").push(piece.to_vec())) => {}
        () = pump(to_read, from_write, state.clone(), |_| {}) => {}
        _ = state.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>, see: impl Fn(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        see(&buffer[..count]);
        if state.wait_for(|state| *state != State::Stalled).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
