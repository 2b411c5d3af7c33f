//! TLS to the attached resources, with certificates of a private authority.

use axum::http::StatusCode;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;

use crate::support::balancer::has;
use crate::support::clients::get;
use crate::support::collector::Collector;
use crate::support::person::Person;
use crate::support::postgres::Postgres;
use crate::support::tls::Authority;
use crate::support::{Deploy, Process, eventually, free_port};

/// A text that no log line may contain.
const SECRET: &str = "sekret";

/// A Postgres and a Redis with certificates, and a deploy that verifies them.
struct Encrypted {
    deploy: Deploy,
    postgres: Postgres,
    authority: Authority,
    _redis: Process,
}

impl Encrypted {
    /// Returns `None` if this machine lacks their programs.
    async fn start() -> Option<Self> {
        if !has("redis-server") {
            return None;
        }
        let authority = Authority::new();
        let postgres = authority.postgres().await?;
        let (redis, redis_url) = authority.redis(SECRET).await;
        let url = format!("{}/postgres?sslmode=verify-full", postgres.url.replace("127.0.0.1", "localhost"));
        let deploy = Deploy::new().await.with("DATABASE_URL", url).with("REDIS_URL", redis_url).with("SSL_CERT_FILE", authority.file());
        let migrated = deploy.admin(&["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        Some(Self { deploy, postgres, authority, _redis: redis })
    }
}

#[tokio::test]
async fn private_authority_secures_all_three_resources() {
    let Some(servers) = Encrypted::start().await else { return };
    let Encrypted { deploy, postgres, authority, .. } = &servers;
    let web = deploy.web().await;
    eventually("readiness", async || (web.get("/readyz").await.status() == 200).then_some(())).await;
    let wrapped = format!("smtps://localhost:{}", authority.mail(&deploy.mail, false).await);
    let upgraded = format!("smtp://localhost:{}?tls=required", authority.mail(&deploy.mail, true).await);
    for url in [wrapped, upgraded] {
        let mut worker = deploy.clone_with("SMTP_URL", url).start("worker");
        // A sign-up and a log-in use Postgres and Redis.
        let ada = Person::unverified(&web).await;
        deploy.mail.to(&ada.email, "Did you sign up?").await;
        let mut connection = PgConnection::connect(&format!("{}/postgres", postgres.url)).await.unwrap();
        let encrypted = "SELECT application_name, bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1 ORDER BY 1";
        let encrypted: Vec<(String, bool)> = sqlx::query_as(encrypted).fetch_all(&mut connection).await.unwrap();
        assert_eq!(encrypted, [("web".to_owned(), true), ("worker".to_owned(), true)]);
        assert_eq!(worker.terminate().await, Some(0));
    }
}

/// It logs the reason once.
#[tokio::test]
async fn web_refuses_servers_it_cannot_verify() {
    let Some(servers) = Encrypted::start().await else { return };
    let deploy = &servers.deploy;
    let number = |variable: &str| deploy.environment[variable].replace("localhost", "127.0.0.1");
    let by_number = deploy.clone_with("DATABASE_URL", number("DATABASE_URL")).with("REDIS_URL", number("REDIS_URL"));
    let without_tls = format!("{}?sslmode=verify-full", Deploy::new().await.environment["DATABASE_URL"]);
    let other = Authority::new();
    let unknown = deploy.clone_with("SSL_CERT_FILE", other.file());
    let mut refused = Vec::new();
    for (deploy, postgres, redis) in [
        (unknown.clone_with("DATABASE_URL", without_tls), "server does not support TLS", "UnknownIssuer"),
        (unknown, "UnknownIssuer", "UnknownIssuer"),
        (deploy.clone().without("SSL_CERT_FILE"), "UnknownIssuer", "UnknownIssuer"),
        (by_number, "not valid for name", "not valid for name"),
    ] {
        let web = eventually("a first check that does not time out", async || {
            let web = deploy.web_unready().await;
            let (first, second) = (web.process.says("not ready: postgres").await, web.process.says("not ready: redis").await);
            let messages = format!("{} {}", first["message"], second["message"]);
            if messages.contains("no answer in time") {
                return None;
            }
            assert!(first["message"].as_str()?.contains(postgres) && second["message"].as_str()?.contains(redis), "{messages}");
            Some(web)
        });
        refused.push(web.await);
    }
    let password = servers.postgres.url.split([':', '@']).nth(2).unwrap();
    for web in &mut refused {
        assert_eq!(web.get("/readyz").await.status(), 503);
        assert_eq!(web.process.terminate().await, Some(0));
        let lines = web.process.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("not ready")).count(), 2, "one line for each resource: {lines:#?}");
        assert!(!lines.iter().any(|line| line.contains(SECRET) || line.contains(password)), "{lines:#?}");
    }
}

