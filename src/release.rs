//! Which code this is, and which release of it runs (factor I: one codebase, many deploys).

use serde::Serialize;

/// The commit that this program was built from, written in by `build.rs`.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// What `/version` answers; every log line carries the rest.
#[derive(Debug, Clone, Serialize)]
pub struct Release {
    /// The name of the service (`OTEL_SERVICE_NAME`).
    pub service: String,
    /// The commit that the program was built from, or `unknown` for a build without git.
    pub commit: &'static str,
    /// The release's id as the platform counts it (`RELEASE_VERSION`).
    pub release: Option<String>,
    /// The process type: `web`, `worker`, `clock` or `admin`.
    pub process: &'static str,
}
