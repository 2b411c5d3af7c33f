//! An OpenTelemetry collector that decodes the spans it receives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;

#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    /// The resource's `service.name`.
    pub service: String,
    /// The resource's `process.type`.
    pub process: String,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    headers: BTreeMap<String, String>,
}

pub struct Collector {
    pub url: String,
    received: Arc<Mutex<Received>>,
}

impl Collector {
    pub async fn start() -> Self {
        let received = Arc::new(Mutex::new(Received::default()));
        let kept = received.clone();
        let routes =
            axum::Router::new().route("/v1/traces", post(async move |headers: HeaderMap, body: Bytes| keep(&kept, &headers, body)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, received }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("no panic while locked").spans.clone()
    }

    /// A header of the latest request.
    pub fn header(&self, name: &str) -> Option<String> {
        self.received.lock().expect("no panic while locked").headers.get(name).cloned()
    }
}

fn keep(kept: &Mutex<Received>, headers: &HeaderMap, body: Bytes) {
    let hex = |bytes: &[u8]| {
        bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect::<String>()
    };
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let mut kept = kept.lock().expect("no panic while locked");
    kept.headers = headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect();
    for resource in request.resource_spans {
        let attributes = resource.resource.expect("a resource").attributes;
        let text = |key: &str| {
            let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
            match attribute.value.clone()?.value? {
                Value::StringValue(text) => Some(text),
                _ => None,
            }
        };
        let (service, process) = (text("service.name").unwrap_or_default(), text("process.type").unwrap_or_default());
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let (trace, id, parent) = (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
            kept.spans.push(Span { trace, id, parent, name: span.name, service: service.clone(), process: process.clone() });
        }
    }
}
