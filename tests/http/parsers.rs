//! The parsers of client input, tested one by one: no input makes one panic, and valid input is parsed.

use std::time::Duration;

use app::auth::cookie::Cookie;
use app::auth::guard::bearer;
use app::config::{PublicUrl, Setting};
use app::http::ClientAddress;
use app::http::idempotency::IdempotencyKey;
use app::http::paging::Page;
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, HeaderValue, Request};
use proptest::prelude::{any, proptest};
use serde_json::json;

fn headers(name: &'static str, values: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
        headers.append(name, value);
    }
    headers
}

fn forwarded(values: &[&str], trusted: usize) -> String {
    let values: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
    ClientAddress::of(&headers("x-forwarded-for", &values), [10, 0, 0, 1].into(), trusted).0.to_string()
}

#[test]
fn client_address_comes_from_trusted_proxies() {
    assert_eq!(forwarded(&["1.1.1.1"], 0), "10.0.0.1");
    assert_eq!(forwarded(&["6.6.6.6, 1.1.1.1"], 1), "1.1.1.1");
    assert_eq!(forwarded(&["6.6.6.6", "1.1.1.1, 2.2.2.2"], 2), "1.1.1.1");
    assert_eq!(forwarded(&["1.1.1.1"], 3), "1.1.1.1", "with fewer addresses than proxies, the outermost counts");
    assert_eq!(forwarded(&[], 1), "10.0.0.1");
    assert_eq!(forwarded(&["unknown"], 1), "10.0.0.1");
    assert_eq!(forwarded(&["[2001:db8::1]:443"], 1), "2001:db8::1");
    assert_eq!(forwarded(&["::ffff:1.1.1.1"], 1), "1.1.1.1");
}

#[test]
fn ipv6_network_counts_as_one_client() {
    let bucket = |text: &str| ClientAddress(text.parse().unwrap()).bucket();
    assert_eq!(bucket("2001:db8::1"), bucket("2001:db8::ffff:2"));
    assert_ne!(bucket("2001:db8::1"), bucket("2001:db8:0:1::1"));
    assert_ne!(bucket("1.2.3.4"), bucket("1.2.3.5"));
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    Cookie::new(&PublicUrl::parse("http://localhost").unwrap(), "__Host-id", "id").find(headers)
}

fn page(cursor: &str) -> Page {
    serde_json::from_value(json!({ "cursor": cursor })).unwrap()
}

fn key(value: &[u8]) -> bool {
    let request = Request::builder().body(()).unwrap();
    let mut parts = request.into_parts().0;
    parts.headers = headers("idempotency-key", &[value]);
    futures_util::FutureExt::now_or_never(IdempotencyKey::from_request_parts(&mut parts, &())).unwrap().is_ok()
}

proptest! {
    #[test]
    fn forwarded_header_parser_never_panics(value in any::<Vec<u8>>(), trusted in 0usize..5) {
        ClientAddress::of(&headers("x-forwarded-for", &[&value]), [10, 0, 0, 1].into(), trusted);
    }

    #[test]
    fn forwarded_address_parses_with_or_without_port(address in any::<std::net::Ipv6Addr>(), port: u16) {
        let address = std::net::IpAddr::from(address).to_canonical();
        assert_eq!(forwarded(&[&format!("6.6.6.6, {address}")], 1), address.to_string());
        assert_eq!(forwarded(&[&std::net::SocketAddr::new(address, port).to_string()], 1), address.to_string());
    }

    #[test]
    fn cursor_parser_never_panics(cursor in "\\PC{0,200}") {
        let _ = page(&cursor).after::<(jiff::Timestamp, uuid::Uuid)>();
    }

    #[test]
    fn idempotency_key_parser_never_panics(value in any::<Vec<u8>>()) {
        key(&value);
    }

    #[test]
    fn idempotency_key_is_short_visible_ascii(good in "[!-~]{1,255}", bad in "[ -~]*[ \u{e9}][ -~]*", long in "[!-~]{256,300}") {
        assert!(key(good.as_bytes()));
        assert!(!key(bad.as_bytes()));
        assert!(!key(long.as_bytes()));
    }

    #[test]
    fn cookie_parser_never_panics(value in any::<Vec<u8>>()) {
        session_id(&headers("cookie", &[&value]));
    }

    #[test]
    fn cookie_is_found_among_others(value in "[A-Za-z0-9_-]{1,50}", before in "[a-hj-z]{1,9}", after in "[a-hj-z]{1,9}") {
        let text = format!("{before}=x; id={value};{after}=id=y");
        assert_eq!(session_id(&headers("cookie", &[text.as_bytes()])), Some(&*value));
        assert_eq!(session_id(&headers("cookie", &[b"a=b", text.as_bytes()])), Some(&*value));
        // Another program of this host may have set any bytes.
        assert_eq!(session_id(&headers("cookie", &[&[b"a=\xff\xfe; ", text.as_bytes()].concat()])), Some(&*value));
    }

    #[test]
    fn authorization_parser_never_panics(value in any::<Vec<u8>>()) {
        bearer(&headers("authorization", &[&value]));
    }

    #[test]
    fn bearer_scheme_ignores_case(token in "[!-~]{1,80}", scheme in "[Bb][Ee][Aa][Rr][Ee][Rr]") {
        assert_eq!(bearer(&headers("authorization", &[format!("{scheme} {token}").as_bytes()])), Some(&*token));
        assert_eq!(bearer(&headers("authorization", &[format!("Basic {token}").as_bytes()])), None);
    }

    #[test]
    fn duration_parser_never_panics(text in "\\PC{0,40}") {
        let _ = Duration::parse(&text);
    }

    #[test]
    fn duration_is_number_and_unit(number in 0u32..36_000) {
        for (unit, millis) in [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)] {
            assert_eq!(Duration::parse(&format!("{number}{unit}")), Ok(Duration::from_millis(u64::from(number) * millis)));
        }
    }
}
