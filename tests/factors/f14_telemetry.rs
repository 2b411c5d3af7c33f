//! XIV. Telemetry: metrics, traces and probes show from outside what happens inside.
//!
//! Violated by a figure that only a log holds, a label that a client chooses, a trace that ends at the queue, a collector
//! that delays a request, or a probe that fails on a live process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};

use crate::support::balancer::has;
use crate::support::clients::get;
use crate::support::collector::Collector;
use crate::support::deploy::{Web, client};
use crate::support::person::{PASSWORD, Person};
use crate::support::prometheus::Prometheus;
use crate::support::{Deploy, Process, Proxy, eventually, free_port};

/// A web, a worker and a clock, with the ports of their metrics.
async fn formation(deploy: &Deploy) -> (Web, Process, Process, [u16; 3]) {
    let ports = [free_port(), free_port(), free_port()];
    let at = |port: u16| deploy.clone_with("METRICS_PORT", port);
    let (web, worker, clock) = (at(ports[0]).web().await, at(ports[1]).start("worker"), at(ports[2]).start("clock"));
    for process in [&worker, &clock] {
        process.logged("it listens", |line| line["listener"] == "metrics").await;
    }
    (web, worker, clock, ports)
}

async fn metrics(port: u16) -> String {
    let answer = get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    answer.text().await.unwrap()
}

/// A file that a project may delete. The template itself, which has the folder `template/`, must have it.
fn part(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok();
    assert!(text.is_some() || !std::path::Path::new("template").exists(), "{path} is missing");
    text
}

/// The value of a series, found by the beginning of its line.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// The names of metrics in a text or an expression.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.contains('_') || *word == "ready").map(str::to_owned).collect()
}

#[tokio::test]
async fn each_process_measures_its_own_work() {
    let deploy = Deploy::new().await.with("RATE_LIMIT_LOGIN", 4).with("RELEASE_VERSION", "v17");
    let (web, _worker, _clock, [of_web, of_worker, of_clock]) = formation(&deploy).await;
    let ada = Person::verified(&deploy, &web).await;
    let later = "INSERT INTO jobs (kind, payload, max_attempts, run_at) VALUES ('purge_expired', '{}', 1, now() + interval '10 minutes')";
    sqlx::query(later).execute(&mut deploy.database().await).await.unwrap();
    while ada.log_in().await.status() != 429 {}
    get(format!("{}/readyz", web.url)).await.unwrap();

    let text = metrics(of_web).await;
    let posts = "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_route=\"/api/v1/accounts\",http_response_status_code=\"202\"}";
    assert_eq!(value(&text, posts), Some(1.0), "{text}");
    assert_eq!(value(&text, "accounts_signed_up_total"), Some(1.0), "{text}");
    assert!(value(&text, "http_server_rate_limited_total").unwrap() >= 1.0);
    assert_eq!(value(&text, "http_server_active_requests"), Some(0.0));
    assert_eq!(value(&text, "ready"), Some(1.0));
    for pool in ["postgres", "redis"] {
        let count = |state: &str| value(&text, &format!("db_client_connection_count{{pool=\"{pool}\",state=\"{state}\"}}")).unwrap();
        assert!((1.0..=4.0).contains(&(count("used") + count("idle"))), "{text}");
        assert_eq!(value(&text, &format!("db_client_connection_pending_requests{{pool=\"{pool}\"}}")), Some(0.0));
    }
    assert!(text.contains("release=\"v17\",process=\"web\"} 1"), "{text}");
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        assert!(value(&text, name).is_some_and(|value| value > 0.0), "{name}: {text}");
    }

    let text = metrics(of_worker).await;
    assert_eq!(value(&text, "jobs_run_seconds_count{kind=\"send_verification\",outcome=\"done\"}"), Some(1.0), "{text}");
    assert_eq!(value(&text, "jobs_wait_seconds_count{kind=\"send_verification\"}"), Some(1.0));
    assert_eq!(value(&text, "mails_total{outcome=\"sent\"}"), Some(1.0));

    let counted = eventually("the queue is counted", async || {
        let text = metrics(of_clock).await;
        text.contains("jobs_queued{kind=\"purge_expired\",state=\"scheduled\"} 1").then_some(text)
    });
    let text = counted.await;
    assert!(value(&text, "schedule_last_look_timestamp_seconds").unwrap() > 1.7e9, "{text}");
    assert!(!get(format!("{}/metrics", web.url)).await.unwrap().status().is_success(), "the public port serves no metrics");
}

