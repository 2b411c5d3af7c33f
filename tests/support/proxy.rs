//! A network that breaks: a TCP proxy that can be cut and healed.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// Forwards to an address for as long as it is not cut. It is reached at the same port all its life.
pub struct Proxy {
    pub address: SocketAddr,
    open: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (open, state) = watch::channel(true);
        tokio::spawn(forward(listener, address, target, state));
        Self { address, open: Arc::new(open) }
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn heal(&self) {
        self.open.send_replace(true);
    }
}

async fn forward(listener: TcpListener, address: SocketAddr, target: String, mut state: watch::Receiver<bool>) {
    let mut listener = Some(listener);
    loop {
        if *state.borrow_and_update() {
            let listening = match listener.take() {
                Some(listening) => listening,
                None => bind(address),
            };
            tokio::select! {
                accepted = listening.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(pass(stream, target.clone(), state.clone()));
                    }
                    listener = Some(listening);
                }
                changed = state.changed() => if changed.is_err() { return },
            }
        } else if state.changed().await.is_err() {
            return;
        }
    }
}

fn bind(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(address).and_then(|()| socket.listen(128)).expect("the port is still ours")
}

async fn pass(mut from: TcpStream, target: String, mut state: watch::Receiver<bool>) {
    let Ok(mut to) = TcpStream::connect(&target).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut from, &mut to) => {}
        _ = state.wait_for(|open| !open) => {}
    }
}
