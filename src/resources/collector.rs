//! Calls the collector of traces. The exporter runs on a thread of its own, and still sends spans when the process's
//! runtime has ended. So its calls have a runtime of their own.

use anyhow::Context;
use axum::body::Bytes;
use axum::http::{Request, Response};
use tokio::runtime::{Builder, Runtime};

use super::http_client::{Error, HttpClient};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Transport;

struct Collector {
    client: HttpClient,
    runtime: Option<Runtime>,
}

/// Prepares the calls. `random` returns any number with the same probability.
///
/// # Errors
/// TLS cannot be set up, or the system has no resources for a runtime.
pub fn attach(metrics: &Metrics, random: fn() -> u32) -> anyhow::Result<Transport> {
    let client = HttpClient::for_configured_urls(metrics.clone(), random)?;
    let collector = Collector { client, runtime: Some(Builder::new_current_thread().enable_all().build()?) };
    Ok(Box::new(move |request| collector.call(request)))
}

impl Collector {
    /// Sends a request and waits for the response. It has no span, which would be exported in turn. The runtime notices a
    /// connection that the collector has closed only when it sends the next request, so that is sent once more.
    fn call(&self, request: Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
        let runtime = self.runtime.as_ref().context("the runtime has ended")?;
        match runtime.block_on(self.client.send_untraced(request.clone())) {
            Err(Error::NoResponse { .. }) => Ok(runtime.block_on(self.client.send_untraced(request))?),
            result => Ok(result?),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Without waiting for the lookup of a name, which cannot be cancelled and must not delay the exit.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
