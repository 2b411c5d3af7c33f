//! Where a request comes from.

use std::net::{IpAddr, SocketAddr};

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;

pub(super) static FORWARDED_FOR: &str = "x-forwarded-for";

/// The other end of the connection, which the serving loop adds to each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The client's address, which `observe` adds to each request.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The connection's other end, or what the outermost of so many trusted proxies was called from. What stands further
    /// to the left in `X-Forwarded-For` was written by the client itself, and counts for nothing.
    pub fn of(headers: &HeaderMap, peer: IpAddr, trusted_proxies: usize) -> Self {
        let peer = peer.to_canonical();
        if trusted_proxies == 0 {
            return Self(peer);
        }
        // As bytes: a client's own entries may be no text at all.
        let hops = headers.get_all(FORWARDED_FOR).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let mut hops: Vec<_> = hops.map(|hop| str::from_utf8(hop).ok().and_then(|hop| address(hop.trim()))).collect();
        hops.push(Some(peer));
        Self(hops[(hops.len() - 1).saturating_sub(trusted_proxies)].unwrap_or(peer))
    }

    /// What limits count by: the address, but of IPv6 its first 64 bits, since all behind them is one client's to choose.
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

/// An address as proxies write it, some with a port.
fn address(hop: &str) -> Option<IpAddr> {
    let ip = hop.parse().or_else(|_| hop.parse().map(|socket: SocketAddr| socket.ip()));
    ip.or_else(|_| hop.trim_start_matches('[').trim_end_matches(']').parse()).ok().map(|ip: IpAddr| ip.to_canonical())
}
