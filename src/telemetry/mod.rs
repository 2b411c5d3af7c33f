//! The log (factor XI): one JSON object a line, on the stream that the process was given, and nowhere else.
//!
//! A line has `timestamp`, `level`, `message`, `target`, `service`, `process`, `instance`, `release` and `commit`, then the fields
//! of the spans around the event, then its own. Routing, keeping and searching are the platform's.

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

use crate::config::{self, LogFormat};
use crate::release::{COMMIT, Release};

pub use stream::Stream;
use stream::{Lines, Writing};

/// The log of a process, until it is dropped; what waits is written then.
pub struct Log {
    lines: Lines,
    _traces: Option<traces::Export>,
    _writing: Writing,
}

impl Log {
    /// Tells how many lines were lost, in the log and in the metrics, for as long as it is polled.
    pub fn report_lost(&self, metrics: metrics::Metrics) -> impl Future<Output = ()> + Send + 'static {
        let lines = self.lines.clone();
        async move {
            let mut told = 0;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let lost = lines.lost();
                if lost > told {
                    metrics.log_lost(lost - told);
                    warn!(lost = lost - told, "{} log line(s) were lost, since nobody read them in time", lost - told);
                    told = lost;
                }
            }
        }
    }
}

/// Starts the log of this process; the subscriber is the one global that there is.
pub fn start(process: &'static str, config: &config::Process, stream: Stream) -> (Release, Log) {
    let (service, release) = (config.otel_service_name.clone(), config.release_version.clone());
    let release = Release { service, commit: COMMIT, release, process };
    let (lines, writing) = Lines::to(stream);
    let writer = lines.clone();
    let log = match config.log_format {
        LogFormat::Pretty => {
            SpanFields.and_then(tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_target(false)).boxed()
        }
        LogFormat::Json => SpanFields.and_then(JsonLines { release: release.clone(), instance: instance(config), lines: writer }).boxed(),
    };
    let registry = tracing_subscriber::registry().with(log.with_filter(config.log_level.0.clone().and(each_time())));
    let (layer, traces, broken) = match traces::layer(config, &release) {
        Ok(Some((layer, export))) => (Some(layer), Some(export), None),
        Ok(None) => (None, None, None),
        Err(e) => (None, None, Some(e)),
    };
    // `try_init` fails only where a subscriber is set already, and then that one logs.
    let _ = registry.with(layer).try_init();
    if let Some(e) = broken {
        warn!(error = format!("{e:#}"), "no traces are sent: {e:#}");
    }
    (release, Log { lines, _traces: traces, _writing: writing })
}

/// Has a filter asked anew for each span and event. Where its answer for a place in the code is remembered instead, a
/// library that asked for another place, on the same thread and in the instant in which that was first met, leaves its
/// answer behind, and the next span would be taken for filtered out: all its lines would lack the request's id.
fn each_time<S>() -> DynFilterFn<S> {
    // Without this hint events of all levels would be looked at, which the log's own filter leaves out at once.
    let all: fn(&Metadata<'_>, &Context<'_, S>) -> bool = |_, _| true;
    dynamic_filter_fn(all).with_max_level_hint(LevelFilter::TRACE)
}

fn instance(config: &config::Process) -> String {
    let host = config.hostname.clone().or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    config.dyno.clone().unwrap_or_else(|| format!("{}:{}", host.as_deref().unwrap_or("localhost").trim(), std::process::id()))
}

/// A field of the spans around the caller, such as the id of the request that it serves.
pub fn current_field(name: &str) -> Option<String> {
    tracing::Span::current()
        .with_subscriber(|(id, subscriber)| {
            let span = subscriber.downcast_ref::<Registry>()?.span(id)?;
            span.scope().find_map(|span| Some(span.extensions().get::<Fields>()?.get(name)?.as_str()?.to_owned()))
        })
        .flatten()
}

/// The layer that keeps the fields of spans, for lines and for [`current_field`].
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

/// The layer that writes events as JSON.
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
        // Some libraries have fields to tell, and no words.
        let words = fields.get("message").and_then(Value::as_str).unwrap_or(event.metadata().name());
        map.serialize_entry("message", words)?;
        map.serialize_entry("target", event.metadata().target())?;
        map.serialize_entry("service", &self.release.service)?;
        map.serialize_entry("process", self.release.process)?;
        map.serialize_entry("instance", &self.instance)?;
        map.serialize_entry("release", &self.release.release)?;
        map.serialize_entry("commit", self.release.commit)?;
        let mut told = vec!["message"];
        fields.tell(&mut map, &mut told)?;
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.tell(&mut map, &mut told)?;
            }
        }
        map.end()?;
        Ok(line)
    }
}

/// The fields of a span or an event as JSON, few enough to be searched one by one.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find_map(|(known, value)| (*known == name).then_some(value))
    }

    /// Adds those to a line that it does not have yet: the innermost says it, what repeats it is left out.
    fn tell<M: SerializeMap>(&self, line: &mut M, told: &mut Vec<&'static str>) -> Result<(), M::Error> {
        for (name, value) in &self.0 {
            if told.contains(name) {
                continue;
            }
            told.push(name);
            match *name {
                // The trace's id is what people search for.
                "traceparent" => line.serialize_entry("trace_id", value.as_str().and_then(|text| text.get(3..35)).unwrap_or_default())?,
                name => line.serialize_entry(name, value)?,
            }
        }
        Ok(())
    }

    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        // What is for traces alone.
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
