//! Names the process that answered, in `X-Served-By`, so that people see that any process may answer.
//!
//! Strangers may read it, so it has nothing that `/version` does not tell them, except an id that the process draws at
//! its start, and whether it drains. The name of the machine stays in the log, where that id and `X-Request-Id` lead to it.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use tokio_util::sync::CancellationToken;
use tracing::info;
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use crate::release::Release;

static HEADER: HeaderName = HeaderName::from_static("x-served-by");

/// How many characters of the random id are shown.
const ID_LENGTH: usize = 8;

/// The header's value, before and during a drain.
#[derive(Clone)]
pub struct ServedBy {
    serving: Option<HeaderValue>,
    draining: Option<HeaderValue>,
    soft: CancellationToken,
}

impl ServedBy {
    pub fn new(release: &Release, soft: CancellationToken) -> Self {
        let id = &Uuid::new_v4().simple().to_string()[..ID_LENGTH];
        info!(served_by = id, "responses name this process {id} in X-Served-By");
        let value = |draining: &str| {
            let mut pairs = Serializer::new(String::new());
            pairs.append_pair("process", id).append_pair("commit", release.commit);
            pairs.extend_pairs(release.release.iter().map(|release| ("release", release)));
            HeaderValue::try_from(pairs.append_pair("draining", draining).finish()).ok()
        };
        Self { serving: value("false"), draining: value("true"), soft }
    }

    /// Adds the header to a response.
    pub fn mark<B>(&self, mut response: Response<B>) -> Response<B> {
        let value = if self.soft.is_cancelled() { &self.draining } else { &self.serving };
        response.headers_mut().extend(value.clone().map(|value| (HEADER.clone(), value)));
        response
    }
}
