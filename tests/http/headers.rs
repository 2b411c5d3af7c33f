//! Headers: security headers for browsers, CORS, and responses after a panic.

use std::num::NonZeroU32;
use std::time::Duration;

use app::config::{MinDuration, Setting};
use app::resources::postgres::{Limits, Pool};
use axum::Router;
use axum::routing::get;
use reqwest::Method;
use tower::ServiceExt;

use crate::support::Deploy;
use crate::support::deploy::client;
use crate::support::person::Person;

#[tokio::test]
async fn every_response_has_security_headers() {
    let deploy = Deploy::new().await;
    let web = deploy.web().await;
    for path in ["/api/v1/session", "/verify?token=x", "/nothing", "/version", "/docs/", "/openapi.json"] {
        let headers = web.get(path).await.headers().clone();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(headers["referrer-policy"], "same-origin", "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'"), "{path}");
        assert!(headers.contains_key("x-request-id"), "{path}");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert!(!headers.contains_key("strict-transport-security"), "{path}");
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");
    }
    let web = deploy.with("PUBLIC_URL", "https://example.com").web().await;
    assert_eq!(web.get("/api/v1/session").await.headers()["strict-transport-security"], "max-age=63072000");
}

#[tokio::test]
async fn only_listed_origins_may_call() {
    let deploy = Deploy::new().await.with("CORS_ORIGINS", "https://app.example.com, https://two.example.com");
    let web = deploy.web().await;
    let preflight = async |origin: &str| {
        let request = client().request(Method::OPTIONS, format!("{}/api/v1/tokens", web.url)).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let headers = "content-type,idempotency-key,if-none-match,traceparent,x-request-id";
        request.header("access-control-request-headers", headers).send().await.unwrap()
    };
    for listed in ["https://app.example.com", "https://two.example.com"] {
        let answer = preflight(listed).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["access-control-allow-origin"], listed);
        assert_eq!(answer.headers()["access-control-allow-credentials"], "true");
        let allowed = answer.headers()["access-control-allow-headers"].to_str().unwrap().to_owned();
        for header in ["content-type", "idempotency-key", "if-none-match", "traceparent", "x-request-id"] {
            assert!(allowed.split(',').any(|allowed| allowed.trim() == header), "{header}: {allowed}");
        }
        // A browser caches the preflight, so it does not send one before each change.
        let seconds: u32 = answer.headers()["access-control-max-age"].to_str().unwrap().parse().unwrap();
        assert!(seconds >= 600, "{seconds}");
    }
    assert!(!preflight("https://evil.example.com").await.headers().contains_key("access-control-allow-origin"));

    let ada = Person::unverified(&web).await;
    let log_out = async |origin: &str| {
        let url = format!("{}/api/v1/session", web.url);
        ada.client.delete(url).header("origin", origin).header("sec-fetch-site", "cross-site").send().await.unwrap()
    };
    assert_eq!(log_out("https://evil.example.com").await.status(), 403);
    let answer = log_out("https://app.example.com").await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["access-control-allow-origin"].to_str().unwrap()),
        (204, "https://app.example.com")
    );

    // Without a list, no other origin may call.
    let web = Deploy::new().await.web().await;
    let request = client().request(Method::OPTIONS, format!("{}/api/v1/tokens", web.url)).header("origin", "https://app.example.com");
    let answer = request.header("access-control-request-method", "POST").send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"), "{answer:?}");
}

#[tokio::test]
async fn cors_origins_allow_no_wildcard() {
    for origins in ["https://app.example.com,*", "https://*.example.com", "*"] {
        let mut web = Deploy::new().await.with("CORS_ORIGINS", origins).start("web");
        assert_eq!(web.exit().await.code(), Some(78), "{origins}");
        assert!(web.errors().iter().any(|line| line.contains("CORS_ORIGINS contains a `*`")), "{:?}", web.errors());
    }
}

#[tokio::test]
async fn panic_is_500_for_that_request_only() {
    let plenty = NonZeroU32::MAX;
    let config = app::config::Http {
        port: 0,
        session_ttl: MinDuration(Duration::from_mins(1)),
        session_max_age: MinDuration(Duration::from_mins(1)),
        request_timeout: MinDuration(Duration::from_secs(10)),
        drain_delay: Duration::ZERO,
        rate_limit_login: plenty,
        rate_limit_requests: plenty,
        hash_concurrency: None,
        trusted_proxies: 0,
        cors_origins: None,
        api_docs: true,
        mail_viewer_url: None,
    };
    // No route of the programs panics, so the test adds one that does, with the same layers.
    async fn panics() -> &'static str {
        panic!("an internal secret")
    }
    let panics = Router::new().route("/", get(panics)).route("/fine", get(|| async { "fine" }));
    let release = app::release::Release { service: "app".to_owned(), commit: app::release::COMMIT, release: None, process: "web" };
    let metrics = app::telemetry::metrics::Metrics::new(&release);
    let database = app::config::Database {
        database_url: app::config::DatabaseUrl::parse("postgres://nobody:nothing@localhost/none").unwrap(),
        database_pool_size: NonZeroU32::MIN,
    };
    let postgres = Pool::attach(&database, "web", Limits::within(Duration::from_secs(10))).unwrap();
    let site = app::config::PublicUrl::parse("http://localhost").unwrap();
    let served_by = app::http::ServedBy::new(&release, tokio_util::sync::CancellationToken::new());
    let routes = app::http::finish(panics, Vec::new(), &config, &site, metrics, postgres, served_by);
    let ask = async |path: &str| {
        let request = axum::http::Request::get(path).header("host", "localhost").body(axum::body::Body::empty()).unwrap();
        let answer = routes.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap())
    };
    let (status, body) = ask("/").await;
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &problem["type"]), (500, &serde_json::json!("/problems/internal")));
    assert!(!problem.to_string().contains("secret"), "{problem}");
    assert_eq!(ask("/fine").await, (200, "fine".into()));
}
