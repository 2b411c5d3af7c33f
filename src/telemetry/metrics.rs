//! The metrics of a process, in the Prometheus text format. Names follow OpenTelemetry's semantic conventions where
//! these have one.
//!
//! No label takes a value from a client. The label of a route is its template, and that of a job a registered kind.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::release::Release;

/// Upper bounds of the buckets for the duration of a request, in seconds.
const REQUEST_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds of the buckets for the duration and the wait of a job, in seconds.
const JOB_SECONDS: [f64; 12] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0];

/// How many hosts have a label of their own in the metrics of outgoing requests. The config names fewer, but the
/// services there may name others.
const MAX_HOST_LABELS: usize = 20;

/// Upper bounds of the buckets for the duration of an operation on the object store, in seconds.
const STORAGE_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Names and values of labels.
pub type Labels<const N: usize> = [(&'static str, String); N];

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// Updates metrics whenever they are read.
type Sampler = Box<dyn Fn(&Metrics) + Send>;

/// The labels of a request.
#[expect(clippy::struct_field_names, reason = "the semantic conventions name them")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    http_request_method: &'static str,
    http_route: String,
    http_response_status_code: u16,
}

/// The metrics of one process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    registry: Mutex<Registry>,
    requests: Times<Request>,
    requests_in_flight: Gauge,
    rate_limited: Counter,
    calls: Times<Labels<2>>,
    hosts: Mutex<BTreeSet<String>>,
    runs: Times<Labels<2>>,
    waits: Times<Labels<1>>,
    lost: Family<Labels<1>, Counter>,
    queued: Family<Labels<2>, Gauge>,
    oldest: Family<Labels<1>, Gauge>,
    ticks: Family<Labels<1>, Counter>,
    ticks_missed: Family<Labels<1>, Counter>,
    last_look: Gauge,
    last_count: Gauge,
    mails: Family<Labels<1>, Counter>,
    storage_operations: Family<Labels<2>, Counter>,
    storage_times: Times<Labels<1>>,
    storage_written: Counter,
    ready: Gauge,
    event_streams: Gauge,
    connections: Family<Labels<2>, Gauge>,
    pending: Family<Labels<1>, Gauge>,
    log_lost: Counter,
    samplers: Mutex<Vec<Sampler>>,
}

