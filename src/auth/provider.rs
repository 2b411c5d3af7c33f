//! The identity provider that people may log in with: its issuer, and the credentials of this deploy there.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::SecretString;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::issuer::Issuer;
use crate::config::{self, OidcClient};
use crate::lifecycle::Lifecycle;
use crate::resources::follow;
use crate::resources::http_client::HttpClient;

/// How many requests may wait for the provider at a time. The others are refused at once, so that a provider that hangs
/// does not hold every request.
const MAX_CALLS: usize = 32;

pub struct Provider {
    pub issuer: Issuer,
    /// What it knows this deploy by.
    pub client_id: String,
    client_secret: Arc<RwLock<SecretString>>,
    calls: Semaphore,
}

impl Provider {
    /// Attaches the provider. It is asked when the first person logs in. If the secret is in a file, a new one is used
    /// as soon as the file has it.
    pub fn attach(config: config::Oidc, client: HttpClient, lifecycle: &mut Lifecycle) -> Option<Self> {
        let OidcClient { issuer, id, secret } = config.0.clone()?;
        let provider = Self {
            issuer: Issuer::attach(issuer, client, Instant::now),
            client_id: id,
            client_secret: Arc::new(RwLock::new(secret)),
            calls: Semaphore::new(MAX_CALLS),
        };
        let known = provider.client_secret.clone();
        // No call can check a secret without a person's log-in.
        follow(lifecycle, "OIDC_CLIENT_SECRET", &config, secrets, move |config| {
            if let Some(client) = config.0 {
                *known.write().unwrap_or_else(PoisonError::into_inner) = client.secret;
            }
            std::future::ready(Ok(()))
        });
        Some(provider)
    }

    pub fn client_secret(&self) -> SecretString {
        self.client_secret.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A place among the requests that wait for the provider. None if there is none.
    pub fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.calls.try_acquire().ok()
    }
}

fn secrets(config: &config::Oidc) -> Vec<&SecretString> {
    config.0.iter().map(|client| &client.secret).collect()
}
