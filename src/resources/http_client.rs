//! Sends HTTP requests to other services. It is the one client for all that this service asks of others.
//!
//! A call takes ten seconds at most, and its response fits into memory. A URL from the config may lead anywhere. A URL
//! that a user wrote may lead to public addresses only. The resolver checks them, so the address that was checked is the
//! one that is connected to. No proxy is used, because `HTTP_PROXY` and its like are not part of the config.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug_span, field};
use url::{Host, Url};

use super::public_address::is_public;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces;

/// How long it may take to look up a name, to connect and to agree on TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a call may take, with its redirects, its retry and the whole response.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause before a retry. It is random, so that many clients do not retry at the same moment.
const MAX_RETRY_PAUSE: Duration = Duration::from_millis(500);

const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

const MAX_REDIRECTS: usize = 3;

/// Why a call has no response. No text contains a path, a query, a password or a body.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("not a URL of HTTP or HTTPS that names a host")]
    InvalidUrl,
    #[error("a URL of a user leads to an address that is not public")]
    NotPublic,
    #[error("a redirect leads to another host, or there are too many of them")]
    Redirect,
    #[error("no response from {host}: {cause}")]
    NoResponse { host: String, cause: String },
    #[error("no complete response in {CALL_TIMEOUT:?}")]
    Timeout,
    #[error("the response is larger than {MAX_RESPONSE_BYTES} bytes")]
    TooLarge,
}

impl Error {
    /// An error of this module that the resolver or the redirect policy returned, or else the innermost cause. The
    /// outer ones may contain the whole URL.
    fn of(host: &str, error: &reqwest::Error) -> Self {
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        if let Some(own) = causes.clone().find_map(|cause| cause.downcast_ref::<Self>()) {
            return own.clone();
        }
        let cause = causes.last().map_or_else(|| "the request could not be sent".to_owned(), ToString::to_string);
        if error.is_builder() { Self::InvalidUrl } else { Self::NoResponse { host: host.to_owned(), cause } }
    }

    /// The value of the metric's label.
    fn outcome(&self) -> &'static str {
        match self {
            Self::InvalidUrl | Self::NotPublic | Self::Redirect => "refused",
            Self::NoResponse { .. } => "no_response",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
        }
    }
}

/// Whose URLs a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Config,
    Users,
}

/// A client with its own connections. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    inner: reqwest::Client,
    urls: Source,
    metrics: Metrics,
    random: fn() -> u32,
}

