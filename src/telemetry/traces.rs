//! Traces (W3C Trace Context). Every request and every job is part of a trace. Its id is on their log lines and is
//! passed on to the jobs and mails that follow from them. With the feature `otel` and `OTEL_EXPORTER_OTLP_ENDPOINT`,
//! spans are sent to a collector. No request or job waits for that, and spans that the collector does not accept are
//! lost. The ids are on log lines without `otel` too, so the propagator of `opentelemetry` is not used.

use std::fmt;

use axum::body::Bytes;
use axum::http::{Request, Response};
use serde_json::{Value, json};
use tracing::Span;
use uuid::Uuid;

use super::current_field;
use super::metrics::Metrics;

/// Sends one request to the collector and waits for the response. The exporter calls it on a thread of its own.
pub type Transport = Box<dyn Fn(Request<Bytes>) -> anyhow::Result<Response<Bytes>> + Send + Sync>;

/// Prepares a [`Transport`], if traces are sent at all.
pub type Connect = fn(&Metrics) -> anyhow::Result<Transport>;

/// A position in a trace, as in the header `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    trace: u128,
    span: u64,
    flags: u8,
}

impl Place {
    /// Parses version 00, or a later one, which begins in the same way (W3C Trace Context, 3.2).
    fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let mut hex = |length: usize| {
            let part = parts.next().filter(|part| part.len() == length)?;
            let lower = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            lower.then(|| u128::from_str_radix(part, 16).ok()).flatten()
        };
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let place = Self { trace, span: span.try_into().ok()?, flags: flags.try_into().ok()? };
        (version != 0xff && place.trace != 0 && place.span != 0 && (version != 0 || parts.next().is_none())).then_some(place)
    }
}

impl Place {
    /// A position below a parent, or in a new trace.
    fn below(parent: Option<Self>) -> Self {
        let (trace, span) = (Uuid::new_v4().as_u128(), Uuid::new_v4().as_u64_pair().1);
        parent.map_or(Self { trace, span, flags: 0 }, |parent| Self { span, ..parent })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Makes a span part of the trace that a `traceparent` names, or of a new trace. The span's field `traceparent` then
/// has its own position.
pub fn join(span: &Span, traceparent: Option<&str>) {
    let parent = traceparent.and_then(Place::parse);
    let own = exported(span, parent).unwrap_or_else(|| Place::below(parent));
    span.record("traceparent", tracing::field::display(own));
}

/// The `traceparent` of an outgoing request: the position of its span, which is a child of the current span.
pub fn outgoing(span: &Span) -> String {
    let parent = current_field("traceparent").as_deref().and_then(Place::parse);
    exported(span, None).unwrap_or_else(|| Place::below(parent)).to_string()
}

/// The parts of the current request or job that are passed on to the jobs that it enqueues.
pub fn context() -> Option<Value> {
    let request_id = current_field("request_id")?;
    Some(json!({ "request_id": request_id, "traceparent": current_field("traceparent") }))
}

/// Makes a job's span continue the trace that [`context`] returned when the job was enqueued.
pub fn resume(span: &Span, context: Option<&Value>) {
    let text = |name| context.and_then(|context: &Value| context.get(name)?.as_str());
    if let Some(id) = text("request_id") {
        span.record("request_id", id);
    }
    join(span, text("traceparent"));
}

#[cfg(feature = "otel")]
pub use otel::*;

#[cfg(feature = "otel")]
mod otel {
    use std::fmt;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use axum::http::{HeaderName, HeaderValue};
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
    use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use percent_encoding::percent_decode_str;
    use secrecy::{ExposeSecret, SecretString};
    use tracing::{Level, Span, Subscriber};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::{FilterExt, filter_fn};
    use tracing_subscriber::registry::LookupSpan;

    use super::super::each_time;
    use super::super::metrics::Metrics;
    use super::{Connect, Place, Transport};
    use crate::config::{self, Env};
    use crate::release::Release;

    /// How long a process waits at its end for the collector.
    const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

    /// Sends the exporter's requests. It blocks the SDK's own thread.
    struct Client {
        transport: Transport,
        env: Env,
        /// The value of `OTEL_EXPORTER_OTLP_HEADERS` that was read last.
        headers: Mutex<Option<SecretString>>,
    }

    impl Client {
        /// The headers of this export, decoded as OpenTelemetry demands. They are read each time, because a platform renews a
        /// token in a file at any moment.
        fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
            let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
            // A file that is being written may be incomplete. Then the last value stays in use.
            if let Ok(now) = config::read::<config::Process>(&self.env) {
                *headers = now.otel_exporter_otlp_headers;
            }
            let pairs = headers.iter().flat_map(|headers| headers.expose_secret().split(','));
            let pairs = pairs.filter_map(|pair| pair.split_once('='));
            pairs
                .filter_map(|(name, value)| {
                    Some((name.trim().parse().ok()?, sensitive(&percent_decode_str(value.trim()).decode_utf8().ok()?)?))
                })
                .collect()
        }
    }

    /// A value that is never logged.
    fn sensitive(value: &str) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    impl fmt::Debug for Client {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Client")
        }
    }

