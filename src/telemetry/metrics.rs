//! The metrics of a process, in the Prometheus text format, under the names of OpenTelemetry's semantic conventions where
//! these have one.
//!
//! No label takes a value from outside: a route is its template, a kind of job a registered one.

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

/// Upper ends of the buckets for what a request takes, in seconds.
const REQUEST_SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper ends of the buckets for what a job takes and waits, in seconds.
const JOB_SECONDS: [f64; 12] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0];

/// Upper ends of the buckets for what an operation on the object store takes, in seconds.
const STORAGE_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Names and values of labels.
pub type Labels<const N: usize> = [(&'static str, String); N];

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// Looks at something whenever the metrics are read.
type Sampler = Box<dyn Fn(&Metrics) + Send>;

/// The labels of a request.
#[expect(clippy::struct_field_names, reason = "the semantic conventions name them")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    http_request_method: &'static str,
    http_route: String,
    http_response_status_code: u16,
}

/// The metrics of one process, cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    registry: Mutex<Registry>,
    requests: Times<Request>,
    requests_in_flight: Gauge,
    rate_limited: Counter,
    runs: Times<Labels<2>>,
    waits: Times<Labels<1>>,
    lost: Family<Labels<1>, Counter>,
    queued: Family<Labels<2>, Gauge>,
    oldest: Family<Labels<1>, Gauge>,
    ticks: Family<Labels<1>, Counter>,
    ticks_missed: Family<Labels<1>, Counter>,
    last_look: Gauge,
    mails: Family<Labels<1>, Counter>,
    storage: Family<Labels<2>, Counter>,
    storage_times: Times<Labels<1>>,
    stored: Counter,
    ready: Gauge,
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
            runs: Family::new_with_constructor(jobs),
            waits: Family::new_with_constructor(jobs),
            lost: Family::default(),
            queued: Family::default(),
            oldest: Family::default(),
            ticks: Family::default(),
            ticks_missed: Family::default(),
            last_look: Gauge::default(),
            mails: Family::default(),
            storage: Family::default(),
            storage_times: Family::new_with_constructor(|| Histogram::new(STORAGE_SECONDS)),
            stored: Counter::default(),
            ready: Gauge::default(),
            connections: Family::default(),
            pending: Family::default(),
            log_lost: Counter::default(),
            samplers: Mutex::default(),
        };
        let mut registry = shared.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let build = [("commit", release.commit), ("release", release.release.as_deref().unwrap_or("")), ("process", release.process)];
        let build: Vec<_> = build.map(|(name, value)| (name, value.to_owned())).into();
        registry.register("build", "Which code and which release runs", Info::new(build));
        let s = Unit::Seconds;
        registry.register_with_unit("http_server_request_duration", "What a request takes", s.clone(), shared.requests.clone());
        registry.register("http_server_active_requests", "Requests that are being answered", shared.requests_in_flight.clone());
        registry.register("http_server_rate_limited", "Requests that were refused as too many", shared.rate_limited.clone());
        registry.register_with_unit("jobs_run", "What an attempt at a job takes", s.clone(), shared.runs.clone());
        registry.register_with_unit("jobs_wait", "How long a job that is due waits for a worker", s.clone(), shared.waits.clone());
        registry.register("jobs_lost", "Attempts that ended with their worker", shared.lost.clone());
        registry.register("jobs_queued", "Jobs in the queue, as a clock sees it", shared.queued.clone());
        registry.register_with_unit("jobs_oldest", "How long the oldest job has been due", s.clone(), shared.oldest.clone());
        registry.register("schedule_ticks", "Ticks that were turned into jobs", shared.ticks.clone());
        registry.register("schedule_ticks_missed", "Ticks that passed while no clock ran", shared.ticks_missed.clone());
        let times = shared.storage_times.clone();
        registry.register_with_unit("storage_operation_duration", "What an operation on the object store takes", s.clone(), times);
        registry.register("storage_operations", "Operations on the object store, by what became of them", shared.storage.clone());
        registry.register_with_unit("storage_written", "What was written to the object store", Unit::Bytes, shared.stored.clone());
        registry.register_with_unit("schedule_last_look_timestamp", "When the clock last looked", s, shared.last_look.clone());
        registry.register("mails", "Mails by what the server said", shared.mails.clone());
        registry.register("ready", "1 while the process is ready, as /readyz says it", shared.ready.clone());
        registry.register("db_client_connection_count", "Connections of a pool, by state", shared.connections.clone());
        registry.register("db_client_connection_pending_requests", "Callers who wait for a connection", shared.pending.clone());
        registry.register("log_lines_lost", "Lines of the log that nobody read in time", shared.log_lost.clone());
        #[cfg(target_os = "linux")]
        registry.register_collector(Box::new(super::process_metrics::Process));
        drop(registry);
        Self(Arc::new(shared))
    }

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// A metric cannot be written as text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        for sample in self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sample(self);
        }
        let mut text = String::new();
        encode(&mut text, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }

    /// Has something looked at whenever the metrics are read.
    pub fn sample(&self, look: impl Fn(&Self) + Send + 'static) {
        self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// A request is being answered, until what this returns is dropped.
    pub fn request_begins(&self) -> InFlight {
        self.0.requests_in_flight.inc();
        InFlight(self.0.requests_in_flight.clone())
    }

    /// A request was answered. Methods that HTTP does not know are one (semantic conventions: `_OTHER`).
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

    /// An attempt at a job begins, so long after it was due.
    pub fn job_begins(&self, kind: &str, waited: Duration) {
        self.0.waits.get_or_create(&[("kind", kind.to_owned())]).observe(waited.as_secs_f64());
    }

    /// An attempt at a job has ended.
    pub fn job_ends(&self, kind: &str, outcome: &str, took: Duration) {
        self.0.runs.get_or_create(&[("kind", kind.to_owned()), ("outcome", outcome.to_owned())]).observe(took.as_secs_f64());
    }

    /// An attempt at a job ended with its worker, which nobody saw.
    pub fn job_lost(&self, kind: &str) {
        self.0.lost.get_or_create(&[("kind", kind.to_owned())]).inc();
    }

    /// The whole queue: of each kind and state the number of jobs, and for how many seconds the first has been due.
    pub fn queue<'a>(&self, counts: impl Iterator<Item = (&'a str, &'a str, i64, i64)>) {
        // Nobody reads while half of it is there.
        let _registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.queued.clear();
        self.0.oldest.clear();
        for (kind, state, jobs, late_s) in counts {
            self.0.queued.get_or_create(&[("kind", kind.to_owned()), ("state", state.to_owned())]).set(jobs);
            if state == "ready" {
                self.0.oldest.get_or_create(&[("kind", kind.to_owned())]).set(late_s);
            }
        }
    }

    /// A clock has looked at the schedule, now.
    pub fn looked(&self) {
        #[expect(clippy::disallowed_methods, reason = "a metric's time is the machine's own")]
        self.0.last_look.set(jiff::Timestamp::now().as_second());
    }

    /// A tick was turned into a job; so many before it were missed.
    pub fn tick(&self, schedule: &str, missed: u64) {
        let labels = [("schedule", schedule.to_owned())];
        self.0.ticks.get_or_create(&labels).inc();
        self.0.ticks_missed.get_or_create(&labels).inc_by(missed);
    }

    /// What became of a mail: `sent`, `delayed`, `refused` by the mail server, or `held_back` here.
    pub fn mail(&self, outcome: &str) {
        self.0.mails.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// An operation on the object store has ended: `done`, `missing` (there is no such object) or `failed`.
    pub fn storage(&self, operation: &str, outcome: &str, took: Duration) {
        let label = ("operation", operation.to_owned());
        self.0.storage.get_or_create(&[label.clone(), ("outcome", outcome.to_owned())]).inc();
        self.0.storage_times.get_or_create(&[label]).observe(took.as_secs_f64());
    }

    /// So many bytes were written to the object store.
    pub fn stored(&self, bytes: usize) {
        self.0.stored.inc_by(bytes as u64);
    }

    /// Lines of the log were lost.
    pub fn log_lost(&self, lines: u64) {
        self.0.log_lost.inc_by(lines);
    }

    /// Whether the process is ready.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(ready.into());
    }

    /// The connections of a pool.
    pub fn pool(&self, pool: &str, used: usize, idle: usize, pending: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (state, number) in [("used", used), ("idle", idle)] {
            self.0.connections.get_or_create(&[("pool", pool.to_owned()), ("state", state.to_owned())]).set(count(number));
        }
        self.0.pending.get_or_create(&[("pool", pool.to_owned())]).set(count(pending));
    }
}

/// A request that is being answered.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
