//! Where a request comes from.

use std::net::{IpAddr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use super::problem::Problem;

static FORWARDED_FOR: &str = "x-forwarded-for";

/// The other end of the connection, which the serving loop adds to each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The client's address, which the guard adds to each request.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The connection's other end, or what the outermost of so many trusted proxies was called from. What stands further
    /// to the left in `X-Forwarded-For` was written by the client itself, and counts for nothing.
    pub fn of(headers: &HeaderMap, peer: IpAddr, trusted_proxies: usize) -> Self {
        let peer = peer.to_canonical();
        let hops = headers.get_all(FORWARDED_FOR).iter().flat_map(|value| value.to_str().unwrap_or("").split(','));
        let mut hops: Vec<_> = hops.map(|hop| address(hop.trim())).collect();
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

impl<S: Send + Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().copied().ok_or_else(|| Problem::internal(anyhow::anyhow!("the guard does not stand before this route")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(forwarded: &[&str], trusted: usize) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().expect("a header"));
        }
        ClientAddress::of(&headers, [10, 0, 0, 1].into(), trusted).0.to_string()
    }

    #[test]
    fn only_what_trusted_proxies_wrote_counts() {
        assert_eq!(of(&["1.1.1.1"], 0), "10.0.0.1");
        assert_eq!(of(&["6.6.6.6, 1.1.1.1"], 1), "1.1.1.1");
        assert_eq!(of(&["6.6.6.6", "1.1.1.1, 2.2.2.2"], 2), "1.1.1.1");
        assert_eq!(of(&["1.1.1.1"], 3), "1.1.1.1", "fewer than said: the outermost");
        assert_eq!(of(&[], 1), "10.0.0.1");
        assert_eq!(of(&["unknown"], 1), "10.0.0.1");
        assert_eq!(of(&["[2001:db8::1]:443"], 1), "2001:db8::1");
        assert_eq!(of(&["::ffff:1.1.1.1"], 1), "1.1.1.1");
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let bucket = |text: &str| ClientAddress(text.parse().expect("an address")).bucket();
        assert_eq!(bucket("2001:db8::1"), bucket("2001:db8::ffff:2"));
        assert_ne!(bucket("2001:db8::1"), bucket("2001:db8:0:1::1"));
        assert_ne!(bucket("1.2.3.4"), bucket("1.2.3.5"));
    }

    proptest::proptest! {
        #[test]
        fn no_header_breaks_it(forwarded in "\\PC{0,200}", trusted in 0usize..5) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = axum::http::HeaderValue::from_bytes(forwarded.as_bytes()) {
                headers.insert(FORWARDED_FOR, value);
            }
            ClientAddress::of(&headers, [10, 0, 0, 1].into(), trusted);
        }
    }
}