#[tokio::test]
async fn probes_and_metrics_follow_a_postgres_outage() {
    let deploy = Deploy::new().await;
    let postgres = Proxy::to(deploy.address_of("DATABASE_URL")).await;
    let url = deploy.through("DATABASE_URL", &postgres);
    let (_web, _worker, _clock, ports) = formation(&deploy.with("DATABASE_URL", url)).await;
    let ask = async |port: u16, path: &str| get(format!("http://127.0.0.1:{port}{path}")).await.ok();
    // The status of `/readyz`, the failed check, and the metric. `/livez` must succeed all the time.
    let tells = async |port: u16| {
        let (live, ready) = (ask(port, "/livez").await?, ask(port, "/readyz").await?);
        assert_eq!(live.status(), 200, "an outage of Postgres must not restart the process");
        let status = ready.status().as_u16();
        let failed = ready.json::<serde_json::Value>().await.ok()?["failed"]["postgres"].as_str().map(str::to_owned);
        Some((status, failed, value(&metrics(port).await, "ready")?))
    };
    let (well, ill) = ((200, None, 1.0), (503, Some("unavailable".to_owned()), 0.0));
    for expected in [&well, &ill, &well] {
        for port in ports {
            eventually(&format!("{expected:?}"), async || (tells(port).await.as_ref() == Some(expected)).then_some(())).await;
        }
        if *expected == well { postgres.cut() } else { postgres.heal() }
    }
}

#[tokio::test]
async fn clock_counts_missed_ticks() {
    let deploy = Deploy::new().await;
    let (_web, _worker, clock, [_, _, port]) = formation(&deploy).await;
    clock.says("schedule purge-expired is new").await;
    let back = "UPDATE schedules SET last_tick = last_tick - interval '5 hours' WHERE name = 'purge-expired'";
    sqlx::query(back).execute(&mut deploy.database().await).await.unwrap();
    clock.says("schedule purge-expired ticked").await;
    let text = metrics(port).await;
    assert_eq!(value(&text, "schedule_ticks_total{schedule=\"purge-expired\"}"), Some(1.0), "{text}");
    assert_eq!(value(&text, "schedule_ticks_missed_total{schedule=\"purge-expired\"}"), Some(4.0), "{text}");
}

#[tokio::test]
async fn metric_labels_hold_no_client_input() {
    let deploy = Deploy::new().await;
    let (web, _worker, _clock, [port, ..]) = formation(&deploy).await;
    let odd = reqwest::Method::from_bytes(b"MARKER").unwrap();
    let ask = client().request(odd, format!("{}/marker/path?marker=query", web.url)).header("user-agent", "marker");
    assert_eq!(ask.send().await.unwrap().status(), 404);
    web.get("/api/v1/tokens/marker").await;
    let text = metrics(port).await;
    assert!(text.contains("http_request_method=\"_OTHER\",http_route=\"none\"") && !text.to_lowercase().contains("marker"), "{text}");
}

