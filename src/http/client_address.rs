//! The client address of a request.

use std::net::{IpAddr, SocketAddr};

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;

pub(super) static FORWARDED_FOR: &str = "x-forwarded-for";

/// The other end of the connection. The server adds it to each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The client's address. `observe` adds it to each request.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The connection's other end. Behind `trusted_proxies` proxies it is the address that called the outermost of
    /// them. Entries of `X-Forwarded-For` further to the left are ignored, because the client may have written them
    /// itself.
    pub fn of(headers: &HeaderMap, peer: IpAddr, trusted_proxies: usize) -> Self {
        let peer = peer.to_canonical();
        if trusted_proxies == 0 {
            return Self(peer);
        }
        // As bytes, because a client's own entries may not be valid text.
        let hops = headers.get_all(FORWARDED_FOR).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let mut hops: Vec<_> = hops.map(|hop| str::from_utf8(hop).ok().and_then(|hop| address(hop.trim()))).collect();
        hops.push(Some(peer));
        Self(hops[(hops.len() - 1).saturating_sub(trusted_proxies)].unwrap_or(peer))
    }

    /// The key that limits count by. For IPv6 it is the first 64 bits, because a client can choose the rest freely.
    pub fn bucket(self) -> String {
        match self.0 {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::")
            }
        }
    }
}

/// Parses an address as proxies write it. Some add a port.
fn address(hop: &str) -> Option<IpAddr> {
    let ip = hop.parse().or_else(|_| hop.parse().map(|socket: SocketAddr| socket.ip()));
    ip.or_else(|_| hop.trim_start_matches('[').trim_end_matches(']').parse()).ok().map(|ip: IpAddr| ip.to_canonical())
}
