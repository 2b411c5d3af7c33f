//! HTTP clients for the tests. They speak no TLS.

use std::sync::{Arc, LazyLock};

use reqwest::{Client, ClientBuilder, IntoUrl, Response};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Every client of the tests begins here. As the programs build it, reqwest has no default for TLS, and builds no
/// client without a config. One that all clients share costs them no memory.
pub fn builder() -> ClientBuilder {
    static TLS: LazyLock<ClientConfig> = LazyLock::new(|| {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        config.expect("ring has the default versions").with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    });
    Client::builder().tls_backend_preconfigured(TLS.clone())
}

/// Sends a GET request on a connection of its own.
pub async fn get(url: impl IntoUrl) -> reqwest::Result<Response> {
    builder().build()?.get(url).send().await
}
