//! The client for outgoing HTTP, with real servers that are slow, too large, private or gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use app::release::{COMMIT, Release};
use app::resources::http_client::{Error, HttpClient, SystemResolver};
use app::resources::public_address::is_public;
use app::resources::token_file::TokenFile;
use app::telemetry::metrics::Metrics;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use axum::routing::any;
use axum::{Router, response::IntoResponse};
use futures_util::stream;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const MIB: usize = 1024 * 1024;

fn metrics() -> Metrics {
    Metrics::new(&Release { service: "app".to_owned(), commit: COMMIT, release: None, process: "web" })
}

pub fn configured() -> HttpClient {
    HttpClient::for_configured_urls(metrics(), || 0).unwrap()
}

fn of_users(names: impl Resolve + 'static) -> HttpClient {
    HttpClient::for_urls_of_users(metrics(), || 0, names).unwrap()
}

fn request(method: Method, url: impl AsRef<str>) -> Request<Bytes> {
    Request::builder().method(method).uri(url.as_ref()).body("marker-body".into()).unwrap()
}

async fn get(client: &HttpClient, url: impl AsRef<str>) -> Result<Response<Bytes>, Error> {
    client.send(request(Method::GET, url)).await
}

/// A server that counts its requests.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` gets the number of the request, from 1.
    async fn start<R: IntoResponse + 'static>(answer: impl Fn(usize, Uri, HeaderMap) -> R + Clone + Send + Sync + 'static) -> Self {
        let requests = Arc::<AtomicUsize>::default();
        let counted = requests.clone();
        let answer = async move |uri: Uri, headers: HeaderMap| answer(counted.fetch_add(1, Ordering::Relaxed) + 1, uri, headers);
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = ([127, 0, 0, 1], listener.local_addr().unwrap().port()).into();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
        Self { address, requests }
    }

    /// Handles connections below HTTP.
    async fn raw<F: Future<Output = std::io::Result<()>> + Send + 'static>(
        handle: impl Fn(usize, TcpStream) -> F + Clone + Send + 'static,
    ) -> Self {
        let requests = Arc::<AtomicUsize>::default();
        let counted = requests.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (number, handle) = (counted.fetch_add(1, Ordering::Relaxed) + 1, handle.clone());
                tokio::spawn(async move {
                    let _ = connection.read(&mut [0; 4096]).await;
                    handle(number, connection).await
                });
            }
        });
        Self { address, requests }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn call_ends_after_ten_seconds() {
    let silent = Server::raw(|_, connection: TcpStream| async move {
        std::future::pending::<()>().await;
        drop(connection);
        Ok(())
    });
    let drips = Server::raw(|_, mut connection: TcpStream| async move {
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await?;
        loop {
            connection.write_all(b"a").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    // Each redirect takes its time, too.
    let redirects = Server::raw(|_, mut connection: TcpStream| async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        connection.write_all(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await
    });
    let (silent, drips, redirects) = (silent.await, drips.await, redirects.await);
    let client = configured();
    let started = Instant::now();
    let calls = [silent.url(), drips.url(), redirects.url()].map(async |url| {
        let result = get(&client, url).await;
        assert!(matches!(result, Err(Error::Timeout)), "{result:?}");
    });
    futures_util::future::join_all(calls).await;
    assert!((9..13).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!((silent.requests(), drips.requests(), redirects.requests()), (1, 1, 3), "a call that timed out is not retried");
}

#[tokio::test]
async fn connecting_takes_two_seconds_at_most() {
    // A listener whose queue is full drops what follows.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(connection);
    }
    let started = Instant::now();
    let result = configured().send(request(Method::POST, format!("http://{address}/"))).await;
    assert!(matches!(result, Err(Error::NoResponse { .. })), "{result:?}");
    assert!((1500..4000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn responses_over_a_mebibyte_are_refused() {
    let client = configured();
    let largest = Server::start(|_, _, _| vec![b'a'; MIB]).await;
    assert_eq!(get(&client, largest.url()).await.unwrap().body().len(), MIB);
    // Its body never comes.
    let announced = Server::raw(|_, mut connection: TcpStream| async move {
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2097152\r\n\r\n").await?;
        std::future::pending().await
    });
    let without_length = Server::start(|_, _, _| Body::from_stream(stream::iter((0..2048).map(|_| Ok::<_, Error>(vec![b'a'; 1024])))));
    let endless = Server::start(|_, _, _| Body::from_stream(stream::repeat_with(|| Ok::<_, Error>(vec![b'a'; 1024]))));
    let started = Instant::now();
    for server in [announced.await, without_length.await, endless.await] {
        let result = get(&client, server.url()).await;
        assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");
        assert_eq!(server.requests(), 1);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn idempotent_requests_are_retried_once() {
    let client = configured();
    for (method, status, requests) in [
        (Method::GET, StatusCode::BAD_GATEWAY, 2),
        (Method::PUT, StatusCode::SERVICE_UNAVAILABLE, 2),
        (Method::DELETE, StatusCode::GATEWAY_TIMEOUT, 2),
        (Method::GET, StatusCode::INTERNAL_SERVER_ERROR, 1),
        (Method::GET, StatusCode::TOO_MANY_REQUESTS, 1),
        (Method::POST, StatusCode::SERVICE_UNAVAILABLE, 1),
        (Method::PATCH, StatusCode::SERVICE_UNAVAILABLE, 1),
    ] {
        let server = Server::start(move |_, _, _| status).await;
        let response = client.send(request(method.clone(), server.url())).await.unwrap();
        assert_eq!((response.status(), server.requests()), (status, requests), "{method}");
    }
    let recovers = Server::raw(|number, mut connection: TcpStream| async move {
        if number == 1 { Ok(()) } else { connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await }
    });
    let recovers = recovers.await;
    assert_eq!(get(&client, recovers.url()).await.unwrap().body(), "fine");
    let closes = Server::raw(|_, _| async move { Ok(()) }).await;
    assert!(matches!(client.send(request(Method::POST, closes.url())).await, Err(Error::NoResponse { .. })));
    assert_eq!(closes.requests(), 1);
}

#[tokio::test]
async fn pause_before_a_retry_is_random() {
    let server = Server::start(|_, _, _| StatusCode::SERVICE_UNAVAILABLE).await;
    for (random, pause) in [(u32::MIN, 0..250), (u32::MAX / 2 + 1, 250..400), (u32::MAX, 500..5000)] {
        let client = match random {
            u32::MIN => configured(),
            u32::MAX => HttpClient::for_configured_urls(metrics(), || u32::MAX).unwrap(),
            _ => HttpClient::for_configured_urls(metrics(), || u32::MAX / 2 + 1).unwrap(),
        };
        get(&client, server.url()).await.unwrap();
        let started = Instant::now();
        get(&client, server.url()).await.unwrap();
        assert!(pause.contains(&started.elapsed().as_millis()), "{random}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn redirects_stay_on_their_server() {
    let client = configured();
    let other = Server::start(|_, _, _| "other").await;
    let port = other.address.port();
    let to = |location: String| {
        Server::start(move |number, _, headers| match number {
            1 => (StatusCode::TEMPORARY_REDIRECT, [("location", location.clone())], "").into_response(),
            // A referrer would contain the query of the first URL.
            _ if headers.contains_key("referer") => "referrer".into_response(),
            _ => "same".into_response(),
        })
    };
    let near = to("/elsewhere?a=b".to_owned()).await;
    assert_eq!(get(&client, near.url()).await.unwrap().body(), "same");
    for location in [format!("http://localhost:{port}/"), format!("http://127.0.0.1:{port}/"), "ftp://127.0.0.1/".to_owned()] {
        let server = to(location.clone()).await;
        let url = format!("http://localhost:{}/", server.address.port());
        let result = get(&client, url).await;
        assert!(matches!(result, Err(Error::Redirect)), "{location}: {result:?}");
        assert_eq!((server.requests(), other.requests()), (1, 0), "{location}");
    }
    let server = Server::start(|_, _, _| (StatusCode::FOUND, [("location", "/again")], "")).await;
    assert!(matches!(get(&client, server.url()).await, Err(Error::Redirect)));
    assert_eq!(server.requests(), 4, "it follows three redirects");
}

#[tokio::test]
async fn urls_of_users_reach_no_private_server() {
    let server = Server::start(|_, _, _| "private").await;
    let port = server.address.port();
    assert_eq!(get(&configured(), server.url()).await.unwrap().body(), "private");
    let client = of_users(SystemResolver);
    let localhost = get(&configured(), format!("http://localhost:{port}/")).await.unwrap();
    assert_eq!(localhost.body(), "private");
    let reached = server.requests();
    for host in [
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "100.64.0.1",
        "user:password@127.0.0.1",
        "example.com@127.0.0.1",
    ] {
        let result = get(&client, format!("http://{host}:{port}/")).await;
        assert!(matches!(result, Err(Error::NotPublic)), "{host}: {result:?}");
    }
    assert_eq!(server.requests(), reached);
}

/// Resolves each name to the addresses of a list, one after the other. Each is an answer of its own.
#[derive(Clone)]
struct Rebinding(Arc<Mutex<Vec<Vec<&'static str>>>>);

impl Rebinding {
    fn to(answers: &[&[&'static str]]) -> Self {
        Self(Arc::new(Mutex::new(answers.iter().rev().map(|answer| answer.to_vec()).collect())))
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Resolve for Rebinding {
    fn resolve(&self, _: Name) -> Resolving {
        let answer = self.0.lock().unwrap().pop().unwrap_or_default();
        let addresses = answer.into_iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0));
        Box::pin(async move { Ok(Box::new(addresses) as Addrs) })
    }
}

/// Nobody has this public address. The former 6bone returned it.
const NOBODY: &str = "3ffe::1";

#[tokio::test]
async fn name_is_resolved_once_for_check_and_connection() {
    let server = Server::start(|_, _, _| "private").await;
    let url = format!("http://rebinding.example.com:{}/", server.address.port());
    let names = Rebinding::to(&[&[NOBODY], &["127.0.0.1"]]);
    let client = of_users(names.clone());
    let first = client.send(request(Method::POST, &url)).await;
    assert!(matches!(first, Err(Error::NoResponse { .. })), "{first:?}");
    assert_eq!(names.left(), 1);
    let second = client.send(request(Method::POST, &url)).await;
    assert!(matches!(second, Err(Error::NotPublic)), "{second:?}");
    // A private address among public ones is not used.
    let mixed = of_users(Rebinding::to(&[&["127.0.0.1", "::ffff:127.0.0.1", NOBODY, "::1"]]));
    let mixed = mixed.send(request(Method::POST, &url)).await;
    assert!(matches!(mixed, Err(Error::NoResponse { .. })), "{mixed:?}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn special_networks_are_not_public() {
    for (expected, addresses) in [
        (true, "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17"),
        (true, "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255"),
        (true, "198.20.0.0 223.255.255.255 2000::1 2001:200::1 2001:4860:4860::8888 2001:db9::1 2003::1 2606:4700::1111 3ffe::1"),
        (false, "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.0 127.255.255.255 168.63.129.16"),
        (false, "169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.192 192.0.2.1 192.88.99.1"),
        (false, "192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.0"),
        (false, "255.255.255.255 :: ::1 ::ffff:1.1.1.1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::1.1.1.1 64:ff9b:1::10.0.0.1 100::1"),
        (false, "1fff:ffff:: 2001::1 2001:10::1 2001:1ff:ffff:: 2001:db8::1 2002:7f00:1:: 3fff::1 4000:: 5f00::1 fc00::1 fd00:ec2::254"),
        (false, "fe80::1 febf::1 fec0::1 ff02::1 ffff::"),
    ] {
        for address in addresses.split(' ') {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }
}

#[tokio::test]
async fn errors_contain_no_secrets() {
    let (client, secret, password) = (configured(), "marker-query", "marker-password");
    let large = Server::start(|_, _, _| vec![b'm'; 2 * MIB]).await;
    let location = format!("http://user:{password}@localhost:1/marker-path?{secret}");
    let redirecting = Server::start(move |_, _, _| (StatusCode::FOUND, [("location", location.clone())], "marker-response")).await;
    let garbage = Server::raw(|_, mut connection: TcpStream| async move { connection.write_all(b"marker-response\r\n\r\n").await }).await;
    let closed = Server::raw(|_, _| async move { Ok(()) }).await;
    let at = |address: &str| format!("http://user:{password}@{address}/marker-path?{secret}");
    let urls = [&large, &redirecting, &garbage, &closed].map(|server| at(&server.address.to_string()));
    let unusual = [at("127.0.0.1:1"), at("nothing.invalid"), at("127.0.0.1:1").replace("http:", "ftp:"), format!("/marker-path?{secret}")];
    for url in urls.into_iter().chain(unusual) {
        for error in [get(&client, &url).await.unwrap_err(), get(&of_users(SystemResolver), &url).await.unwrap_err()] {
            let texts = format!("{error} {error:?} {:#}", anyhow::Error::from(error.clone()));
            assert!(!texts.contains("marker"), "{texts}");
        }
    }
}

#[tokio::test]
async fn each_call_sends_a_traceparent() {
    let server = Server::start(|_, _, headers| headers["traceparent"].to_str().unwrap().to_owned()).await;
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let traceparent = String::from_utf8(get(&configured(), server.url()).await.unwrap().body().to_vec()).unwrap();
        assert_eq!(traceparent.split('-').map(str::len).collect::<Vec<_>>(), [2, 32, 16, 2], "{traceparent}");
        seen.insert(traceparent);
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn calls_are_measured_by_host_and_outcome() {
    let server = Server::start(|_, uri, _| if uri.path() == "/" { StatusCode::OK } else { StatusCode::NOT_FOUND }).await;
    let (metrics, port) = (metrics(), server.address.port());
    let client = HttpClient::for_configured_urls(metrics.clone(), || 0).unwrap();
    for path in ["", "", "nothing"] {
        get(&client, format!("{}{path}", server.url())).await.unwrap();
    }
    get(&client, "http://127.0.0.1:1/").await.unwrap_err();
    let count = |host: &str, outcome: &str| {
        let series = format!("http_client_request_duration_seconds_count{{server_address=\"{host}\",outcome=\"{outcome}\"}}");
        metrics.text().unwrap().lines().find_map(|line| line.strip_prefix(&series)?.trim().parse::<usize>().ok())
    };
    assert_eq!([count("127.0.0.1", "2xx"), count("127.0.0.1", "4xx"), count("127.0.0.1", "no_response")], [Some(2), Some(1), Some(1)]);
    for last in 2..60 {
        get(&client, format!("http://127.0.0.{last}:{port}/")).await.unwrap();
    }
    assert_eq!((count("127.0.0.20", "2xx"), count("127.0.0.21", "2xx"), count("_OTHER", "2xx")), (Some(1), None, Some(39)));
    // A user's host is no label.
    let of_users = HttpClient::for_urls_of_users(metrics.clone(), || 0, SystemResolver).unwrap();
    get(&of_users, server.url()).await.unwrap_err();
    assert_eq!((count("127.0.0.1", "refused"), count("_OTHER", "refused")), (None, Some(1)));
}

#[tokio::test]
async fn token_of_a_file_is_sent_as_it_is_now() {
    let server = Server::start(|_, _, headers: HeaderMap| headers["authorization"].to_str().unwrap().to_owned()).await;
    let file = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
    let token = TokenFile::new(file.clone());
    let ask = async || {
        let mut request = request(Method::GET, server.url());
        token.authorize(&mut request).await?;
        anyhow::Ok(configured().send(request).await?.into_body())
    };
    for content in ["one", "two\n"] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(ask().await.unwrap(), format!("Bearer {}", content.trim_end()));
    }
    for (content, reason) in [(&b" \n"[..], "holds no token"), (b"marker\r\nx: y", "holds no token"), (b"marker\xff", "cannot read")] {
        std::fs::write(&file, content).unwrap();
        let refused = format!("{:#}", ask().await.unwrap_err());
        assert!(refused.contains(reason) && refused.contains(file.to_str().unwrap()) && !refused.contains("marker"), "{refused}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(format!("{:#}", ask().await.unwrap_err()).contains("cannot read the token in"));
    assert_eq!(server.requests.load(Ordering::Relaxed), 2);
}