impl HttpClient {
    /// A client for URLs from the config, which may lead to private addresses. It trusts the system's certificate
    /// authorities, or those in `SSL_CERT_FILE`. `random` returns any number with the same probability.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn for_configured_urls(metrics: Metrics, random: fn() -> u32) -> anyhow::Result<Self> {
        Self::new(Source::Config, builder()?, metrics, random)
    }

    /// A client for URLs that users wrote. It refuses private addresses, and has connections of its own, because one
    /// that the other client opened may lead to a private address. `names` is [`SystemResolver`] outside of tests.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn for_urls_of_users(metrics: Metrics, random: fn() -> u32, names: impl Resolve + 'static) -> anyhow::Result<Self> {
        Self::new(Source::Users, builder()?.dns_resolver(PublicOnly(Arc::new(names))), metrics, random)
    }

    fn new(urls: Source, builder: reqwest::ClientBuilder, metrics: Metrics, random: fn() -> u32) -> anyhow::Result<Self> {
        Ok(Self { inner: builder.build()?, urls, metrics, random })
    }

    /// Sends a request as a part of the current trace, and returns the response whatever its status is. A request with
    /// an idempotent method is sent a second time after no response, 502, 503 or 504.
    ///
    /// # Errors
    /// There is no response, or one of this client's limits forbids it.
    pub async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let span = debug_span!(
            "HTTP",
            otel.kind = "client",
            otel.name = request.method().as_str(),
            otel.status_code = field::Empty,
            server.address = request.uri().host(),
            http.response.status_code = field::Empty
        );
        if let Ok(value) = HeaderValue::try_from(traces::outgoing(&span)) {
            request.headers_mut().insert("traceparent", value);
        }
        let result = self.send_untraced(request).instrument(span.clone()).await;
        if let Ok(response) = &result {
            span.record("http.response.status_code", response.status().as_u16());
        }
        if result.as_ref().map_or(true, |response| response.status().as_u16() >= 400) {
            span.record("otel.status_code", "error");
        }
        result
    }

    /// The same without a span, for what exports spans.
    pub(super) async fn send_untraced(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let started = Instant::now();
        // No label takes a value from a user.
        let host = request.uri().host().filter(|_| self.urls == Source::Config).map(str::to_owned);
        let result = timeout(CALL_TIMEOUT, self.attempts(request)).await.unwrap_or(Err(Error::Timeout));
        let outcome = match &result {
            Ok(response) => format!("{}xx", response.status().as_u16() / 100),
            Err(error) => error.outcome().to_owned(),
        };
        self.metrics.call(host.as_deref(), outcome, started.elapsed());
        result
    }

    async fn attempts(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let second = request.method().is_idempotent().then(|| request.clone());
        let result = self.attempt(request).await;
        let failed = match &result {
            Ok(response) => {
                [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT].contains(&response.status())
            }
            Err(error) => matches!(error, Error::NoResponse { .. }),
        };
        let Some(second) = second.filter(|_| failed) else { return result };
        sleep(MAX_RETRY_PAUSE.mul_f64(f64::from((self.random)()) / f64::from(u32::MAX))).await;
        self.attempt(second).await
    }

    async fn attempt(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let request = reqwest::Request::try_from(request).map_err(|_| Error::InvalidUrl)?;
        let host = request.url().host_str().unwrap_or_default().to_owned();
        // The resolver sees only names.
        if self.urls == Source::Users && literal_address(request.url()).is_some_and(|address| !is_public(address)) {
            return Err(Error::NotPublic);
        }
        let of = |error: reqwest::Error| Error::of(&host, &error);
        let mut response = self.inner.execute(request).await.map_err(of)?;
        if response.content_length().is_some_and(|length| length > MAX_RESPONSE_BYTES as u64) {
            return Err(Error::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(of)? {
            if body.len() + piece.len() > MAX_RESPONSE_BYTES {
                return Err(Error::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        let mut whole = Response::new(Bytes::from(body));
        *whole.status_mut() = response.status();
        *whole.headers_mut() = std::mem::take(response.headers_mut());
        Ok(whole)
    }
}

/// What both kinds of client have in common.
fn builder() -> anyhow::Result<reqwest::ClientBuilder> {
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    let tls = tls.with_root_certificates(authorities).with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        // Other crates may turn on a feature of reqwest for HTTP/2.
        .http1_only()
        .no_proxy()
        .redirect(Policy::custom(|attempt| {
            let stays = attempt.previous().last().is_some_and(|from| is_same_server(from, attempt.url()));
            if stays && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.error(Error::Redirect) }
        }))
        // It would contain the query.
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT))
}

/// Whether a redirect stays on its server: at the same origin, or at the same host and now with HTTPS.
fn is_same_server(from: &Url, to: &Url) -> bool {
    let ports = (from.port(), to.port());
    let upgrades = (from.scheme(), to.scheme()) == ("http", "https") && ports == (None, None) && from.host() == to.host();
    upgrades || from.origin() == to.origin()
}

/// The address of a URL whose host is not a name.
fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
    }
}

/// The resolver of the operating system.
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Drops the addresses that are not public. Each connection is to an address that it returned, also after a redirect.
struct PublicOnly(Arc<dyn Resolve>);

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let resolving = self.0.resolve(name);
        Box::pin(async move {
            let mut public = resolving.await?.filter(|address| is_public(address.ip())).peekable();
            if public.peek().is_none() { Err(Error::NotPublic.into()) } else { Ok(Box::new(public) as Addrs) }
        })
    }
}
