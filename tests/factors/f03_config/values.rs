//! Values without a meaning are rejected with their variable's name. Values with a meaning take effect.

use std::time::Duration;

use super::{run, stderr};
use crate::support::collector::Collector;
use crate::support::{Deploy, free_port};

#[tokio::test]
async fn meaningless_value_prevents_startup() {
    for (name, value, expected) in [
        ("LOG_LEVEL", "warning", "must be a level"),
        ("LOG_LEVEL", "debg", "must be a level"),
        ("LOG_LEVEL", "3", "must be a level"),
        ("LOG_LEVEL", "info;sqlx=warn", "must be a level"),
        ("LOG_LEVEL", "info,sqlx=quiet", "must be a level"),
        ("LOG_LEVEL", "info,", "must be a level"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "must be http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "must be otlp or none"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "must be always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "abc", "must be a share"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "must be a share"),
        ("OTEL_SDK_DISABLED", "yes", "must be `true` or `false`"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "must be an address"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:password@collector:4318", "without a user and a password"),
        ("CORS_ORIGINS", "https://*.example.com", "contains a `*`"),
        ("CORS_ORIGINS", "https://example.com/path", "must be addresses"),
        ("JOB_LEASE", "9s", "must be 10s or longer"),
        ("HASH_CONCURRENCY", "0", "must be a whole number above 0"),
        ("API_DOCS", "no", "must be `true` or `false`"),
        ("FEATURE_SIGN_UP", "off", "must be `true` or `false`"),
        ("WORKER_KINDS", "one,,two", "must be names"),
        ("TOKEN_ISSUER", "login.example.com", "must be an address"),
        ("TOKEN_ISSUER", "ftp://login.example.com", "must be an address"),
        ("TOKEN_ISSUER", "https://login.example.com/?a", "must be an address"),
        ("TOKEN_ISSUER", "http://login.example.com", "must begin with https://"),
    ] {
        let program = if matches!(name, "JOB_LEASE" | "WORKER_KINDS") { "worker" } else { "web" };
        let output = run(program, &[(name, value)]).await;
        assert_eq!(output.status.code(), Some(78), "{name}={value}");
        let lines = stderr(&output);
        let line =
            lines.lines().find(|line| line.trim().starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}={value}: {lines}"));
        assert!(line.contains(expected), "{name}={value}: {line}");
    }
}

#[tokio::test]
async fn startup_failure_is_printed_despite_log_level() {
    let deploy = Deploy::new().await.with("PORT", free_port());
    let first = deploy.web().await;
    let mut second = deploy.with("LOG_LEVEL", "off").start("web");
    assert_eq!(second.exit().await.code(), Some(1));
    assert!(second.lines().is_empty(), "{:?}", second.lines());
    let printed = second.errors().join("\n");
    assert!(printed.contains("web could not start") && printed.contains(&format!("port {}", first.port())), "{printed}");
}

/// Whether a `web` that served one request has exported spans by the time it exits.
async fn arrive(collector: &Collector, deploy: Deploy) -> bool {
    let mut web = deploy.with("OTEL_BSP_SCHEDULE_DELAY", 50).web().await;
    assert_eq!(web.get("/version").await.status(), 200);
    // It exports pending spans before it exits.
    assert_eq!(web.process.terminate().await, Some(0));
    !collector.spans().is_empty()
}

#[tokio::test]
async fn otel_variables_switch_tracing() {
    let deploy = Deploy::new().await;
    for (more, expected) in [
        (&[][..], true),
        (&[("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], true),
        (&[("OTEL_SDK_DISABLED", "true")], false),
        (&[("OTEL_TRACES_EXPORTER", "none")], false),
    ] {
        let collector = Collector::start().await;
        let deploy = more.iter().fold(deploy.clone(), |deploy, (name, value)| deploy.with(name, value));
        assert_eq!(arrive(&collector, deploy.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)).await, expected, "{more:?}");
    }
    // The endpoint for traces has precedence over the general endpoint.
    let (collector, other) = (Collector::start().await, Collector::start().await);
    let traces = deploy.clone_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url));
    assert!(arrive(&collector, traces.with("OTEL_EXPORTER_OTLP_ENDPOINT", &other.url)).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(other.spans().is_empty());
}