#[tokio::test]
async fn docs_dashboard_and_alerts_match_the_metrics() {
    let deploy = Deploy::new().await;
    let deploy = deploy.with("JOB_LEASE", "10s");
    let (web, worker, clock, ports) = formation(&deploy).await;
    Person::verified(&deploy, &web).await;
    // A job that waits, because no worker knows its kind.
    sqlx::query("INSERT INTO jobs (kind, payload, max_attempts) VALUES ('unknown', '{}', 1)")
        .execute(&mut deploy.database().await)
        .await
        .unwrap();
    clock.says("schedule purge-expired is new").await;
    // A tick and a job of a lost worker have no series until they have happened.
    for statement in [
        "UPDATE schedules SET last_tick = last_tick - interval '2 days'",
        "INSERT INTO jobs (kind, payload, max_attempts, token, run_at) VALUES ('end_sessions', '{}', 1, gen_random_uuid(), now() - interval '1 hour')",
    ] {
        sqlx::query(statement).execute(&mut deploy.database().await).await.unwrap();
    }
    worker.says("its worker was lost").await;
    clock.says("ticked for").await;
    eventually("the queue is counted", async || metrics(ports[2]).await.contains("state=\"ready\"").then_some(())).await;
    let mut known = BTreeSet::new();
    for port in ports {
        for line in metrics(port).await.lines().filter_map(|line| line.strip_prefix("# TYPE ").map(str::to_owned)) {
            let (name, kind) = line.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "info" => &["_info"],
                _ => &[""],
            };
            known.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        }
    }
    let dashboard: Option<serde_json::Value> = part("deploy/grafana/dashboard.json").map(|text| serde_json::from_str(&text).unwrap());
    let panels = dashboard.iter().flat_map(|dashboard| dashboard["panels"].as_array().unwrap());
    let mut texts: Vec<_> =
        panels.flat_map(|panel| panel["targets"].as_array().unwrap()).map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let alerts = part("deploy/prometheus/alerts.yml");
    texts.extend(
        alerts
            .iter()
            .flat_map(|alerts| alerts.split("expr:").skip(1))
            .map(|rest| rest.split("\n        for:").next().unwrap().split("labels:").next().unwrap().to_owned()),
    );
    let labels = ["http_response_status_code", "http_route", "histogram_quantile", "min_over_time", "__rate_interval"].map(str::to_owned);
    let named: BTreeSet<_> = texts.iter().flat_map(|text| names(text)).filter(|name| !labels.contains(name)).collect();
    assert!(named.len() > 15 || dashboard.is_none() || alerts.is_none(), "{named:?}");
    assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
    let docs = std::fs::read_to_string("docs/metrics.md").unwrap();
    let undocumented: Vec<_> = known
        .iter()
        .filter(|name| !docs.contains(name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count")))
        .collect();
    assert_eq!(undocumented, Vec::<&String>::new(), "docs/metrics.md names every metric");
}

#[tokio::test]
async fn alerts_fire_when_worker_and_clock_stop() {
    if part("deploy/prometheus/alerts.yml").is_none() || !has("prometheus") || !has("promtool") {
        return;
    }
    let deploy = Deploy::new().await;
    let (web, worker, clock, ports) = formation(&deploy).await;
    let prometheus = Prometheus::start(&ports).await;
    prometheus.until("all three are scraped", async || prometheus.value("count(ready == 1)").await == Some(3.0)).await;
    prometheus.until("no alert fires", async || prometheus.firing().await.is_empty()).await;
    drop((worker, clock));
    prometheus.until("NoTick fires", async || prometheus.firing().await.contains("NoTick")).await;
    assert!(!prometheus.firing().await.contains("QueueTooOld"));

    // A job that has been due for ten minutes, and a dead one. A clock counts the queue when it starts.
    Person::unverified(&web).await;
    for statement in [
        "UPDATE jobs SET run_at = now() - interval '10 minutes'",
        "INSERT INTO jobs (kind, payload, max_attempts, dead_at) VALUES ('end_sessions', '{}', 1, now())",
    ] {
        sqlx::query(statement).execute(&mut deploy.database().await).await.unwrap();
    }
    let _clock = deploy.with("METRICS_PORT", ports[2]).start("clock");
    for alert in ["QueueTooOld", "DeadJobs", "TargetDown"] {
        prometheus.until(&format!("{alert} fires"), async || prometheus.firing().await.contains(alert)).await;
    }
    prometheus.until("NoTick ends", async || !prometheus.firing().await.contains("NoTick")).await;
}

#[tokio::test]
async fn job_logs_carry_the_requests_id() {
    let deploy = Deploy::new().await;
    let (web, worker) = (deploy.web().await, deploy.start("worker"));
    let ada = Person::stranger(&web);
    let answer = ada.sign_up().await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let access = web.process.logged("the access line", |line| line["request_id"] == id.as_str() && line["status"] == 202).await;
    assert_eq!((&access["method"], &access["route"]), (&"POST".into(), &"/api/v1/accounts".into()));
    assert!(access["latency_ms"].is_u64());
    let done = worker.logged("the job's end", |line| line["request_id"] == id.as_str() && line["outcome"] == "done").await;
    assert_eq!(done["job_kind"], "send_verification");
    for line in worker.log().iter().filter(|line| line["job_id"] == done["job_id"]) {
        assert_eq!(line["request_id"], id.as_str(), "{line}");
    }
}

#[tokio::test]
async fn one_trace_spans_request_job_and_mail() {
    let collector = Collector::start().await;
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 100);
    let deploy = deploy.with("OTEL_EXPORTER_OTLP_HEADERS", "x-key=marker-of-the-collector").with("TRUSTED_PROXIES", 1);
    let web = deploy.web().await;
    let ada = Person::stranger(&web);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let sign_up = ada.request(reqwest::Method::POST, "/accounts").header("traceparent", format!("00-{trace}-{parent}-01"));
    let sign_up = sign_up.json(&serde_json::json!({ "email": ada.email, "password": PASSWORD })).send().await.unwrap();
    let id = sign_up.headers()["x-request-id"].to_str().unwrap().to_owned();

    // The same id is in web's log, the row, the worker's log, the mail and the trace.
    let line = web.process.logged("the access line", |line| line["request_id"] == id.as_str() && line["status"] == 202).await;
    assert_eq!(line["trace_id"], trace);
    let row: serde_json::Value =
        sqlx::query_scalar("SELECT trace_context FROM jobs").fetch_one(&mut deploy.database().await).await.unwrap();
    assert_eq!(row["request_id"], id.as_str());
    assert!(row["traceparent"].as_str().unwrap().starts_with(&format!("00-{trace}-")), "{row}");
    let worker = deploy.start("worker");
    let done = worker.logged("the job's end", |line| line["outcome"] == "done").await;
    assert_eq!((&done["request_id"], &done["trace_id"]), (&id.as_str().into(), &trace.into()), "{done}");
    let mail = deploy.mail.to(&ada.email, "Did you sign up?").await;
    assert_eq!(mail.request_id.as_deref(), Some(id.as_str()));
    assert!(mail.traceparent.unwrap().starts_with(&format!("00-{trace}-")));

    let expected = ["/api/v1/accounts", "postgres accounts create", "postgres jobs enqueue", "job", "postgres mailed_tokens mint", "SMTP"];
    let spans = eventually("every span", async || {
        let spans: BTreeMap<_, _> =
            collector.spans().into_iter().filter(|span| span.trace == trace).map(|span| (span.name.clone(), span)).collect();
        expected.iter().all(|name| spans.contains_key(*name)).then_some(spans)
    })
    .await;
    let request = &spans["/api/v1/accounts"];
    assert_eq!((request.parent.as_str(), request.process.as_str()), (parent, "web"));
    assert_eq!(spans["postgres accounts create"].parent, request.id);
    assert_eq!((&spans["job"].parent, spans["job"].process.as_str()), (&request.id, "worker"));
    assert_eq!(spans["SMTP"].parent, spans["job"].id);
    assert_eq!(collector.header("x-key").as_deref(), Some("marker-of-the-collector"));

    // A signed-in read sends one request to Redis.
    ada.log_in().await;
    let line = web.process.logged("the log-in", |line| line["route"] == "/api/v1/session" && line["status"] == 200).await;
    let trace = line["trace_id"].as_str().unwrap().to_owned();
    eventually("a span of Redis", async || collector.spans().iter().any(|span| span.trace == trace && span.name == "redis").then_some(()))
        .await;
    for process in [&web.process, &worker] {
        assert!(!process.lines().join("\n").contains("marker-of-the-collector"));
    }
}

