//! A token with which this deploy calls another service. The platform keeps it in a file and renews it, so that no
//! secret stands in the config.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use axum::http::{HeaderValue, Request, header};
use tokio::task::spawn_blocking;

/// The file with the token. Cheap to clone.
#[derive(Clone)]
pub struct TokenFile(Arc<Path>);

impl TokenFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path.into())
    }

    /// Adds the token to a request, as RFC 6750, 2.1, demands. It reads the file each time, because the platform may
    /// renew the token at any moment.
    ///
    /// # Errors
    /// The file cannot be read, or holds no token. The text names the file and nothing that is in it.
    pub async fn authorize<B>(&self, request: &mut Request<B>) -> anyhow::Result<()> {
        let path = self.0.clone();
        let read = spawn_blocking(move || std::fs::read_to_string(path)).await?;
        let name = self.0.display();
        let token = read.with_context(|| format!("cannot read the token in {name}"))?;
        let no_token = || anyhow!("{name} holds no token");
        let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| no_token())?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
        Ok(())
    }
}