#[tokio::test]
async fn mail_waits_for_a_verified_server() {
    let (authority, other) = (Authority::new(), Authority::new());
    let deploy = Deploy::new().await;
    let ada = Person::unverified(&deploy.web().await).await;
    let worker = |file: &Authority, url: String| deploy.clone_with("SSL_CERT_FILE", file.file()).with("SMTP_URL", url).start("worker");
    let (wrapped, upgraded) = (authority.mail(&deploy.mail, false).await, authority.mail(&deploy.mail, true).await);
    let without_tls = deploy.address_of("SMTP_URL").replace("127.0.0.1", "localhost");
    let cases = [
        (&other, format!("smtps://user:{SECRET}@localhost:{wrapped}"), "UnknownIssuer"),
        (&other, format!("smtp://user:{SECRET}@localhost:{upgraded}?tls=required"), "UnknownIssuer"),
        (&authority, format!("smtps://user:{SECRET}@127.0.0.1:{wrapped}"), "not valid for name"),
        (&authority, format!("smtp://user:{SECRET}@127.0.0.1:{upgraded}?tls=required"), "not valid for name"),
        (&authority, format!("smtps://user:{SECRET}@{without_tls}"), "corrupt message"),
        (&authority, format!("smtp://user:{SECRET}@{without_tls}?tls=required"), "STARTTLS is not supported"),
    ];
    // Retry at once instead of after the backoff.
    let again = async || sqlx::query("UPDATE jobs SET run_at = now()").execute(&mut deploy.database().await).await.unwrap();
    for (number, (file, url, reason)) in (0..).zip(cases) {
        again().await;
        let mut worker = worker(file, url);
        let line = worker.logged("failed", |line| line["outcome"] == "failed").await;
        assert!(line["attempt"].as_u64() > Some(number), "{line}");
        assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(worker.terminate().await, Some(0));
        assert!(!worker.lines().iter().any(|line| line.contains(SECRET)), "{:#?}", worker.lines());
    }
    assert!(deploy.mail.all().await.is_empty());
    again().await;
    let _worker = worker(&authority, format!("smtps://localhost:{wrapped}"));
    deploy.mail.to(&ada.email, "Did you sign up?").await;
}

#[tokio::test]
async fn traces_go_only_to_verified_collectors() {
    let (authority, collector) = (Authority::new(), Collector::start().await);
    let port = authority.before(collector.url.replace("http://", ""), false).await;
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{port}"));
    let deploy = deploy.with("OTEL_BSP_SCHEDULE_DELAY", 100);
    let mut stranger = deploy.web().await;
    stranger.get("/verify").await;
    assert_eq!(stranger.process.terminate().await, Some(0), "rejected traces do not delay the exit");
    assert!(collector.spans().is_empty(), "the authority is not trusted");

    let web = deploy.with("SSL_CERT_FILE", authority.file()).web().await;
    web.get("/verify").await;
    eventually("a span", async || (!collector.spans().is_empty()).then_some(())).await;
}

#[tokio::test]
async fn redirect_from_https_to_http_is_refused() {
    let (authority, collector) = (Authority::new(), Collector::start().await);
    let location = format!("{}/v1/traces", collector.url.replace("127.0.0.1", "localhost"));
    let redirect = async move || (StatusCode::TEMPORARY_REDIRECT, [("location", location)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = authority.before(listener.local_addr().unwrap().to_string(), false).await;
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(redirect)).await });
    let metrics = free_port();
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{port}")).with("METRICS_PORT", metrics);
    let web = deploy.with("SSL_CERT_FILE", authority.file()).with("OTEL_BSP_SCHEDULE_DELAY", 100).web().await;
    web.get("/verify").await;
    let refused = "http_client_request_duration_seconds_count{server_address=\"localhost\",outcome=\"refused\"}";
    eventually("a refusal", async || {
        get(format!("http://127.0.0.1:{metrics}/metrics")).await.ok()?.text().await.ok()?.contains(refused).then_some(())
    })
    .await;
    assert!(collector.spans().is_empty());
}