#[tokio::test]
async fn outgoing_request_continues_the_trace() {
    let collector = Collector::start().await;
    let received = Arc::<Mutex<Vec<String>>>::default();
    let kept = received.clone();
    let answer = async move |headers: HeaderMap| kept.lock().unwrap().push(headers["traceparent"].to_str().unwrap().to_owned());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/marker-path?marker-query", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });

    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
    let worker = deploy.clone_with("LOG_LEVEL", "trace").rough_worker();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let context = serde_json::json!({ "request_id": "id", "traceparent": format!("00-{trace}-b7ad6b7169203331-01") });
    sqlx::query("INSERT INTO jobs (kind, payload, max_attempts, trace_context) VALUES ('call', $1, 1, $2)")
        .bind(serde_json::json!({ "url": url }))
        .bind(context)
        .execute(&mut deploy.database().await)
        .await
        .unwrap();
    let find = |name: &str| collector.spans().into_iter().find(|span| span.trace == trace && span.name == name);
    let (job, call) = eventually("both spans", async || find("job").zip(find("GET"))).await;
    assert_eq!(call.parent, job.id);
    assert_eq!(*received.lock().unwrap(), [format!("00-{trace}-{}-01", call.id)]);
    assert!(!worker.lines().iter().any(|line| line.contains("marker")), "{:#?}", worker.lines());
}

#[tokio::test]
async fn exports_are_measured_but_not_traced() {
    let collector = Collector::start().await;
    let port = free_port();
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
    let web = deploy.with("METRICS_PORT", port).web().await;
    let exports = "http_client_request_duration_seconds_count{server_address=\"127.0.0.1\",outcome=\"2xx\"}";
    eventually("a second export", async || {
        web.get("/version").await;
        value(&metrics(port).await, exports).filter(|count| *count >= 2.0)
    })
    .await;
    assert_eq!(collector.header("traceparent"), None);
    let names: BTreeSet<_> = collector.spans().into_iter().map(|span| span.name).collect();
    assert!(names.contains("/version") && !names.contains("POST") && !names.contains("HTTP"), "{names:?}");
}

