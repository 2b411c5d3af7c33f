//! Identifies the code and the release of this process (factor I: one codebase, many deploys).

use serde::Serialize;

/// The commit that this program was built from. `build.rs` sets it.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// The response of `/version`. Every log line has these fields too.
#[derive(Debug, Clone, Serialize)]
pub struct Release {
    /// The name of the service (`OTEL_SERVICE_NAME`).
    pub service: String,
    /// The commit that the program was built from, or `unknown` for a build without git.
    pub commit: &'static str,
    /// The platform's id of the release (`RELEASE_VERSION`).
    pub release: Option<String>,
    /// The process type: `web`, `worker`, `clock` or `admin`.
    pub process: &'static str,
}
