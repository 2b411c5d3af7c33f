//! The log (factor XI): one JSON object a line, written to the process's output stream and nowhere else.
//!
//! A line has `timestamp`, `level`, `message`, `target`, `service`, `process`, `instance`, `release` and `commit`, then
//! the event's own fields, then those of the spans around it. The platform routes, stores and searches the log.

pub mod feature_counters;
pub mod metrics;
#[cfg(target_os = "linux")]
mod process_metrics;
mod stream;
pub mod traces;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber, warn};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{DynFilterFn, FilterExt, LevelFilter, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Env, LogFormat};
use crate::release::{COMMIT, Release};

use metrics::Metrics;
pub use stream::Stream;
use stream::{Lines, Writing};

/// The log of a process. When it is dropped, it writes the queued lines.
pub struct Log {
    lines: Lines,
    _traces: Option<traces::Export>,
    _writing: Writing,
}

impl Log {
    /// Reports lost lines in the log and in the metrics for as long as it is polled.
    pub fn report_lost(&self, metrics: Metrics) -> impl Future<Output = ()> + Send + 'static {
        let lines = self.lines.clone();
        async move {
            let mut reported = 0;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let lost = lines.lost();
                if lost > reported {
                    metrics.log_lost(lost - reported);
                    warn!(lost = lost - reported, "{} log line(s) were lost: the stream's reader is too slow", lost - reported);
                    reported = lost;
                }
            }
        }
    }
}

/// Starts the log, the metrics and the traces of this process. The subscriber is this program's only global state.
/// Traces go to the collector over what `connect` returns.
pub fn start(
    process: &'static str,
    config: &config::Process,
    env: &Env,
    stream: Stream,
    connect: traces::Connect,
) -> (Release, Metrics, Log) {
    let (service, release) = (config.otel_service_name.clone(), config.release_version.clone());
    let release = Release { service, commit: COMMIT, release, process };
    let metrics = Metrics::new(&release);
    let (lines, writing) = Lines::to(stream);
    let writer = lines.clone();
    let log = match config.log_format {
        LogFormat::Pretty => {
            SpanFields.and_then(tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_target(false)).boxed()
        }
        LogFormat::Json => SpanFields.and_then(JsonLines { release: release.clone(), instance: instance(config), lines: writer }).boxed(),
    };
    let registry = tracing_subscriber::registry().with(log.with_filter(config.log_level.0.clone().and(each_time())));
    let (layer, traces, broken) = match traces::layer(config, env, &release, &metrics, connect) {
        Ok(Some((layer, export))) => (Some(layer), Some(export), None),
        Ok(None) => (None, None, None),
        Err(e) => (None, None, Some(e)),
    };
    // `try_init` fails only if a subscriber is already set, and then that one logs.
    let _ = registry.with(layer).try_init();
    if let Some(e) = broken {
        warn!(error = format!("{e:#}"), "cannot send traces: {e:#}");
    }
    (release, metrics, Log { lines, _traces: traces, _writing: writing })
}

/// Makes tracing evaluate a filter for each span and event, instead of caching its result for each callsite. The cache
/// has a race: if a library registers another callsite on the same thread at the same moment, its result is left
/// behind. Then the next span counts as filtered out, and all of its lines lack the request's id.
fn each_time<S>() -> DynFilterFn<S> {
    // Without this hint, events of all levels would be evaluated, even those that the log's own filter drops at once.
    let all: fn(&Metadata<'_>, &Context<'_, S>) -> bool = |_, _| true;
    dynamic_filter_fn(all).with_max_level_hint(LevelFilter::TRACE)
}

fn instance(config: &config::Process) -> String {
    let host = config.hostname.clone().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    config.dyno.clone().unwrap_or_else(|| format!("{}:{}", host.as_deref().unwrap_or("localhost").trim(), std::process::id()))
}

/// A field of the current spans, such as the id of the request that the caller serves.
pub fn current_field(name: &str) -> Option<String> {
    tracing::Span::current()
        .with_subscriber(|(id, subscriber)| {
            let span = subscriber.downcast_ref::<Registry>()?.span(id)?;
            span.scope().find_map(|span| Some(span.extensions().get::<Fields>()?.get(name)?.as_str()?.to_owned()))
        })
        .flatten()
}

/// The layer that stores the fields of spans, for log lines and for [`current_field`].
struct SpanFields;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }
}

/// The layer that writes events as JSON. A name that an event and its spans share is written once. The layers of
/// `tracing-subscriber` and `json-subscriber` nest the spans' fields, or write such a name twice (RFC 8259, 4).
struct JsonLines {
    release: Release,
    instance: String,
    lines: Lines,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if let Ok(mut line) = self.line(event, &context) {
            line.push(b'\n');
            self.lines.send(line);
        }
    }
}

impl JsonLines {
    fn line<S: Subscriber + for<'a> LookupSpan<'a>>(&self, event: &Event<'_>, context: &Context<'_, S>) -> serde_json::Result<Vec<u8>> {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Vec::with_capacity(1024);
        let mut json = serde_json::Serializer::new(&mut line);
        let mut map = json.serialize_map(None)?;
        #[expect(clippy::disallowed_methods, reason = "a log line's time is the machine's own")]
        let now = Timestamp::now();
        map.serialize_entry("timestamp", &format_args!("{now:.6}"))?;
        map.serialize_entry("level", event.metadata().level().as_str())?;
        // Some libraries log fields without a message.
        let message = fields.get("message").and_then(Value::as_str).unwrap_or(event.metadata().name());
        map.serialize_entry("message", message)?;
        map.serialize_entry("target", event.metadata().target())?;
        map.serialize_entry("service", &self.release.service)?;
        map.serialize_entry("process", self.release.process)?;
        map.serialize_entry("instance", &self.instance)?;
        map.serialize_entry("release", &self.release.release)?;
        map.serialize_entry("commit", self.release.commit)?;
        let mut written = vec!["message"];
        fields.write(&mut map, &mut written)?;
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.write(&mut map, &mut written)?;
            }
        }
        map.end()?;
        Ok(line)
    }
}

/// The fields of a span or an event as JSON. They are few enough for a linear search.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find_map(|(known, value)| (*known == name).then_some(value))
    }

    /// Adds the fields that a line does not have yet. If a name repeats, the innermost span's field counts.
    fn write<M: SerializeMap>(&self, line: &mut M, written: &mut Vec<&'static str>) -> Result<(), M::Error> {
        for (name, value) in &self.0 {
            if written.contains(name) {
                continue;
            }
            written.push(name);
            match *name {
                // People search for the trace's id, not for the whole header.
                "traceparent" => line.serialize_entry("trace_id", value.as_str().and_then(|text| text.get(3..35)).unwrap_or_default())?,
                name => line.serialize_entry(name, value)?,
            }
        }
        Ok(())
    }

    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        // These fields are only for traces.
        if field.name().starts_with("otel.") {
            return;
        }
        self.0.retain(|(known, _)| *known != field.name());
        self.0.push((field.name(), value.into()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(value.source(), |cause| cause.source()).map(|cause| format!(": {cause}"));
        self.set(field, format!("{value}{}", causes.collect::<String>()));
    }
}