/// As with a workload's token, which the platform renews in a file.
#[tokio::test]
async fn collector_gets_the_newest_token_from_a_file() {
    let (collector, file) = (Collector::start().await, std::env::temp_dir().join(format!("headers-{}", uuid::Uuid::new_v4())));
    std::fs::write(&file, "authorization=Bearer none").unwrap();
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
    let web = deploy.with("OTEL_EXPORTER_OTLP_HEADERS_FILE", file.display()).web().await;
    for token in ["first", "second"] {
        // Values are percent-encoded, as OpenTelemetry demands.
        std::fs::write(&file, format!("authorization=Bearer%20{token}\n")).unwrap();
        eventually(token, async || {
            web.get("/version").await;
            (collector.header("authorization") == Some(format!("Bearer {token}"))).then_some(())
        })
        .await;
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn only_a_trusted_proxy_sets_the_trace() {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for (proxies, joins) in [(0, false), (1, true)] {
        let web = Deploy::new().await.with("TRUSTED_PROXIES", proxies).web().await;
        let ask = client().get(format!("{}/version", web.url)).header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
        let id = ask.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
        let line = web.process.logged("the access line", |line| line["request_id"] == id.as_str()).await;
        assert_eq!(line["trace_id"] == trace, joins, "{line}");
        assert_eq!(line["trace_id"].as_str().unwrap().len(), 32);
    }
}

#[tokio::test]
async fn service_name_appears_in_all_telemetry() {
    for (variable, name) in [(None, "app"), (Some("orders"), "orders")] {
        let collector = Collector::start().await;
        let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
        let deploy = if let Some(variable) = variable { deploy.with("OTEL_SERVICE_NAME", variable) } else { deploy };
        let (mut web, mut worker, mut clock) = (deploy.web().await, deploy.start("worker"), deploy.start("clock"));
        assert_eq!(web.get("/version").await.json::<serde_json::Value>().await.unwrap()["service"], name);
        Person::verified(&deploy, &web).await;
        clock.says("is new").await;
        let missed = "UPDATE schedules SET last_tick = last_tick - interval '3 days'";
        sqlx::query(missed).execute(&mut deploy.database().await).await.unwrap();
        clock.says("ticked").await;
        let expected = BTreeSet::from(["web", "worker", "clock"].map(str::to_owned));
        eventually("spans of all three", async || {
            let sent: BTreeSet<_> = collector.spans().into_iter().map(|span| span.process).collect();
            (sent == expected).then_some(())
        })
        .await;
        for process in [&mut web.process, &mut worker, &mut clock] {
            process.terminate().await;
            for line in process.log() {
                assert_eq!(line["service"], name, "{line}");
            }
        }
        assert!(collector.spans().iter().all(|span| span.service == name), "{:?}", collector.spans());
    }
}

#[tokio::test]
async fn unsampled_traces_are_not_exported() {
    let collector = Collector::start().await;
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_BSP_SCHEDULE_DELAY", 50);
    let mut web = deploy.with("OTEL_TRACES_SAMPLER", "always_off").web().await;
    let answer = web.get("/version").await;
    assert_eq!(answer.status(), 200);
    web.process.logged("the trace id is logged anyway", |line| line["route"] == "/version" && line["trace_id"].is_string()).await;
    web.process.terminate().await;
    assert!(collector.spans().is_empty());
}

#[tokio::test]
async fn closed_idle_connection_loses_no_spans() {
    let collector = Collector::start().await;
    let proxy = Proxy::to(collector.url.trim_start_matches("http://").to_owned()).await;
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", proxy.address));
    let web = deploy.with("OTEL_BSP_SCHEDULE_DELAY", 50).web().await;
    for round in 1..=5 {
        web.get("/version").await;
        // A span whose response was cut off is sent twice.
        let sent = || collector.spans().into_iter().filter(|span| span.name == "/version").map(|span| span.id).collect::<BTreeSet<_>>();
        eventually("its span", async || (sent().len() == round).then_some(())).await;
        proxy.cut();
        eventually("no connection", async || (proxy.connections() == 0).then_some(())).await;
        proxy.heal();
        eventually("it listens", async || TcpStream::connect(proxy.address).await.ok()).await;
    }
}

#[tokio::test]
async fn failing_collector_delays_no_request_or_exit() {
    let collector = Collector::start().await;
    let proxy = Proxy::to(collector.url.trim_start_matches("http://").to_owned()).await;
    let deploy = Deploy::new().await.with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", proxy.address));
    let deploy = deploy.with("OTEL_BSP_SCHEDULE_DELAY", 50);
    for fault in [Proxy::stall, Proxy::cut] {
        let mut web = deploy.web().await;
        fault(&proxy);
        let started = Instant::now();
        for _ in 0..50 {
            assert_eq!(web.get("/version").await.status(), 200);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        let started = Instant::now();
        web.process.terminate().await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        proxy.heal();
    }
}