impl Metrics {
    pub fn new(release: &Release) -> Self {
        let jobs = || Histogram::new(JOB_SECONDS);
        let shared = Shared {
            registry: Mutex::default(),
            requests: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            requests_in_flight: Gauge::default(),
            rate_limited: Counter::default(),
            calls: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            hosts: Mutex::default(),
            runs: Family::new_with_constructor(jobs),
            waits: Family::new_with_constructor(jobs),
            lost: Family::default(),
            queued: Family::default(),
            oldest: Family::default(),
            ticks: Family::default(),
            ticks_missed: Family::default(),
            last_look: Gauge::default(),
            last_count: Gauge::default(),
            mails: Family::default(),
            storage_operations: Family::default(),
            storage_times: Family::new_with_constructor(|| Histogram::new(STORAGE_SECONDS)),
            storage_written: Counter::default(),
            ready: Gauge::default(),
            event_streams: Gauge::default(),
            connections: Family::default(),
            pending: Family::default(),
            log_lost: Counter::default(),
            samplers: Mutex::default(),
        };
        let mut registry = shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let build = [("commit", release.commit), ("release", release.release.as_deref().unwrap_or("")), ("process", release.process)];
        let build: Vec<_> = build.map(|(name, value)| (name, value.to_owned())).into();
        registry.register("build", "The code and the release that run", Info::new(build));
        let s = Unit::Seconds;
        registry.register_with_unit("http_server_request_duration", "Duration of a request", s.clone(), shared.requests.clone());
        registry.register("http_server_active_requests", "Requests in flight", shared.requests_in_flight.clone());
        registry.register("http_server_rate_limited", "Requests that were refused with 429", shared.rate_limited.clone());
        registry.register_with_unit("http_client_request_duration", "Duration of an outgoing request", s.clone(), shared.calls.clone());
        registry.register_with_unit("jobs_run", "Duration of an attempt at a job", s.clone(), shared.runs.clone());
        registry.register_with_unit("jobs_wait", "How long a due job waits for a worker", s.clone(), shared.waits.clone());
        registry.register("jobs_lost", "Attempts whose worker was lost", shared.lost.clone());
        registry.register("jobs_queued", "Jobs in the queue, counted by a clock", shared.queued.clone());
        registry.register_with_unit("jobs_oldest", "How long the oldest ready job has been due", s.clone(), shared.oldest.clone());
        registry.register("schedule_ticks", "Ticks that enqueued a job", shared.ticks.clone());
        registry.register("schedule_ticks_missed", "Ticks that passed while no clock ran", shared.ticks_missed.clone());
        let times = shared.storage_times.clone();
        registry.register_with_unit("storage_operation_duration", "How long an operation on the object store took", s.clone(), times);
        registry.register("storage_operations", "Operations on the object store, by outcome", shared.storage_operations.clone());
        registry.register_with_unit("storage_written", "Bytes written to the object store", Unit::Bytes, shared.storage_written.clone());
        registry.register_with_unit(
            "schedule_last_look_timestamp",
            "When the clock last checked the schedule",
            s,
            shared.last_look.clone(),
        );
        let counted = "When the clock last counted the queue";
        registry.register_with_unit("jobs_last_count_timestamp", counted, Unit::Seconds, shared.last_count.clone());
        registry.register("mails", "Mails by outcome", shared.mails.clone());
        registry.register("event_streams", "Open event streams", shared.event_streams.clone());
        registry.register("ready", "1 while /readyz says that the process is ready", shared.ready.clone());
        registry.register("db_client_connection_count", "Connections of a pool, by state", shared.connections.clone());
        registry.register("db_client_connection_pending_requests", "Callers that wait for a connection", shared.pending.clone());
        registry.register("log_lines_lost", "Log lines that were lost because the stream's reader was too slow", shared.log_lost.clone());
        #[cfg(target_os = "linux")]
        registry.register_collector(Box::new(super::process_metrics::Process));
        drop(registry);
        Self(Arc::new(shared))
    }