    #[async_trait::async_trait]
    impl HttpClient for Client {
        async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
            // The SDK itself has added those that are in the environment.
            for (name, value) in self.headers() {
                request.headers_mut().entry(name).or_insert(value);
            }
            Ok((self.transport)(request)?)
        }
    }

    /// Sends the remaining spans when it is dropped.
    pub struct Export(SdkTracerProvider);

    impl Drop for Export {
        fn drop(&mut self) {
            // If the collector is unavailable, the spans are lost and the process exits all the same.
            let _ = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT);
        }
    }

    /// The layer that sends the spans of this crate, if the config names a collector. The SDK itself reads the other
    /// variables (`OTEL_TRACES_SAMPLER`, `OTEL_BSP_SCHEDULE_DELAY` …), as its specification says.
    ///
    /// # Errors
    /// The exporter or its transport cannot be built.
    pub fn layer<S>(
        config: &config::Process,
        env: &Env,
        release: &Release,
        metrics: &Metrics,
        connect: Connect,
    ) -> anyhow::Result<Option<(impl Layer<S>, Export)>>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        if !config.sends_traces() {
            return Ok(None);
        }
        let headers = Mutex::new(config.otel_exporter_otlp_headers.clone());
        let client = Client { transport: connect(metrics)?, env: env.clone(), headers };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        let resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", release.commit))
            .with_attribute(KeyValue::new("process.type", release.process))
            .with_service_name(release.service.clone());
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("app") && *metadata.level() <= Level::DEBUG);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("app")).with_location(false).with_threads(false);
        Ok(Some((layer.with_filter(ours.and(each_time())), Export(provider))))
    }

    /// Sets a span's parent. Returns the span's position if it is exported.
    pub(super) fn exported(span: &Span, parent: Option<Place>) -> Option<Place> {
        if let Some(Place { trace, span: parent, flags }) = parent {
            let (trace, parent) = (TraceId::from(trace), SpanId::from(parent));
            let remote = SpanContext::new(trace, parent, TraceFlags::new(flags), true, TraceState::default());
            span.set_parent(Context::new().with_remote_span_context(remote)).ok()?;
        }
        let context = span.context();
        let own = context.span().span_context().clone();
        own.is_valid().then(|| Place {
            trace: u128::from_be_bytes(own.trace_id().to_bytes()),
            span: u64::from_be_bytes(own.span_id().to_bytes()),
            flags: own.trace_flags().to_u8(),
        })
    }
}

#[cfg(not(feature = "otel"))]
pub use without::*;

/// Without the feature no traces are sent. A variable that requests them is an error, which is logged.
#[cfg(not(feature = "otel"))]
mod without {
    use tracing::Span;
    use tracing_subscriber::layer::Identity;

    use super::super::metrics::Metrics;
    use super::{Connect, Place};
    use crate::config::{self, Env};
    use crate::release::Release;

    pub struct Export;

    pub fn layer(config: &config::Process, _: &Env, _: &Release, _: &Metrics, _: Connect) -> anyhow::Result<Option<(Identity, Export)>> {
        anyhow::ensure!(!config.sends_traces(), "this program was built without the feature otel");
        Ok(None)
    }

    pub(super) fn exported(_: &Span, _: Option<Place>) -> Option<Place> {
        None
    }
}