    /// All metrics in the Prometheus text format.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        for sample in self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sample(self);
        }
        let mut text = String::new();
        encode(&mut text, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }

    /// Registers a function that updates metrics whenever they are read.
    pub fn sample(&self, look: impl Fn(&Self) + Send + 'static) {
        self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// Counts a request as in flight until the returned guard is dropped.
    pub fn request_begins(&self) -> InFlight {
        self.0.requests_in_flight.inc();
        InFlight(self.0.requests_in_flight.clone())
    }

    /// Records a finished request. Unknown methods share one label (semantic conventions: `_OTHER`).
    pub fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let http_request_method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            _ => "_OTHER",
        };
        let labels = Request { http_request_method, http_route: route.to_owned(), http_response_status_code: status.as_u16() };
        self.0.requests.get_or_create(&labels).observe(took.as_secs_f64());
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.0.rate_limited.inc();
        }
    }

    /// Records an outgoing request. `host` is None if a user named it. Too many hosts share one label.
    pub fn call(&self, host: Option<&str>, outcome: String, took: Duration) {
        let mut hosts = self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let label = host.filter(|host| hosts.contains(*host) || (hosts.len() < MAX_HOST_LABELS && hosts.insert((*host).to_owned())));
        drop(hosts);
        let labels = [("server_address", label.unwrap_or("_OTHER").to_owned()), ("outcome", outcome)];
        self.0.calls.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Records the start of an attempt at a job, and how long the job had been due.
    pub fn job_begins(&self, kind: &str, waited: Duration) {
        self.0.waits.get_or_create(&[("kind", kind.to_owned())]).observe(waited.as_secs_f64());
    }

    /// Records the end of an attempt at a job.
    pub fn job_ends(&self, kind: &str, outcome: &str, took: Duration) {
        self.0.runs.get_or_create(&[("kind", kind.to_owned()), ("outcome", outcome.to_owned())]).observe(took.as_secs_f64());
    }

    /// Counts an attempt at a job whose worker was lost.
    pub fn job_lost(&self, kind: &str) {
        self.0.lost.get_or_create(&[("kind", kind.to_owned())]).inc();
    }

    /// Sets the metrics of the queue. For each kind and state, `counts` has the number of jobs and for how many seconds
    /// the first has been due.
    pub fn queue<'a>(&self, counts: impl Iterator<Item = (&'a str, &'a str, i64, i64)>) {
        // Locked, so that no reader sees half of the update.
        let _registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.last_count.set(now());
        self.0.queued.clear();
        self.0.oldest.clear();
        for (kind, state, jobs, late_s) in counts {
            self.0.queued.get_or_create(&[("kind", kind.to_owned()), ("state", state.to_owned())]).set(jobs);
            if state == "ready" {
                self.0.oldest.get_or_create(&[("kind", kind.to_owned())]).set(late_s);
            }
        }
    }

    /// Records that a clock has just checked the schedule.
    pub fn looked(&self) {
        self.0.last_look.set(now());
    }

    /// Records a tick that enqueued a job, and how many ticks before it were missed.
    pub fn tick(&self, schedule: &str, missed: u64) {
        let labels = [("schedule", schedule.to_owned())];
        self.0.ticks.get_or_create(&labels).inc();
        self.0.ticks_missed.get_or_create(&labels).inc_by(missed);
    }

    /// Counts a mail by outcome: `sent`, `delayed` or `refused` by the mail server, or `held_back` by a limit.
    pub fn mail(&self, outcome: &str) {
        self.0.mails.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// Registers a counter that lives elsewhere.
    pub fn counter(&self, name: &str, help: &str, counter: Counter) {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, counter);
    }

    /// Shows the requests to the cache, which it counts by outcome.
    pub fn cache(&self, requests: Family<Labels<1>, Counter>) {
        let mut registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("cache_requests", "Requests to the cache by outcome", requests);
    }

    /// Counts an operation on the object store. The outcome is `done`, `missing` (no such object) or `failed`.
    pub fn storage_operation(&self, operation: &str, outcome: &str, took: Duration) {
        let label = ("operation", operation.to_owned());
        self.0.storage_operations.get_or_create(&[label.clone(), ("outcome", outcome.to_owned())]).inc();
        self.0.storage_times.get_or_create(&[label]).observe(took.as_secs_f64());
    }

    /// Counts bytes written to the object store.
    pub fn storage_written(&self, bytes: usize) {
        self.0.storage_written.inc_by(bytes as u64);
    }

    /// Counts lost log lines.
    pub fn log_lost(&self, lines: u64) {
        self.0.log_lost.inc_by(lines);
    }

    /// Sets whether the process is ready.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(ready.into());
    }

    /// Sets the number of open event streams.
    pub fn event_streams(&self, number: usize) {
        self.0.event_streams.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Sets the numbers of a pool's connections and of the callers that wait for one.
    pub fn pool(&self, pool: &str, used: usize, idle: usize, pending: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (state, number) in [("used", used), ("idle", idle)] {
            self.0.connections.get_or_create(&[("pool", pool.to_owned()), ("state", state.to_owned())]).set(count(number));
        }
        self.0.pending.get_or_create(&[("pool", pool.to_owned())]).set(count(pending));
    }
}

/// The time in Unix seconds.
#[expect(clippy::disallowed_methods, reason = "a metric's time is the machine's own")]
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Counts a request as in flight until it is dropped.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
